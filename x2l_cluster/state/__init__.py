"""What exists: manifests, published chunk by chunk under an epoch; in memory, on disk, in Redis or Valkey."""
