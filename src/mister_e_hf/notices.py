"""Lines for whoever watches a run."""

import os
import sys


def notice(text: str):
    """A line on standard error, at once; of several processes the first one says it."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
