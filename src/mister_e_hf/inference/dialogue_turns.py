"""One dialogue that `mister-e predict` gives to the pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class DialogueTurns(NamedTuple):
    """
    Args:
        name: the dialogue's id.
        turns: what the pipeline takes.
        texts: the transcript of each turn, which the result repeats; by default the `text` of the turns.
        split: the dialogue's split, if the source has several.
    """

    name: str
    turns: Sequence[Mapping[str, Any]]
    texts: Sequence[str | None] | None = None
    split: str | None = None
