"""Read and check the tables of a run's predictions, of classes or of scores, whole or of damaged input."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..base.errors import InputError, reading, short
from ..base.part_weights import GATE, PART_WEIGHTS, PartWeights
from ..evaluation.metrics import IGNORE_INDEX
from .measures import ClassMeasures, Measures
from .study_files import is_number

Curves = dict[tuple[str, float], np.ndarray]  # by curve and level, class indices (D, N) or scores (D, N, K)

CUT = "start cut"  # the one curve on which turns are left out

_TURN_COLUMNS = ("split", "dialogue_id", "utterance_id", "label", "prediction")
_OF_HEAD = {"classification": "_probabilities", "regression": "_prediction"}
_TOLERANCE = 1e-4  # for probabilities in single precision
_HALF_TOLERANCE = 0.03  # between outputs of a model in half precision and in single


def read_predictions(path: Path, measures: Measures, split: str | None) -> dict[str, np.ndarray]:
    r"""
    Read the columns of `predictions.parquet`, of one split if given: `label` and `prediction` as class indices (N,)
    or, in a regression, scores (N, K), NaN where a turn has none.

    Raises:
        InputError: naming the file and the column; also if it holds predictions of the other task.
    """
    table = _read_table(path, _TURN_COLUMNS)
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in ("dialogue_id", "utterance_id")}
    found = "regression" if pa.types.is_list(table.schema.field("prediction").type) else "classification"
    if found != measures.task:
        raise InputError(
            f"'{path}' holds predictions of a {found}, but the study is a {measures.task}: a study has one task"
        )
    heads = heads_of(table.column_names, measures)
    if isinstance(measures, ClassMeasures):
        columns |= _classes(path, table, measures.names, heads)
    else:
        columns |= _scores(path, table, len(measures.names), heads)
    for kind in PART_WEIGHTS:
        if kind.field not in table.column_names:
            continue
        if kind is GATE:
            columns[kind.field] = _lists(path, table, kind.field, len(heads))
            _check_shares(columns[kind.field], f"'{path}': {kind.field}")
        else:
            columns |= _weights(path, table, kind)
    if "score" in table.column_names:
        with reading(path, "a table with numbers in 'score'"):
            columns["score"] = np.array(table["score"].to_pylist(), dtype=np.float64)  # null becomes NaN
    return columns


def heads_of(columns: Iterable[str], measures: Measures) -> list[str]:
    """Names of the heads beside the main one, in the order of the columns, which is that of the gate's weights."""
    ending = _OF_HEAD[measures.task]
    return [name.removesuffix(ending) for name in columns if name.endswith(ending)]


