"""The tables of the weights that the full model gives its parts, such as heads (a gate) or capsules.

Letters: S seeds, N turns, P parts.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ...base.part_weights import ANSWERED_WEIGHTS, GATE, PART_WEIGHTS, PartWeights
from ...evaluation.metrics import IGNORE_INDEX
from ..measures import Measures, ScoreMeasures
from ..study import Stage, System
from .cells import Record
from .regression_tables import range_name, true_parts
from .table import NO_FULL, Table

_GROUPS = 6  # about how many parts of a target's range are shown
# Fields of a record of weights that are not weights.
WEIGHT_TABLE_FIELDS = ("group", "turns", "mixture_right", "mixture_error")
WEIGHT_TABLES = {f"{kind.answer}_by_": kind for kind in ANSWERED_WEIGHTS}  # by how their names begin


def weight_tables(measures: Measures, stage: Stage, full: System | None) -> Iterator[Table]:
    """
    Yield the mean weights of the full model's parts by what is true, and by what is right or which part has the most;
    without a full model, those of a gate say so.
    """
    scores = isinstance(measures, ScoreMeasures)
    for kind in PART_WEIGHTS:
        if (full is None and kind is not GATE) or (full is not None and full.weights_of(kind) is None):
            continue
        groups = _by_true_score if scores else _by_emotion
        truth = "true score" if scores else "true emotion"
        heading, name = ("true score", "true_score") if scores else ("emotion", "emotion")
        records = list(groups(measures, stage, full, kind)) if full else []
        yield _table(kind, f"{kind.answer}_by_{name}", truth, heading, records, full)
        if kind is not GATE:
            about, heading, name = "which one has the most", "most in", f"main_{kind.part}"
            records = list(_by_main_part(measures, stage, full, kind)) if full else []
        elif isinstance(measures, ScoreMeasures):
            about, heading, name = "which expert is closest", "closest", "closest_expert"
            records = list(_by_closest_expert(measures, stage, full)) if full else []
        else:
            about, heading, name = "which expert is right", "right", "right_expert"
            records = list(_by_right_expert(stage, full)) if full else []
        yield _table(kind, f"{kind.answer}_by_{name}", about, heading, records, full)


def _table(kind: PartWeights, name: str, about: str, group: str, records: list[Record], full: System | None) -> Table:
    """A table of mean weights, whose records have a `group`, its `turns`, and a weight for each part."""
    columns: dict[str, Callable[[Record], str]] = {
        group: lambda record: record["group"],
        "turns a seed": lambda record: f"{record['turns']:,.0f}",
    }
    columns |= {part: _weight(part) for part in (_parts(full, kind)[0] if full else ())}
    if records and "mixture_right" in records[0]:
        said = "mixture" if kind is GATE else "prediction"
        columns[f"{said} right"] = lambda record: f"{100 * record['mixture_right']:.1f} %"
    if records and "mixture_error" in records[0]:
        columns["mixture MAE" if kind is GATE else "MAE"] = lambda record: f"{record['mixture_error']:.3f}"
    gap = None if records else NO_FULL if full is None else "no turn has a label"
    title = f"{kind.title[0].upper()}{kind.title[1:]}s by {about}"
    return Table(name, title, "Mean over turns and seeds of the full model.", records, columns, gap)


def _weight(part: str) -> Callable[[Record], str]:
    return lambda record: f"{record[part]:.3f}"


def _parts(full: System, kind: PartWeights) -> tuple[list[str], np.ndarray]:
    found = full.weights_of(kind)
    assert found is not None  # as `weight_tables` has checked
    return found


def _record(full: System, kind: PartWeights, group: str, turns: np.ndarray) -> Record:
    """The mean weights of a group of turns, (N,) of every seed or (S, N)."""
    names, weights = _parts(full, kind)
    chosen = weights[:, turns] if turns.ndim == 1 else weights[turns]
    count = float(turns.sum()) if turns.ndim == 1 else turns.sum() / len(full.seeds)
    means = chosen.mean(tuple(range(chosen.ndim - 1)), dtype=np.float64)
    return {"group": group, "turns": count} | dict(zip(names, means.tolist(), strict=True))


def _by_emotion(measures: Measures, stage: Stage, full: System, kind: PartWeights) -> Iterator[Record]:
    for number, label in enumerate(measures.names):
        if (turns := stage.labels == number).any():
            yield _record(full, kind, label, turns)


def _by_true_score(measures: Measures, stage: Stage, full: System, kind: PartWeights) -> Iterator[Record]:
    assert isinstance(measures, ScoreMeasures)
    for _, target, edges, row in true_parts(measures, stage, _GROUPS):
        for part in range(len(edges) - 1):
            if (turns := row == part).any():
                yield _record(full, kind, f"{target}, {range_name(edges[part], edges[part + 1])}", turns)


def _by_right_expert(stage: Stage, full: System) -> Iterator[Record]:
    """A record for each choice of experts that are right together."""
    heads = list(full.heads)
    right = np.stack([values.argmax(-1) == stage.labels for values in full.heads.values()], -1)
    mixture = full.predictions == stage.labels
    for pattern in sorted(
        np.ndindex(*[2] * len(heads)), key=lambda pattern: (sum(pattern), [-part for part in pattern])
    ):
        group = (right == pattern).all(-1) & (stage.labels != IGNORE_INDEX)  # [S, N]
        if group.any():
            names = [name for name, part in zip(heads, pattern, strict=True) if part]
            found = _record(full, GATE, _right(names, len(heads)), group)
            yield found | {"mixture_right": float(mixture[group].mean())}


def _right(names: list[str], heads: int) -> str:
    """The experts that are right, in words."""
    if heads > 2 and len(names) == heads:
        return "all three" if heads == 3 else "all"
    return " and ".join(names) or "none"


def _by_closest_expert(measures: ScoreMeasures, stage: Stage, full: System) -> Iterator[Record]:
    """A record for each expert, of the turns at which it is the closest to the true scores."""
    scored = measures.scored(stage.labels)
    errors = np.stack([_errors(values, stage.labels, scored) for values in full.heads.values()])  # [E, S, N]
    mixture = _errors(full.predictions, stage.labels, scored)
    for place, head in enumerate(full.heads):
        if (group := (errors.argmin(0) == place) & scored).any():
            yield _record(full, GATE, head, group) | {"mixture_error": float(mixture[group].mean())}


def _by_main_part(measures: Measures, stage: Stage, full: System, kind: PartWeights) -> Iterator[Record]:
    """
    A record for each part, of the turns at which it has the largest weight; for classes also of the right and of the
    wrong predictions.
    """
    names, weights = _parts(full, kind)
    scored = measures.scored(stage.labels)
    main = np.where(weights.any(-1), weights.argmax(-1), -1)  # [S, N], -1 where a turn has nothing
    groups = {name: (main == place) & scored for place, name in enumerate(names)}
    groups["no modality"] = (main == -1) & scored
    if isinstance(measures, ScoreMeasures):
        field, quality = "mixture_error", _errors(full.predictions, stage.labels, scored)
    else:
        right = full.predictions == stage.labels
        field, quality = "mixture_right", right
        groups |= {"right predictions": right & scored, "wrong predictions": ~right & scored}
    for name, group in groups.items():
        if group.any():
            yield _record(full, kind, name, group) | {field: float(quality[group].mean())}


def _errors(predictions: np.ndarray, labels: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Absolute error of each turn (S, N), averaged over the targets that it has scores of; NaN where it has none."""
    errors = np.full(predictions.shape[:-1], np.nan)
    errors[:, scored] = np.nanmean(np.abs(predictions[:, scored] - labels[scored]), axis=-1)
    return errors
