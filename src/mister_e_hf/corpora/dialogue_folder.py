"""Read your own folder: tables of turns, or recordings with subtitles."""

import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..base.errors import InputError, short
from ..base.modalities import MODALITIES
from ..media import audio
from ..media.text_files import text_of_name
from .builder import CorpusBuilder, CorpusConfig
from .columns import TURN_COLUMNS, listed
from .counts import Dialogues
from .labels import unify_labels, written
from .recordings import is_path
from .schema import SPLITS, UNLABELLED
from .splits import draw_splits
from .turn_tables import read_turns

logger = logging.getLogger(__name__)

# Names that a score cannot have: fields of a turn and columns of a table.
_TAKEN = {
    *(name for name in TURN_COLUMNS if name != "sentiment"),
    *("utterances", "utterance_ids", "texts", "speakers", "labels"),
    *(name for modality in MODALITIES.values() for name in (modality.features, modality.has)),
}


@dataclasses.dataclass
class DialogueFolderConfig(CorpusConfig):
    r"""
    Args:
        columns: the table's own name of a field, for example `{"dialogue_id": "call", "emotion": "mood"}`, or `""` if
            it has none. Fields are dialogue_id, order, utterance_id, text, audio, video, start, end, duration,
            speaker, emotion, sentiment and split.
        labels: class names in order; by default the names found, sorted. A name found that is not among them is an
            error.
        split_shares: shares of dialogues for train, validation and test, where neither a column nor folders say it.
        seed: of that split.
        in_row_order: a table without `dialogue_id` is one dialogue, and one without `order` and `start` is in the
            order of its rows.
        scores: further columns that hold a number, or nothing, to keep as fields of the turns under these names.
    """

    columns: dict[str, str | None] | None = None
    labels: list[str] | None = None
    split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    in_row_order: bool = False
    scores: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        self._check_scores()
        known = [*TURN_COLUMNS, *(self.scores or ())]
        if unknown := set(self.columns or {}) - set(known):
            raise InputError(f"columns has the unknown fields {sorted(unknown)}; expected some of {known}")
        shares = tuple(self.split_shares)
        if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1):
            raise InputError(f"split_shares must be three shares that sum to 1, got {self.split_shares}")
        if self.labels is not None and (
            not all(map(str, self.labels)) or len(set(self.labels)) != len(self.labels) or not self.labels
        ):
            raise InputError(f"labels must be names, each once, got {short(self.labels)}")

    def _check_scores(self):
        scores = self.scores or []
        if isinstance(scores, str) or not all(isinstance(name, str) and name.strip() for name in scores):
            raise InputError(f"scores must be a list of names of columns, got {short(repr(scores))}")
        if len(set(scores)) != len(scores):
            raise InputError(f"scores must name each column once, got {short(scores)}")
        for name in scores:
            if name in _TAKEN:
                raise InputError(
                    f"scores names '{name}', which other data of a turn have as their name; choose another, for "
                    f"example 'rating', name that in scores, and pass columns={{'rating': '{name}'}}"
                )


