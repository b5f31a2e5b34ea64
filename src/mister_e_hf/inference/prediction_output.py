"""Write predicted turns as CSV, TSV, Parquet or JSON lines, or as a table for a terminal."""

import csv
import itertools
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import InputError
from ..base.part_weights import ANSWERED_WEIGHTS
from ..base.plain_text import display_width, for_csv, for_terminal
from ..base.whole_files import write_atomically

# The columns of a table beside those of the classes or targets; `split` is left out where a source has one alone, and
# `answer` and `unparsed` without answers.
FIELDS = {"dialogue": "string", "split": "string", "turn": "int64", "start": "float64", "end": "float64"}
FIELDS |= {"text": "string", "label": "string", "score": "float64", "answer": "string", "unparsed": "string"}
_AT_TIMES = {"split": "split", "answer": "answer", "unparsed": "answer"}  # columns, and the field that brings them
_AT_ONCE = 10_000  # rows of a Parquet row group
_NARROWEST = 20  # columns of a terminal for the text of a turn
# Line separators that JSON allows within a line, control characters of terminals, and unpaired surrogates.
_NOT_PLAIN = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Lines = Iterable[Mapping[str, Any]]


def check_format(path: str | Path) -> str:
    r"""
    The format of a file: the suffix of its name, `.jsonl` by default.

    Raises:
        InputError: for an unknown suffix.
    """
    ending = Path(path).suffix.lower() or ".jsonl"
    if ending not in _WRITERS:
        raise InputError(f"'{path}' must end in one of {', '.join(_WRITERS)}")
    return ending


def write_predictions(lines: Lines, labels: Sequence[str], path: str | Path) -> int:
    r"""
    Write predicted turns to a file, whole or not at all.

    JSON lines contain everything. CSV, TSV and Parquet have the columns dialogue, split if the source has several,
    turn, start, end, text, label and score; with answers, answer and unparsed; under the name of each class its
    probability, empty if `top_k` left it out, or of each target its score; and the model's [`weight_columns`].

    Args:
        lines: from [`predict_dialogues`].
        labels: the classes or targets.
        path: the file.

    Returns:
        the number of turns.

    Raises:
        InputError: if the suffix is not `.csv`, `.tsv`, `.jsonl`, `.json`, `.ndjson` or `.parquet`.
        OSError: naming the file, if it cannot be written.
    """
    write, count = _WRITERS[check_format(path)], 0
    lines = iter(lines)
    first = list(itertools.islice(lines, 1))
    lines = itertools.chain(first, lines)
    weights = [name for turn in first for name in weight_columns(turn)]
    fields = [name for name in FIELDS if name not in _AT_TIMES or any(_AT_TIMES[name] in turn for turn in first)]

    def counted() -> Iterator[Mapping[str, Any]]:
        nonlocal count
        for line in lines:
            count += 1
            yield line

    write_atomically(path, lambda partial: write(counted(), _Columns(fields, list(labels), weights), partial))
    return count


def weight_columns(turn: Mapping[str, Any]) -> dict[str, float]:
    """The weights of a turn's result by the names of their columns: `"gate weight of speech"`."""
    return {
        f"{kind.title} of {part}": weight
        for kind in ANSWERED_WEIGHTS
        for part, weight in turn.get(kind.answer, {}).items()
    }


def written_answer(answer: Any) -> str | None:
    """The `answer` or `unparsed` of a turn's result as text; None without one."""
    if isinstance(answer, Mapping):
        return "; ".join(f"{target} {written_answer(score) or '?'}" for target, score in answer.items())
    if isinstance(answer, list):
        return "; ".join(answer)
    return answer if isinstance(answer, str | None) else f"{answer:+g}"


