"""Stage 2: the vectors of a dialogue become emotions."""
