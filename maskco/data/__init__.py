"""Pictures in, batches of two views out."""
