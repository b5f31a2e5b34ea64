"""Recordings and tables of turns in, lines of emotions out: what `mister-e predict` does."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import transformers

from .configuration_mister_e import TASK
from .errors import InputError
from .files import write_atomically
from .stored_stages import load_model
from .subtitles import read_subtitles


def predict_dialogues(
    source: str | Path,
    model: str,
    segments: str | Path | None = None,
    columns: dict[str, str] | None = None,
    revision: str | None = None,
    device: str | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    r"""
    Emotions of the turns of one recording, or of every dialogue of a folder or table as [`DialogueFolder`] reads it.

    Args:
        source: a sound file, with `segments`; or a folder or table.
        model: checkpoint folder or id on the Hub.
        segments: SRT or WebVTT file with the turns of the recording.
        columns: the table's own names of the fields.
        revision: branch, tag or commit of the model.
        device: to run on; by default the first accelerator.
        options: of [`ConversationEmotionPipeline`].

    Returns:
        a line per turn, in order: `dialogue`, `turn`, what is known of `start`, `end` and `text`, and what the pipeline gives.

    Raises:
        FileNotFoundError: if there is no such source.
        ValueError: naming dialogue and turn.
    """
    if not Path(source).exists():
        raise FileNotFoundError(f"There is no recording, folder or table '{source}'")
    options = {name: value for name, value in options.items() if value is not None}
    loaded = load_model(str(model), **({} if revision is None else {"revision": revision}))
    try:
        recogniser = transformers.pipeline(TASK, model=loaded, device=device, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"The model '{model}' could not be loaded: {error}") from error
    with tempfile.TemporaryDirectory() as cache:
        if segments is not None:
            dialogues = iter([(Path(source).name, [{"audio": str(source)} | cue for cue in read_subtitles(segments)])])
        else:
            dialogues = _dialogues(source, columns, cache, options.get("bad_audio", "error"))
        for name, turns in dialogues:
            for number, (turn, found) in enumerate(zip(turns, recogniser(turns), strict=True)):
                known = {field: turn[field] for field in ("start", "end", "text") if turn.get(field) is not None}
                yield {"dialogue": name, "turn": number, **known, **found}


def write_lines(lines: Iterable[dict[str, Any]], path: str | Path) -> int:
    """Write JSON lines, the file whole or not at all; returns how many."""
    count = 0

    def write(partial: Path):
        nonlocal count
        with partial.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1

    write_atomically(Path(path), write)
    return count


def _dialogues(source, columns, cache: str, bad_audio: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    from .corpora.dialogue_folder import DialogueFolder  # needs datasets, which one recording does not

    builder = DialogueFolder(
        source, columns=columns, bad_audio=bad_audio, split_shares=(1, 0, 0), in_row_order=True, cache_dir=cache
    )
    builder.download_and_prepare()
    for data in builder.as_dataset().values():
        for row in data:
            yield row["dialogue_id"], row["utterances"]
