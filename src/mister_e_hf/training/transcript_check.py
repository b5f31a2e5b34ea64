"""Check, before a run, the transcripts of its corpus, which a model may read beside vectors."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import datasets

from ..base.errors import InputError
from ..inference.transcript_notes import transcript_notes
from ..vectors.dialogue_vectors import DialogueVectors
from .recipe import Recipe

logger = logging.getLogger(__name__)


def check_transcripts(recipe: Recipe, corpus: datasets.DatasetDict | Mapping[str, DialogueVectors]):
    r"""
    Warn of turns without a transcript, by split, and of transcripts in another language than the model's prompts.

    Args:
        recipe: of a model that may read transcripts.
        corpus: the splits of its corpus, of dialogues or of vectors.

    Raises:
        InputError: if the model reads transcripts, and train has none at all.
    """
    config = recipe.model_config()
    if not config.reads_transcripts:
        return
    splits, turns = {}, {}
    for name, data in corpus.items():
        found = data.transcripts if isinstance(data, DialogueVectors) else list(_transcripts(data))
        splits[name] = found
        turns[name] = sum(map(len, found or ())) if found is not None else data.num_turns
    if not any((text or "").strip() for dialogue in splits["train"] or () for text in dialogue):
        raise InputError(
            f"{recipe.source}: section 'model': a model of type '{config.model_type}' reads transcripts, and no turn "
            "of train has one (column `texts` of a table of vectors, a string per turn; `text` of a turn). Add them, "
            "or choose a model that reads vectors alone"
        )
    for sentence in transcript_notes(config, splits, turns):
        logger.warning("%s", sentence)


def _transcripts(data: datasets.Dataset) -> Iterator[Sequence[str | None]]:
    """The transcripts of each dialogue; the audio and video of its turns are not decoded."""
    for table in data.with_format("arrow").select_columns("utterances").iter(batch_size=50):
        for chunk in table["utterances"].chunks:
            names = [field.name for field in chunk.type.value_type]
            texts = chunk.flatten().field("text").to_pylist() if "text" in names else [None] * len(chunk.flatten())
            start = 0
            for turns in chunk.value_lengths().to_pylist():
                yield texts[start : start + (turns or 0)]
                start += turns or 0
