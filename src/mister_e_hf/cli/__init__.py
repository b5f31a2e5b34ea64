"""The command line `mister-e`."""

from .commands import main

__all__ = ["main"]
