"""A folder of one's own: tables of turns, or recordings with subtitles."""

import dataclasses
import hashlib
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets

from ..errors import InputError
from ..subtitles import SUBTITLES, read_subtitles
from .builder import CorpusBuilder, CorpusConfig, Dialogues
from .schema import SPLITS
from .sources import TABLES, SoundInTable, read_table

logger = logging.getLogger(__name__)

# Names under which a table may hold a field, the first that is there counting.
COLUMNS = {
    "dialogue_id": ("dialogue_id", "dialogue"),
    "order": ("order", "turn"),
    "utterance_id": ("utterance_id", "utterance"),
    "text": ("text", "transcript"),
    "audio": ("audio", "file_name"),
    "start": ("start",),
    "end": ("end",),
    "speaker": ("speaker",),
    "emotion": ("emotion", "label"),
    "sentiment": ("sentiment",),
    "split": ("split",),
}
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_MEDIA = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4", ".mkv", ".mov", ".webm", ".aac", ".aiff")


@dataclasses.dataclass
class DialogueFolderConfig(CorpusConfig):
    r"""
    Args:
        columns: the table's own name of a field, for example `{"dialogue_id": "call", "emotion": "mood"}`. Fields are dialogue_id, order,
            utterance_id, text, audio, start, end, speaker, emotion, sentiment and split.
        labels: class names in order; by default the names found, sorted. A name found that is not among them is an error.
        split_shares: shares of dialogues for train, validation and test, where neither a column nor folders say it.
        seed: of that split.
    """

    columns: dict[str, str] | None = None
    labels: list[str] | None = None
    split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        unknown = set(self.columns or {}) - set(COLUMNS)
        if unknown:
            raise InputError(f"columns names no field by {sorted(unknown)}; fields are {list(COLUMNS)}")
        shares = tuple(self.split_shares)
        if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1):
            raise InputError(f"split_shares must be three shares that sum to 1, got {self.split_shares}")
        if self.labels is not None and (not self.labels or len(set(self.labels)) != len(self.labels)):
            raise InputError(f"labels must be names, each once, got {self.labels}")


class DialogueFolder(CorpusBuilder):
    r"""
    Dialogues from a folder of one's own, or from one table or subtitle file.

    - Tables (CSV, TSV, JSONL, Parquet), a row per turn: dialogue_id; order, or start; text, audio or both; and where they are known
      utterance_id, start, end, speaker, emotion, sentiment, split. `metadata.csv` (or .tsv, .jsonl, .parquet) beside the sound files, as
      `datasets`' AudioFolder has it, counts before other tables. Sound is a path relative to the table's folder, with start
      and end where one recording holds the dialogue; in Parquet also the file's content.
    - Without a table, recordings with subtitles: `call.wav` and `call.srt` or `call.vtt` are the dialogue `call`, a cue is a turn.

    Splits come from the column `split`, else from folders or tables named train, validation (valid, val, dev) and test, or such folders that
    a table's sound lies in, else dialogues are drawn by `seed`; adding a dialogue moves hardly any other. Fewer than three dialogues are all train. No dialogue is ever in two
    splits.
    """

    BUILDER_CONFIG_CLASS = DialogueFolderConfig
    VERSION = datasets.Version("1.0.0")
    title = "Dialogue folder"
    about = {"description": "Dialogues with the emotion of their turns."}

    def __init__(self, data_dir: str | Path, **settings):
        super().__init__(data_dir, **settings)

    def source_files(self, folder: Path, settings: dict[str, Any]) -> list[Path]:
        self._rows = _read(folder, settings.get("columns") or {})
        sound = {row["audio"] for row in self._rows if isinstance(row["audio"], Path)}
        return [*{Path(row["source"]) for row in self._rows}, *sound]

    @property
    def labels(self) -> list[str]:
        found = {row["emotion"] for row in self._rows if row["emotion"] is not None}
        if self.config.labels is None:
            # A class label has a name at least; where no turn has a label, none is ever used.
            return sorted(found) or ["unlabelled"]
        for row in self._rows:
            if row["emotion"] is not None and row["emotion"] not in self.config.labels:
                raise InputError(
                    f"{row['where']}: emotion {row['emotion']!r} is none of the labels {self.config.labels}"
                )
        return list(self.config.labels)

    def corpus_name(self, counts: dict[str, dict[str, int]]) -> str:
        """That of the folder or file."""
        return (
            Path(self.config.data_dir).stem
            if Path(self.config.data_dir).is_file()
            else Path(self.config.data_dir).name
        )

    def read(self, folder: Path) -> Dialogues:
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self._rows:
            rows[row["dialogue_id"]].append(row)
        splits = {name: _split_of(name, turns) for name, turns in rows.items()}
        if set(splits.values()) == {None}:
            splits = _draw_splits(list(rows), self.config.split_shares, self.config.seed)
        elif None in splits.values():
            name = next(name for name, split in splits.items() if split is None)
            raise InputError(f"{rows[name][0]['where']}: dialogue '{name}' has no split, but others have")
        dialogues: Dialogues = {split: [] for split in SPLITS}
        for name, turns in rows.items():
            dialogues[splits[name]].append({"dialogue_id": name, "utterances": _turns(name, turns)})
        return dialogues


