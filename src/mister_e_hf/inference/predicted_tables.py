"""Read predicted turns from tables: the CSV, TSV and Parquet of `mister-e predict`, and a run's predictions.parquet.

Letters: C classes, S targets.
"""

import csv
import io
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import InputError, reading, short
from ..base.part_weights import ANSWERED_WEIGHTS, GATE, PART_WEIGHTS
from ..base.plain_text import from_csv
from ..hub.loading import read_json
from ..media.text_files import read_text
from .prediction_output import FIELDS, class_column

TABLES = (".csv", ".tsv", ".parquet")

_NEEDED = ("dialogue", "turn", "label", "score")
_OF_A_RUN = ("dialogue_id", "prediction")
_NUMBERS = ("start", "end", "score")
_ROUNDING = 1e-4


def table_turns(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""
    Yield the turns of a table as the lines of `mister-e predict` have them, without experts, each with its row for
    messages.

    Raises:
        InputError: naming the file and the columns, if the table is neither.
    """
    columns = _parquet(path) if path.suffix.lower() == ".parquet" else _delimited(path)
    turns: Iterable[dict[str, Any]]
    if set(_OF_A_RUN) <= set(columns):
        turns = _of_a_run(path, columns)
    elif set(_NEEDED) <= set(columns):
        turns = _of_predict(path, columns)
    else:
        raise InputError(
            f"'{path}' has the columns {short(', '.join(columns), 200)}; expected a table of mister-e predict "
            f"({', '.join(_NEEDED)}, ...) or the predictions.parquet of a run ({', '.join(_OF_A_RUN)}, ...)"
        )
    for number, turn in enumerate(turns, start=1):
        yield f"row {number}", turn


def _parquet(path: Path) -> dict[str, Sequence[Any]]:
    import pyarrow.parquet as pq

    with reading(path, "a Parquet table"):
        table = pq.ParquetFile(path).read()
        return {name: column.to_pylist() for name, column in zip(table.column_names, table.columns, strict=True)}


def _delimited(path: Path) -> dict[str, Sequence[Any]]:
    """Texts by column, None where a cell is empty."""
    with reading(path, "a table"):
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = [row for row in csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter) if row]
    if not rows:
        raise InputError(f"'{path}' is empty")
    names = [from_csv(name) for name in rows[0]]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"'{path}' has several columns '{short(twice[0], 60)}'")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(names):
            raise InputError(f"'{path}', row {number} has {len(row)} cells, but the table {len(names)} columns")
    cells = ([from_csv(cell) if cell else None for cell in column] for column in zip(*rows[1:], strict=True))
    return dict(zip(names, cells, strict=True)) if rows[1:] else {name: [] for name in names}


def _of_predict(path: Path, columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    parts = {name: _part_of(name) for name in columns}
    weights = {name: part for name, part in parts.items() if part is not None}
    classes = {_class_of(name, weights): name for name in columns if name not in FIELDS and name not in weights}
    turns = []
    for row in range(len(columns["turn"])):
        where = f"'{path}', row {row + 1}"
        cells = {name: columns[name][row] for name in FIELDS if name in columns}
        cells |= {name: _number(cells[name], float, name, where) for name in _NUMBERS if name in cells}
        cells["turn"] = _number(cells["turn"], int, "turn", where)
        scores = {label: _number(columns[name][row], float, name, where) for label, name in classes.items()}
        turn = {**cells, "scores": {label: score for label, score in scores.items() if score is not None}}
        for name, (answer, part) in weights.items():
            turn.setdefault(answer, {})[part] = _number(columns[name][row], float, name, where)
        turns.append(turn)
    # Probabilities sum to 1, unless `--top_k` left some out; scores do not, and none is left out.
    scores_of = [turn["scores"] for turn in turns]
    if all(len(scores) == len(classes) for scores in scores_of) and (
        len(classes) == 1 or any(abs(sum(scores.values()) - 1) > _ROUNDING for scores in scores_of)
    ):
        turns = [{**turn, "task": "regression"} for turn in turns]
    return turns


def _class_of(column: str, weights: Container[str]) -> str:
    label = column.removesuffix(" (class)")
    return label if class_column(label, weights) == column else column


def _part_of(column: str) -> tuple[str, str] | None:
    """For a column of weights the kind of weights, as the pipeline's field, and the part; see `weight_columns`."""
    for kind in ANSWERED_WEIGHTS:
        title, _, part = column.partition(" of ")
        if title == kind.title and part:
            return kind.answer, part
    return None


def _number(cell: Any, kind: type, column: str, where: str) -> Any:
    try:
        return None if cell is None else kind(cell)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: {short(column, 60)} must be a number, got {short(repr(cell), 60)}") from None


def _of_a_run(path: Path, columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """The turns of each dialogue in the order of the rows."""
    is_regression = "probabilities" not in columns
    shares = columns["prediction" if is_regression else "probabilities"]
    if not shares:
        return
    if not all(isinstance(row, list) and row and len(row) == len(shares[0]) for row in shares) or not all(
        isinstance(value, float) for row in shares for value in row
    ):
        name = "prediction" if is_regression else "probabilities"
        raise InputError(f"'{path}': {name} must hold as many numbers in every row")
    names = _names(path, len(shares[0]))
    if names is None and is_regression:
        names = ["score"] if len(shares[0]) == 1 else [f"score {number}" for number in range(len(shares[0]))]
    elif names is None:  # a class that is never predicted has no name here
        names = [f"class {number}" for number in range(len(shares[0]))]
        for label, row in zip(columns["prediction"], shares, strict=True):
            names[row.index(max(row))] = label
    ending = "_prediction" if is_regression else "_probabilities"
    heads = [name.removesuffix(ending) for name in columns if name.endswith(ending)]
    counts: Counter[str] = Counter()
    for row, dialogue in enumerate(columns["dialogue_id"]):
        if not isinstance(dialogue, str):
            raise InputError(f"'{path}', row {row + 1}: dialogue must be a name, got {short(repr(dialogue), 60)}")
        scores = dict(zip(names, shares[row], strict=True))
        label = names[0] if is_regression else columns["prediction"][row]
        turn = {"dialogue": dialogue, "turn": counts[dialogue], "label": label, "score": scores.get(label)}
        turn |= {"scores": scores} | ({"task": "regression"} if is_regression else {})
        if GATE.field in columns:
            weights = columns[GATE.field][row]
            if not isinstance(weights, list) or len(weights) != len(heads):
                raise InputError(
                    f"'{path}', row {row + 1}: {GATE.field} must hold a number for each of {', '.join(heads)}, got "
                    f"{short(repr(weights), 60)}"
                )
            turn[GATE.answer] = dict(zip(heads, weights, strict=True))
        turn |= {
            kind.answer: columns[kind.field][row]
            for kind in PART_WEIGHTS
            if kind is not GATE and kind.field in columns
        }
        counts[dialogue] += 1
        yield turn


def _names(path: Path, count: int) -> list[str] | None:
    """The names of the classes or targets of the model beside the table, if it has so many."""
    if not (path.parent / "config.json").is_file():
        return None
    found = read_json(path.parent / "config.json").get("id2label")
    if not isinstance(found, dict) or sorted(found) != sorted(map(str, range(count))):
        return None
    return [str(found[str(number)]) for number in range(count)]
