"""A checkpoint folder: written, described, loaded, pushed."""