def _read(folder: Path, columns: dict[str, str]) -> list[dict[str, Any]]:
    """Every turn with the fields of [`COLUMNS`], null where a field is not given, and `where` it stands."""
    if folder.is_file():
        return _read_file(folder, _split_of_name(folder), columns)
    # Splits as folders, else everything in the folder itself.
    splits = {
        path: _SPLITS[path.name.lower()]
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name.lower() in _SPLITS
    }
    rows = _read_place(folder, None, columns)
    for place, split in splits.items():
        rows += _read_place(place, split, columns)
    if not rows:
        raise FileNotFoundError(
            f"'{folder}' holds no table of turns ({', '.join(TABLES)}) and no subtitles ({', '.join(SUBTITLES)}) beside recordings, "
            "neither itself nor in folders train, validation and test"
        )
    return rows


def _read_place(folder: Path, split: str | None, columns: dict[str, str]) -> list[dict[str, Any]]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    tables = [path for path in files if path.suffix.lower() in TABLES]
    tables = [path for path in tables if path.stem.lower() == "metadata"] or tables
    subtitles = [path for path in files if path.suffix.lower() in SUBTITLES]
    if tables and subtitles:
        logger.warning(
            "'%s': %d subtitle files are not read, since %s holds the turns", folder, len(subtitles), tables[0].name
        )
    rows = []
    for path in tables or subtitles:
        rows += _read_file(path, split or _split_of_name(path), columns)
    return rows


def _split_of_name(path: Path) -> str | None:
    """Of `train.csv`, or a shard `train-00000-of-00002.parquet`."""
    return _SPLITS.get(path.stem.lower().partition("-")[0]) if path.suffix.lower() in TABLES else None


def _read_file(path: Path, split: str | None, columns: dict[str, str]) -> list[dict[str, Any]]:
    if path.suffix.lower() in SUBTITLES:
        return _read_recording(path, split)
    table = read_table(path)
    if "utterances" in table[0]:
        raise InputError(
            f"'{path}' holds a row per dialogue, not per turn: it is a finished corpus, use its folder as it is"
        )
    names = {field: _column(path, field, list(table[0]), columns) for field in COLUMNS}
    if (
        names["dialogue_id"] is None
        or (names["order"] or names["start"]) is None
        or (names["text"] or names["audio"]) is None
    ):
        raise InputError(
            f"'{path}' has the columns {list(table[0])}; expected dialogue_id, order (or start), and text, audio or both. Say which column "
            "holds which by columns."
        )
    rows = []
    # As a spreadsheet counts, which shows the names of columns as row 1.
    for number, cells in enumerate(table, start=2 if path.suffix.lower() in (".csv", ".tsv") else 1):
        row = {field: cells[name] if name else None for field, name in names.items()}
        rows.append(_checked(row, f"'{path}', row {number}", path, split))
    return rows


def _column(path: Path, field: str, there: list[str], columns: dict[str, str]) -> str | None:
    if field in columns:
        if columns[field] not in there:
            raise InputError(f"'{path}' has no column '{columns[field]}' for {field}; it has {there}")
        return columns[field]
    return next((name for name in COLUMNS[field] if name in there and name not in columns.values()), None)


