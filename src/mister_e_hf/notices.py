"""Lines for whoever watches a run."""

import sys


def notice(text: str):
    """A line on standard error, at once."""
    print(text, file=sys.stderr, flush=True)
