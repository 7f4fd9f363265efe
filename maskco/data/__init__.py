"""Images in, batches of two views out."""
