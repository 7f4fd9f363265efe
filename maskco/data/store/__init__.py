"""Parts of files in object stores: addresses, clients, retries, a cache of blocks, and indices of tar shards."""