class DialogueFolder(CorpusBuilder):
    r"""
    Dialogues from your own folder, table or subtitle file.

    - Tables (CSV, TSV, JSONL, Parquet), a row per turn: dialogue_id; order, or start; text, audio or both; and if
      known utterance_id, start, end (or duration), speaker, emotion, sentiment, split. Case, blanks and underscores of
      the columns' names do not matter, and common other names are known (`TURN_COLUMNS` in `columns.py`); a name that
      may be meant is asked about, and the others are listed in a warning, unless `scores` names them. `metadata.csv`
      (or .tsv, .jsonl, .parquet) beside the audio files, as `datasets`' AudioFolder has it, counts before other
      tables. Audio is a path relative to the table's folder, with start and end in seconds, or as 0:01:02.5, if one
      recording holds the dialogue; in Parquet also the file's content or samples. Video likewise, in a column `video`;
      without `audio`, the sound is that of the video. A `file_name` with a picture, as of `datasets`' VideoFolder, is
      both.
    - Without a table, recordings with subtitles: `call.wav` and `call.srt`, `call.vtt` or `call.en.vtt` are the
      dialogue `call`, a cue is a turn; `call.mp4` gives its picture, too.

    Splits come from the column `split`, else from folders or tables named train, validation (valid, val, dev, devel)
    and test, or from such folders of a table's audio, else dialogues are drawn by `seed`; adding a dialogue moves
    hardly any other. Fewer than three dialogues are all train. No dialogue is ever in two splits. Labels that differ
    in writing alone (`Joy`, `joy`, `0`, `0.0`) are one class. Warnings name what is not read: files, folders, columns.

    Args:
        data_dir: the folder or file.
        columns: the table's own name of a field, for example `{"dialogue_id": "call", "emotion": "mood"}`, or `""` if
            it has none.
        labels: class names in order; by default the names found, sorted. A name found that is not among them is an
            error.
        split_shares: shares of dialogues for train, validation and test, if neither a column nor names say the split.
        seed: seed of that split.
        bad_audio: what to do with audio that is missing or cannot be used: `"error"`, or `"missing"`, so that the turn
            has no audio.
        max_seconds: the longest turn taken, in seconds.
        in_row_order: take a table without `dialogue_id` as one dialogue, and one without `order` and `start` in the
            order of its rows.
        cache_dir: by default that of `datasets`.
        config_name: name of the configuration in that cache.
        bad_video: as `bad_audio`, of video.
        scores: further columns that hold a number, or nothing, such as `["valence", "activation"]`: they become fields
            of the turns under these names, and columns of tables of vectors, which a model can be trained to predict
            (`corpus.targets`). `sentiment` is such a field without being named.

    Raises:
        FileNotFoundError: if the folder or file is not there, or holds no turns.
        InputError: naming the file and row, if something does not fit.
        AudioError, VideoError: for audio or video that cannot be used, with `bad_audio`, `bad_video` as `"error"`.
    """

    BUILDER_CONFIG_CLASS = DialogueFolderConfig
    VERSION = datasets.Version("1.0.0")
    title = "Dialogue folder"
    about = {"description": "Dialogues with the emotion of their turns."}

    def __init__(
        self,
        data_dir: str | Path,
        *,
        columns: dict[str, str | None] | None = None,
        labels: list[str] | None = None,
        split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        bad_audio: str = "error",
        max_seconds: float = audio.MAX_SECONDS,
        in_row_order: bool = False,
        cache_dir: str | None = None,
        config_name: str | None = None,
        bad_video: str = "error",
        scores: list[str] | None = None,
    ):
        given = dict(locals())
        fields = {field.name: field.default for field in dataclasses.fields(self.BUILDER_CONFIG_CLASS)}
        # Defaults are not part of the name in the cache.
        settings = {name: value for name, value in given.items() if name in fields and value != fields[name]}
        settings.pop("data_dir", None)
        super().__init__(data_dir, cache_dir=cache_dir, config_name=config_name, **settings)

    def source_files(self, folder: Path, settings: dict[str, Any]) -> list[Path]:
        self.scores = tuple(name for name in settings.get("scores") or () if name != "sentiment")
        self._rows = read_turns(
            folder, settings.get("columns"), settings.get("in_row_order", False), settings.get("scores") or ()
        )
        unify_labels(self._rows, settings.get("labels"), f"'{folder}'")
        media = {path for row in self._rows for path in (row["audio"], row["video"]) if is_path(path)}
        return [*{Path(row["source"]) for row in self._rows}, *media]

    @property
    def labels(self) -> list[str]:
        found = {row["emotion"] for row in self._rows if row["emotion"] is not None}
        if self.config.labels is None:
            return sorted(found) or list(UNLABELLED)
        for row in self._rows:
            if row["emotion"] is not None and row["emotion"] not in self.config.labels:
                raise InputError(
                    f"{row['where']}: unknown emotion {short(repr(row['emotion']), 60)}; expected one of "
                    f"{listed(self.config.labels)}"
                )
        return list(self.config.labels)

    def corpus_name(self, counts: dict[str, dict[str, int]]) -> str:
        """Name of the folder or file."""
        place = Path(self.config.data_dir)
        return text_of_name(place.stem if place.is_file() else place.name)

    def read(self, folder: Path) -> Dialogues:
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self._rows:
            rows[row["dialogue_id"]].append(row)
        _warn_of_names_alike(rows)
        _warn_of_orders(rows)
        given = {name: _split_of(name, turns) for name, turns in rows.items()}
        splits = {name: split for name, split in given.items() if split is not None}
        if not splits:
            splits = draw_splits(
                list(rows), self.config.split_shares, self.config.seed, {Path(row["source"]) for row in self._rows}
            )
        elif len(splits) < len(given):
            name = next(name for name, split in given.items() if split is None)
            raise InputError(
                f"{rows[name][0]['where']}: dialogue '{name}' has no split, but others have; name the split in a "
                "column `split`, or in the name of the table or folder (train, validation, test)"
            )
        dialogues: Dialogues = {split: [] for split in SPLITS}
        for name, turns in rows.items():
            dialogues[splits[name]].append({"dialogue_id": name, "utterances": _turns(name, turns, self.scores)})
        return dialogues


