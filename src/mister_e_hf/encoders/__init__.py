"""Stage 1: a turn becomes a vector."""
