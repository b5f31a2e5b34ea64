"""A corpus as vectors: read, checked, batched."""