def _warn_of_names_alike(names: Iterable[str]):
    """Warn about dialogue ids that differ in spelling alone: one dialogue would be read as two."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[written(name).casefold()].append(name)
    twice = [found for found in alike.values() if len(found) > 1]
    if twice:
        logger.warning(
            "%d dialogue ids differ from another in spelling alone, such as %s; they are kept as separate dialogues",
            len(twice),
            listed(twice[0]),
        )


def _warn_of_orders(rows: dict[str, list[dict[str, Any]]]):
    """Warn about dialogues in which `order` contradicts `start`; `order` is used."""
    against = []
    for name, turns in rows.items():
        if all(turn["order"] is not None and turn["start"] is not None for turn in turns):
            starts = [turn["start"] for turn in sorted(turns, key=lambda turn: turn["order"])]
            if len(
                {path for turn in turns if is_path(path := turn["audio"] or turn["video"])}
            ) < 2 and starts != sorted(starts):
                against.append(name)
    if against:
        logger.warning(
            "%d dialogues have start times that contradict order, such as '%s'; order is used",
            len(against),
            against[0],
        )


def _split_of(dialogue: str, turns: list[dict[str, Any]]) -> str | None:
    for turn in turns:
        if turn["split"] != turns[0]["split"]:
            raise InputError(
                f"Dialogue '{dialogue}' is in two splits: {turns[0]['split'] or 'none'} by {turns[0]['where']}, "
                f"{turn['split'] or 'none'} by {turn['where']}"
            )
    return turns[0]["split"]


def _turns(dialogue: str, rows: list[dict[str, Any]], scores: Sequence[str]) -> list[dict[str, Any]]:
    field = "order" if all(row["order"] is not None for row in rows) else "start"
    without = next((row for row in rows if row[field] is None), None)
    if without is not None:
        raise InputError(f"{without['where']}: dialogue '{dialogue}' needs order, or else start, at every turn")
    rows = sorted(rows, key=lambda row: row[field])
    for earlier, row in zip(rows, rows[1:], strict=False):
        if earlier[field] == row[field]:
            # Without a column of dialogues a table is one dialogue, which has the name of its file.
            advice = ". If a column says which dialogue a turn belongs to, pass columns={'dialogue_id': 'NAME'}"
            named = dialogue == text_of_name(Path(row["source"]).stem)
            raise InputError(
                f"{row['where']}: {field} {row[field]:g} of dialogue '{dialogue}' also appears at "
                f"{earlier['where']}{advice if named else ''}"
            )
    turns = []
    for number, row in enumerate(rows):
        start, end = row["start"] or 0.0, math.inf if row["end"] is None else row["end"]
        if not 0 <= start < end:
            raise InputError(
                f"{row['where']}: expected 0 <= start < end in seconds, got start {start:g} and end {end:g}"
            )
        turn = {
            field: row[field]
            for field in ("text", "audio", "video", "start", "end", "speaker", "emotion", "sentiment", *scores)
        }
        turns.append({"utterance_id": row["utterance_id"] or f"{dialogue}_{number}"} | turn)
    return turns
