"""The tables of a study of scores: targets, and what is predicted at which true value.

Letters: S seeds, N turns, K targets.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ...base.score_names import in_per_cent, score_title
from ..measures import ScoreMeasures
from ..study import Stage, System
from .cells import Record, formatted, interval, system_cell, with_sd
from .score_tables import StageScores, estimate_record
from .table import NO_FULL, Table

_CELLS = 10  # about how many parts of a target's range are shown


def coverage_table(measures: ScoreMeasures, stage: Stage) -> Table:
    """How many turns have a score of each target, and which."""
    records = []
    for place, target in enumerate(measures.names):
        values = stage.labels[:, place]
        found = values[~np.isnan(values)]
        record: Record = {"target": target, "turns": len(found), "missing": len(values) - len(found)}
        numbers = (found.mean(), found.std(), found.min(), found.max()) if len(found) else (None,) * 4
        records.append(record | dict(zip(("mean", "sd", "least", "greatest"), numbers, strict=True)))
    columns: dict[str, Callable[[Record], str]] = {
        "target": lambda record: record["target"],
        "turns": lambda record: f"{record['turns']:,}",
        "without a score": lambda record: f"{record['missing']:,}",
    }
    columns |= {name: _number(name) for name in ("mean", "sd", "least", "greatest")}
    return Table("coverage", "True scores", "Of all turns of the stage.", records, columns)


def _number(name: str) -> Callable[[Record], str]:
    return lambda record: formatted(record[name], "{:.3f}")


def target_table(scores: StageScores) -> Table:
    """The scores of every system for each target by itself."""
    assert isinstance(scores.measures, ScoreMeasures)
    records: list[Record] = []
    for name, system in scores.stage.systems.items():
        found = scores.measures.by_target(scores.labels, system.predictions, scores.stage.dialogues)
        for target, of_target in found.items():
            record: Record = {"target": target, "system": name}
            for metric, values in of_target.items():
                record |= estimate_record(metric, values)
            records.append(record)
    records.sort(key=lambda record: scores.measures.names.index(record["target"]))
    columns: dict[str, Callable[[Record], str]] = {
        "target": lambda record: record["target"],
        "system": system_cell(scores.study),
    }
    for metric in scores.measures.shown:
        columns[score_title(metric)] = with_sd(metric, in_per_cent(metric))
        columns[f"95 % interval, {score_title(metric)}"] = interval(metric, in_per_cent(metric))
    return Table("targets", "Scores by target", "Mean ± sample standard deviation over seeds.", records, columns)


def bins_table(scores: StageScores) -> Table:
    """Accuracies and F1 after the scores were put into bins."""
    assert isinstance(scores.measures, ScoreMeasures)
    binned = scores.measures.binned
    columns: dict[str, Callable[[Record], str]] = {"system": system_cell(scores.study)}
    columns |= {score_title(metric): with_sd(metric, in_per_cent(metric)) for metric in binned}
    return Table(
        "bins",
        f"Scores in the bins of {scores.measures.bins.upper() if scores.measures.bins else ''}",
        "Accuracy and weighted F1 in per cent: mean ± sample standard deviation over seeds. The intervals are in the "
        "table's file.",
        [scores.record(name) for name in scores.scores],
        columns,
    )


def predicted_table(measures: ScoreMeasures, stage: Stage, full: System | None) -> Table:
    """How many turns with which true score got which prediction, a cell of a grid each, pooled over seeds."""
    records: list[Record] = []
    for place, target, edges, row in true_parts(measures, stage, _CELLS) if full else ():
        assert full is not None
        has_score = row >= 0
        column = _part(full.predictions[:, has_score, place], edges)
        counts = np.zeros((len(edges) - 1, len(edges) - 1), dtype=np.int64)
        np.add.at(counts, (np.broadcast_to(row[has_score], column.shape), column), 1)
        for (true, predicted), turns in np.ndenumerate(counts):
            records.append(
                {
                    "target": target,
                    "true_from": edges[true],
                    "true_to": edges[true + 1],
                    "predicted_from": edges[predicted],
                    "predicted_to": edges[predicted + 1],
                    "turns": int(turns),
                    "share": float(turns / max(counts[true].sum(), 1)),
                }
            )
    return Table(
        "predicted",
        "Predicted against true scores of the full model",
        "Turns pooled over seeds, and their share of those with such a true score. The outermost predicted range "
        "includes what is beyond it.",
        records,
        {
            "target": lambda record: record["target"],
            "true": lambda record: range_name(record["true_from"], record["true_to"]),
            "predicted": lambda record: range_name(record["predicted_from"], record["predicted_to"]),
            "turns": lambda record: f"{record['turns']:,}",
            "share": lambda record: f"{100 * record['share']:.1f} %",
        },
        gap=None if full else NO_FULL,
        long=True,
    )


def error_table(measures: ScoreMeasures, stage: Stage, full: System | None) -> Table:
    """Predictions of the full model and their errors, by the true score."""
    records: list[Record] = []
    for place, target, edges, row in true_parts(measures, stage, _CELLS) if full else ():
        assert full is not None
        predictions = full.predictions[..., place]  # [S, N]
        errors = predictions - stage.labels[:, place]
        for part in range(len(edges) - 1):
            if (turns := row == part).any():
                low, median, high = np.quantile(predictions[:, turns], [0.1, 0.5, 0.9]).tolist()
                records.append(
                    {
                        "target": target,
                        "true_from": edges[part],
                        "true_to": edges[part + 1],
                        "turns": int(turns.sum()),
                        "predicted_median": median,
                        "predicted_low": low,
                        "predicted_high": high,
                        "mae": float(np.abs(errors[:, turns]).mean()),
                        "mean_error": float(errors[:, turns].mean()),
                    }
                )
    return Table(
        "error_by_true_score",
        "Predictions and error of the full model by true score",
        "Over turns and seeds: the median of the predictions and what the middle 80 % of them are, the mean absolute "
        "error, and the mean error, which is positive where predictions are too high.",
        records,
        {
            "target": lambda record: record["target"],
            "true": lambda record: range_name(record["true_from"], record["true_to"]),
            "turns": lambda record: f"{record['turns']:,}",
            "predicted": _number("predicted_median"),
            "80 % of predictions": lambda record: " to ".join(
                formatted(record[f"predicted_{end}"], "{:.3f}") for end in ("low", "high")
            ),
            "MAE": _number("mae"),
            "mean error": lambda record: formatted(record["mean_error"], "{:+.3f}"),
        },
        gap=None if full else NO_FULL,
    )


def true_parts(measures: ScoreMeasures, stage: Stage, parts: int) -> Iterator[tuple[int, str, np.ndarray, np.ndarray]]:
    """Yield the place and name of each target, the edges of parts of its range, and each turn's part, -1 for none."""
    for place, target in enumerate(measures.names):
        values = stage.labels[:, place]
        missing = np.isnan(values)
        if missing.all():
            continue
        edges = round_edges(values[~missing], parts)
        yield place, target, edges, np.where(missing, -1, _part(np.where(missing, edges[0], values), edges))


def _part(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Which part each value is in; a part has its lower edge, and the outermost ones have what is beyond."""
    return np.searchsorted(edges[1:-1], values, side="right")


def round_edges(values: np.ndarray, parts: int) -> np.ndarray:
    """Edges of equal parts, at most so many, that cover the values, at multiples of 1, 2 or 5 times a power of 10."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    least = (high - low) / parts
    unit = 10.0 ** np.floor(np.log10(least))
    for step in (unit, 2 * unit, 5 * unit, 10 * unit, 20 * unit):
        first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
        if last - first <= parts:
            return np.round(np.arange(first, last + 1) * step, 10)
    raise AssertionError("a step of twenty units is more than twice the least one")


def range_name(low: float, high: float) -> str:
    """A part of a target's range in words."""
    return f"{low:g} to {high:g}".replace("-", "−")