def part_weights_of(columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The columns of the weights of parts, other than heads, by field and the parts' names, in their order."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for kind in PART_WEIGHTS:
        start = _weight_column(kind, "")
        if weights := {name.removeprefix(start): of for name, of in columns.items() if name.startswith(start)}:
            found[kind.field] = weights
    return found


def _weight_column(kind: PartWeights, part: str) -> str:
    return f"{kind.field} of {part}"


def _weights(path: Path, table: pa.Table, kind: PartWeights) -> dict[str, np.ndarray]:
    """The weights of each part (N,), as columns of their own."""
    stored = table.schema.field(kind.field).type
    if not pa.types.is_struct(stored):
        raise InputError(f"'{path}': {kind.field} must hold a number for each {kind.part} by name, got {stored}")
    names = [field.name for field in stored]
    with reading(path, f"a table with numbers in '{kind.field}'"):
        rows = [[row[name] for name in names] for row in table[kind.field].to_pylist()]
        values = np.array(rows, dtype=np.float32).reshape(len(rows), len(names))
    _check_shares(values[values.any(-1)], f"'{path}': {kind.field}")  # all 0 where a turn has no modality
    return {_weight_column(kind, name): values[:, place] for place, name in enumerate(names)}


def head_column(head: str, measures: Measures) -> str:
    """The column of a head's own predictions."""
    return head + _OF_HEAD[measures.task]


def _classes(path: Path, table: pa.Table, names: list[str], heads: list[str]) -> dict[str, np.ndarray]:
    """Labels and predictions as class indices (N,), probabilities (N, C)."""
    columns = {}
    index = {name: number for number, name in enumerate(names)} | {None: IGNORE_INDEX}
    for column in ("label", "prediction"):
        found = table[column].to_pylist()
        if unknown := set(found) - set(index if column == "label" else names):
            raise InputError(
                f"'{path}': {column} {short(sorted(map(str, unknown)))} is not one of the classes {short(names)}"
            )
        columns[column] = np.array([index[name] for name in found], dtype=np.int64)
    if "probabilities" not in table.column_names:
        raise InputError(f"'{path}' lacks the columns probabilities")
    for column in ("probabilities", *(f"{name}_probabilities" for name in heads)):
        columns[column] = _lists(path, table, column, len(names))
        _check_shares(columns[column], f"'{path}': {column}")
    ids = {name: table[name].to_pylist() for name in ("dialogue_id", "utterance_id")}
    _check_likeliest(columns, ids, f"'{path}'")
    return columns


def _scores(path: Path, table: pa.Table, targets: int, heads: list[str]) -> dict[str, np.ndarray]:
    """Labels and predictions (N, K)."""
    columns = {}
    for column in ("label", "prediction", *(f"{name}_prediction" for name in heads)):
        columns[column] = _lists(path, table, column, targets, np.float64, gaps=column == "label")
        if column != "label" and not np.isfinite(columns[column]).all():
            raise InputError(f"'{path}': {column} hold NaN or infinity")
    return columns


def _lists(
    path: Path, table: pa.Table, column: str, width: int, dtype: Any = np.float32, gaps: bool = False
) -> np.ndarray:
    """A column of lists of so many numbers, (N, width); with `gaps` a missing list or number becomes NaN."""
    rows = table[column].to_pylist()
    if gaps:
        rows = [[np.nan] * width if row is None else row for row in rows]
    with reading(path, f"a table with numbers in '{column}'"):
        values = np.array(rows, dtype=dtype).reshape(len(rows), -1 if rows else width)
    if values.shape[1] != width:
        raise InputError(f"'{path}': {column} must hold {width} numbers per turn, got the shape {values.shape}")
    return values


def read_robustness(path: Path, table: Mapping[str, np.ndarray], measures: Measures) -> Curves | None:
    r"""
    Read `robustness.parquet`: predictions by curve and level; None without such a file.

    Args:
        table: what [`read_predictions`] found beside it.

    Raises:
        InputError: if it is damaged, or its predictions of undamaged input are those of another run.
    """
    if not path.is_file():
        return None
    turns = len(table["label"])
    found: dict[tuple[str, float], list] = {}
    with reading(path, "a table of predictions"):
        rows = sorted(
            _read_table(path, ("curve", "level", "draw", "predictions")).to_pylist(), key=lambda row: row["draw"]
        )
        for row in rows:
            curve, level, predictions = row["curve"], row["level"], row["predictions"]
            if not isinstance(curve, str) or not is_number(level):
                raise InputError(f"'{path}': expected a curve's name and a number, got {short((curve, level))}")
            if len(predictions) != turns:
                raise InputError(
                    f"'{path}': {len(predictions)} predictions of '{curve}' at {level}, but predictions.parquet "
                    f"beside it has {turns} turns"
                )
            where = f"'{path}': predictions of '{curve}' at {level} must be"
            found.setdefault((curve, level), []).append(_damaged(predictions, measures, where))
            if curve != CUT and not measures.is_kept(found[curve, level][-1]).all():
                raise InputError(f"{where} there for all turns, since only '{CUT}' leaves some out")
    for (_, level), predicted in found.items():
        if level == 0 and (other := int(_of_another_run(predicted[0], table).sum())):
            raise InputError(
                f"'{path}': without damage {other} of {turns} predictions are not those of predictions.parquet beside "
                "it: one of the two files was edited, swapped or copied"
            )
    return {key: np.array(rows) for key, rows in sorted(found.items())}


def _of_another_run(predicted: np.ndarray, table: Mapping[str, np.ndarray]) -> np.ndarray:
    """
    Which predictions of undamaged input (N,) or (N, K) differ from those of the table by more than rounding, that of
    half precision included.
    """
    if (probabilities := table.get("probabilities")) is not None:
        own = np.take_along_axis(probabilities, predicted[:, None], -1)[:, 0]
        return probabilities.max(-1) - own > _HALF_TOLERANCE
    expected = table["prediction"]
    return (np.abs(predicted - expected) > _HALF_TOLERANCE * np.maximum(np.abs(expected), expected.std(0))).any(-1)


def _damaged(predictions: list[Any], measures: Measures, where: str) -> np.ndarray:
    """One row of predictions: class indices (N,), -1 where cut off, or scores (N, K), NaN where cut off."""
    width = len(measures.names)
    if isinstance(measures, ClassMeasures):
        if not all(isinstance(one, int) and -1 <= one < width for one in predictions):
            raise InputError(f"{where} class indices from -1 to {width - 1}")
        return np.array(predictions, dtype=np.int64)
    if not all(one is None or isinstance(one, list) and len(one) == width for one in predictions):
        raise InputError(f"{where} lists of {width} numbers, null where a turn was cut off")
    return np.array([[np.nan] * width if one is None else one for one in predictions], dtype=np.float64)


def _read_table(path: Path, columns: tuple[str, ...]) -> pa.Table:
    with reading(path, "a Parquet table"):
        table = pq.ParquetFile(path).read()
    if missing := set(columns) - set(table.column_names):
        raise InputError(f"'{path}' lacks the columns {', '.join(sorted(missing))}")
    return table.combine_chunks()


def _check_shares(values: np.ndarray, what: str):
    """Raise an InputError unless each row holds numbers from 0 to 1 whose sum is 1."""
    if not np.isfinite(values).all():
        raise InputError(f"{what} hold NaN or infinity")
    if values.size and (values.min() < 0 or np.abs(values.sum(-1) - 1).max() > _TOLERANCE):
        turn = int(np.argmax((values < 0).any(-1) | (np.abs(values.sum(-1) - 1) > _TOLERANCE)))
        raise InputError(f"{what} of turn {turn} must be from 0 to 1 and sum to 1, got {short(values[turn].tolist())}")


def _check_likeliest(columns: Mapping[str, np.ndarray], ids: Mapping[str, list], what: str):
    """Raise an InputError unless each prediction is the class of the highest probability (either one in a tie)."""
    probabilities, prediction = columns["probabilities"], columns["prediction"]
    behind = probabilities.max(-1) - np.take_along_axis(probabilities, prediction[:, None], -1)[:, 0]
    if (wrong := behind > _TOLERANCE).any():
        turn = int(np.argmax(wrong))
        raise InputError(
            f"{what}: the prediction of utterance '{ids['utterance_id'][turn]}' of dialogue "
            f"'{ids['dialogue_id'][turn]}' is not the class of the highest probability ({int(wrong.sum())} such "
            "turns); the file was edited"
        )
