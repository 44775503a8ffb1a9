"""What exists and what is to be done: manifests, jobs, tenants, sessions; in memory, on disk, in Redis or Valkey."""