def _checked(row: dict[str, Any], where: str, path: Path, split: str | None) -> dict[str, Any]:
    for field in ("dialogue_id", "utterance_id", "text", "speaker", "emotion"):
        row[field] = _words(row[field], field, where)
    if row["dialogue_id"] is None:
        raise InputError(f"{where}: no dialogue_id")
    for field in ("order", "start", "end", "sentiment"):
        row[field] = _number(row[field], field, where)
    if row["order"] is None and row["start"] is None:
        raise InputError(
            f"{where}: neither order nor start, so the turn's place in dialogue '{row['dialogue_id']}' is not known"
        )
    if row["split"] is not None:
        given = _SPLITS.get(str(row["split"]).strip().lower())
        if given is None:
            raise InputError(f"{where}: split {row['split']!r} is none of {list(_SPLITS)}")
        if split is not None and split != given:
            raise InputError(f"{where}: split {row['split']!r}, but the row stands in {split}")
        split = given
    if row["audio"] is not None and not isinstance(row["audio"], SoundInTable):
        name = Path(str(row["audio"]))
        # One table may stand above the folders of the splits, as AudioFolder allows.
        split = split or _SPLITS.get(next(iter(name.parts[:-1]), "").lower())
        row["audio"] = (path.parent / name).resolve()
    return row | {"split": split, "where": where, "source": str(path)}


def _words(value: Any, field: str, where: str) -> str | None:
    # NaN is how data frames say that there is nothing; as a word it would be a class, or a dialogue.
    if isinstance(value, SoundInTable | list | dict) or value != value:
        raise InputError(f"{where}: {field} must be text or null, got {value!r}")
    return None if value is None else str(value).strip() or None


def _number(value: Any, field: str, where: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise InputError(f"{where}: {field} must be a number, got {value!r}")
    return number


def _read_recording(path: Path, split: str | None) -> list[dict[str, Any]]:
    recordings = [
        beside
        for beside in sorted(path.parent.iterdir())
        if beside.stem == path.stem and beside.suffix.lower() in _MEDIA
    ]
    if len(recordings) > 1:
        raise InputError(f"'{path}' may belong to {[beside.name for beside in recordings]}; keep one of them there")
    if not recordings:
        logger.warning("'%s': no recording of that name beside it; its turns have text alone", path)
    nothing = dict.fromkeys(COLUMNS)
    return [
        nothing
        | cue
        | {"dialogue_id": path.stem, "order": float(number), "audio": recordings[0].resolve() if recordings else None}
        | {"split": split, "where": f"'{path}', cue {number + 1}", "source": str(path)}
        for number, cue in enumerate(read_subtitles(path))
    ]


def _split_of(dialogue: str, turns: list[dict[str, Any]]) -> str | None:
    for turn in turns:
        if turn["split"] != turns[0]["split"]:
            raise InputError(
                f"Dialogue '{dialogue}' is in two splits: {turns[0]['split'] or 'none'} by {turns[0]['where']}, {turn['split'] or 'none'} by "
                f"{turn['where']}"
            )
    return turns[0]["split"]


def _draw_splits(dialogues: list[str], shares: tuple[float, float, float], seed: int) -> dict[str, str]:
    if len(dialogues) < 3:
        logger.warning("%d dialogues are too few for three splits; all are train", len(dialogues))
        return dict.fromkeys(dialogues, "train")
    ranked = sorted(dialogues, key=lambda name: hashlib.blake2b(f"{seed}\0{name}".encode()).digest())
    sizes = [max(1, round(share * len(ranked))) if share else 0 for share in shares]
    sizes[sizes.index(max(sizes))] += len(ranked) - sum(sizes)  # what rounding left or took, where it weighs least
    train, validation, test = sizes
    splits = ["validation"] * validation + ["test"] * test + ["train"] * train
    logger.warning(
        "No splits are given: %d dialogues drawn for train, %d for validation, %d for test by seed %d",
        *map(splits.count, SPLITS),
        seed,
    )
    return dict(zip(ranked, splits, strict=True))


def _turns(dialogue: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    field = "order" if all(row["order"] is not None for row in rows) else "start"
    without = next((row for row in rows if row[field] is None), None)
    if without is not None:
        raise InputError(f"{without['where']}: dialogue '{dialogue}' needs order, or else start, at every turn")
    rows = sorted(rows, key=lambda row: row[field])
    for earlier, row in zip(rows, rows[1:], strict=False):
        if earlier[field] == row[field]:
            raise InputError(
                f"{row['where']}: {field} {row[field]:g} of dialogue '{dialogue}' stands at {earlier['where']}, too"
            )
    turns = []
    for number, row in enumerate(rows):
        start, end = row["start"] or 0.0, math.inf if row["end"] is None else row["end"]
        if not 0 <= start < end:
            raise InputError(f"{row['where']}: start {start:g} and end {end:g} s make no stretch")
        turn = {field: row[field] for field in ("text", "audio", "start", "end", "speaker", "emotion", "sentiment")}
        turns.append({"utterance_id": row["utterance_id"] or f"{dialogue}_{number}"} | turn)
    return turns
