"""`mister-e`: its commands, by what they are for."""

from .commands import main

__all__ = ["main"]
