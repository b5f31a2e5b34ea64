"""MiSTER-E."""
