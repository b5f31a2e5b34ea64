"""A recipe and a seed become a checkpoint."""