def json_line(line: Mapping[str, Any], ascii_only: bool = False) -> str:
    """
    Format a turn as one line of JSON: characters that readers or terminals interpret are escaped. A number that is not
    finite raises.
    """
    text = json.dumps(line, ensure_ascii=ascii_only, allow_nan=False)
    return _NOT_PLAIN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def turn_table(turns: Sequence[Mapping[str, Any]], width: int = 80) -> str:
    r"""
    Format the turns of one dialogue for a terminal.

    Args:
        turns: from [`predict_dialogues`], at least one.
        width: of the terminal; longer texts are truncated, marked with `…`.
    """
    timed = any(turn.get("start") is not None or turn.get("end") is not None for turn in turns)
    targets = list(turns[0]["scores"]) if turns[0].get("task") == "regression" else []
    shown = [for_terminal(target) for target in targets] or ["emotion", "score"]
    answered = "answer" in turns[0]
    rows = [["turn", *(("start", "end") if timed else ()), *shown, *(["answer"] if answered else []), "text"]]
    for turn in turns:
        times = [f"{turn[name]:.2f}" if turn.get(name) is not None else "" for name in ("start", "end")]
        found = [f"{turn['scores'][target]:.2f}" for target in targets]
        found = found or [for_terminal(turn["label"]), f"{turn['score']:.2f}"]
        found += [for_terminal(written_answer(turn["answer"]) or "?")] if answered else []
        text = for_terminal(" ".join((turn.get("text") or "").split()))
        rows.append([str(turn["turn"]), *(times if timed else ()), *found, text])
    widths = [max(display_width(row[place]) for row in rows) for place in range(len(rows[0]) - 1)]
    room = max(_NARROWEST, width - sum(widths) - 2 * len(widths))
    split = f" of {for_terminal(turns[0]['split'])}" if "split" in turns[0] else ""
    lines = [f"dialogue {for_terminal(turns[0]['dialogue'])}{split}"]
    # the columns of emotions and of answers are aligned on the left
    names = {len(widths) - 1} if answered else set()
    names |= set() if targets else {len(widths) - 2 - answered}
    for *cells, text in rows:
        spaces = [" " * (size - display_width(cell)) for cell, size in zip(cells, widths, strict=True)]
        cells = [
            cell + space if place in names else space + cell
            for place, (cell, space) in enumerate(zip(cells, spaces, strict=True))
        ]
        lines.append("  ".join([*cells, _truncated(text, room)]).rstrip())
    return "\n".join(lines)


def _truncated(text: str, room: int) -> str:
    """The text within so many columns of a terminal."""
    if display_width(text) <= room:
        return text
    while display_width(text) > room - 1:
        text = text[:-1]
    return f"{text}…"


def _write_json_lines(lines: Lines, columns: "_Columns", path: Path):
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(json_line(line) + "\n")


def _write_delimited(delimiter: str) -> "_Writer":
    def write(lines: Lines, columns: _Columns, path: Path):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            table.writerow(map(for_csv, columns.names))
            for line in lines:
                table.writerow("" if cell is None else for_csv(cell) for cell in columns.cells(line))

    return write


def _write_parquet(lines: Lines, columns: "_Columns", path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(FIELDS.get(name, "float64"))) for name in columns.names])
    with pq.ParquetWriter(path, schema) as table:
        rows: list[list[Any]] = []

        def write():
            values = zip(*rows, strict=True) if rows else [()] * len(schema)
            arrays = [pa.array(column, kind.type) for column, kind in zip(values, schema, strict=True)]
            table.write_table(pa.Table.from_arrays(arrays, schema=schema))
            rows.clear()

        for line in lines:
            rows.append(columns.cells(line))
            if len(rows) == _AT_ONCE:
                write()
        write()


def class_column(label: str, weights: Container[str] = ()) -> str:
    """The column of a class or target, beside the columns of weights."""
    return f"{label} (class)" if label in FIELDS or label in weights else label


@dataclass
class _Columns:
    """The columns of a table: the fields of a turn, the classes or targets, and the weights."""

    fields: list[str]
    labels: list[str]
    weights: list[str]

    @property
    def names(self) -> list[str]:
        labels = (class_column(label, self.weights) for label in self.labels)
        return [*self.fields, *labels, *self.weights]

    def cells(self, line: Mapping[str, Any]) -> list[Any]:
        weights = weight_columns(line)
        scores = [line["scores"].get(label) for label in self.labels]
        fields = {name: line.get(name) for name in self.fields}
        fields |= {name: written_answer(fields[name]) for name in fields if _AT_TIMES.get(name) == "answer"}
        return [*fields.values(), *scores, *(weights.get(name) for name in self.weights)]


_Writer = Callable[[Lines, _Columns, Path], None]
_WRITERS: dict[str, _Writer]
_WRITERS = {".jsonl": _write_json_lines, ".json": _write_json_lines, ".ndjson": _write_json_lines}
_WRITERS |= {".csv": _write_delimited(","), ".tsv": _write_delimited("\t"), ".parquet": _write_parquet}
