"""The plots of a study's report, drawn from the records of its tables, as SVG within the page.

They are small, so that a phone shows them one below another, and use line styles, markers and hatches as well as
greys.
"""

import html
import io
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ...base.fonts import PlotFigure
from ...base.part_weights import PartWeights
from ...base.plain_text import for_plot
from ...base.score_names import SCORE_NAMES, in_per_cent, score_title
from ...evaluation.confusion_figure import confusion_figure
from .cells import Record
from .table import Table
from .weight_tables import WEIGHT_TABLE_FIELDS, WEIGHT_TABLES

_SIZE = (4.8, 3.4)
_LINES = [
    ("-", "o", "0"),
    ("--", "s", "0.35"),
    ("-.", "^", "0.15"),
    (":", "D", "0.5"),
    ((0, (5, 1, 1, 1, 1, 1)), "v", "0.3"),
]
_BARS = [("0.92", ""), ("0.75", "///"), ("0.45", ".."), ("0.6", "xx"), ("0.3", ""), ("0.85", "---"), ("0.7", "\\\\\\")]
_OF_HEAD = re.compile(r"eval_(.+)_(?:weighted_f1|mae)")
_AXES = {
    "both removed": "share of turns without speech and text",
    "all removed": "share of turns without any modality",
    "start cut": "share of the dialogue's first turns cut off",
}


def table_figures(table: Table) -> Iterator[tuple[str, Figure]]:
    """Yield the plots of a table, each with its caption; most tables have none."""
    if not table.records:
        return
    if table.name == "confusion":
        names = [record["true"] for record in table.records]
        counts = np.array([[record[name] for name in names] for record in table.records])
        yield (
            "True emotion by row. A cell shows its number of turns, pooled over seeds; the darker, the larger its "
            "share of the row.",
            confusion_figure(counts, names),
        )
    elif table.name == "predicted":
        for target in dict.fromkeys(record["target"] for record in table.records):
            yield (
                f"{target}: predictions by true score, and the line of right ones. The darker a cell, the larger its "
                "share of the turns with such a true score.",
                _predicted([record for record in table.records if record["target"] == target], target),
            )
    elif table.name == "error_by_true_score":
        for target in dict.fromkeys(record["target"] for record in table.records):
            records = [record for record in table.records if record["target"] == target]
            yield f"{target}: error by true score, at the middle of each range.", _error(records, target)
    elif kind := next((kind for start, kind in WEIGHT_TABLES.items() if table.name.startswith(start)), None):
        yield f"{table.title}: mean weight of each {kind.part}.", _weights(table.records, kind)
    elif table.name == "reliability":
        yield (
            "Accuracy by confidence; perfectly calibrated probabilities are on the diagonal.",
            _reliability(table.records),
        )
    elif table.name == "robustness":
        for curve in dict.fromkeys(record["curve"] for record in table.records):
            records = [record for record in table.records if record["curve"] == curve]
            yield (
                f"{curve.capitalize()}: {score_title(_main(records[0]))} with 95 % intervals.",
                _robustness(records, curve),
            )
    elif table.name == "learning":
        losses = {"loss": "train, all terms", "eval_loss": "held out, the model's own loss"}
        heads = [found for name in table.records[0] if (found := _OF_HEAD.fullmatch(name))]
        main = next((name for name in SCORE_NAMES if f"eval_{name}" in table.records[0]), "weighted_f1")
        scores = {f"eval_{main}": "full model"}
        scores |= {found[0]: found[1].replace("_", " ") for found in heads}
        for caption, kinds, unit in (
            ("Loss by epoch: mean and range over runs.", losses, "loss"),
            (f"Held-out {score_title(main)} by epoch: mean and range over runs.", scores, _with_unit(main)),
        ):
            shown = {kind: name for kind, name in kinds.items() if kind in table.records[0]}
            if shown:
                yield caption, _learning(table.records, shown, unit)


def to_svg(figure: Figure, name: str, label: str) -> str:
    """
    Render a figure as a self-contained `<svg>` element whose text is text. Its ids begin with `name`, so that a page
    can hold several; `label` is read aloud by screen readers.
    """
    buffer = io.BytesIO()
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
    return text


def _axes(xlabel: str, ylabel: str):
    figure = PlotFigure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Figure, columns: int = 2):
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _main(record: Record) -> str:
    """The score that the records of a curve hold."""
    return next(name for name in SCORE_NAMES if name in record)


def _with_unit(score: str) -> str:
    return score_title(score) + (", per cent" if in_per_cent(score) else "")


def _predicted(records: list[Record], target: str) -> Figure:
    edges = sorted({record[name] for record in records for name in ("true_from", "true_to")})
    side = len(edges) - 1
    shares = np.array([record["share"] for record in records]).reshape(side, side)  # by true score, by prediction
    figure, axes = _axes(f"true {for_plot(target)}", f"predicted {for_plot(target)}")
    axes.grid(visible=False)
    axes.pcolormesh(edges, edges, shares.T, cmap="Greys", vmin=0, vmax=max(shares.max(), 1e-9))
    axes.plot(edges[:: len(edges) - 1], edges[:: len(edges) - 1], color="0.5", linewidth=1, linestyle="--")
    return figure


def _error(records: list[Record], target: str) -> Figure:
    figure, axes = _axes(f"true {for_plot(target)}", "error")
    middles = [(record["true_from"] + record["true_to"]) / 2 for record in records]
    for (line, mark, grey), (field, label) in zip(
        _LINES, {"mae": "mean absolute error", "mean_error": "mean error"}.items(), strict=False
    ):
        values = [record[field] for record in records]
        filled = grey if mark == "o" else "white"
        axes.plot(
            middles, values, linestyle=line, marker=mark, color=grey, markerfacecolor=filled, markersize=5, label=label
        )
    axes.axhline(0, color="0.6", linewidth=1)
    _legend(figure)
    return figure


def _weights(records: list[Record], kind: PartWeights) -> Figure:
    figure, axes = _axes(f"mean {kind.title}", "")
    figure.set_figheight(1.3 + 0.34 * len(records))
    places, left = np.arange(len(records)), np.zeros(len(records))
    parts = [name for name in records[0] if name not in WEIGHT_TABLE_FIELDS]
    for part, (grey, hatch) in zip(parts, itertools.cycle(_BARS), strict=False):
        weights = np.array([record[part] for record in records])
        axes.barh(places, weights, left=left, color=grey, hatch=hatch, edgecolor="black", linewidth=0.6, label=part)
        left += weights
    axes.set_yticks(places, [record["group"] for record in records])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    _legend(figure, 3)
    return figure


def _reliability(records: list[Record]) -> Figure:
    figure, axes = _axes("mean confidence, per cent", "accuracy, per cent")
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=1)
    for (line, mark, grey), state in zip(_LINES, dict.fromkeys(r["probabilities"] for r in records), strict=False):
        points = [(record["confidence"], record["accuracy"]) for record in records if record["probabilities"] == state]
        xs, ys = 100 * np.array(points).T
        filled = grey if mark == "o" else "white"
        axes.plot(xs, ys, linestyle=line, marker=mark, color=grey, markerfacecolor=filled, markersize=5, label=state)
    least = 100 * min(min(record["confidence"], record["accuracy"]) for record in records)
    axes.set_xlim(max(0, least - 5), 101)
    axes.set_ylim(max(0, least - 5), 101)
    _legend(figure)
    return figure


def _robustness(records: list[Record], curve: str) -> Figure:
    without = f"share of turns without {curve.removesuffix(' removed')}"
    main = _main(records[0])
    noise = f"{curve}, standard deviations" if curve.startswith("noise") else without
    figure, axes = _axes(_AXES.get(curve, noise), _with_unit(main))
    factor = 100 if in_per_cent(main) else 1
    systems = list(dict.fromkeys(record["system"] for record in records))
    levels = [record["level"] for record in records]
    apart = 0.006 * (max(levels) - min(levels))
    for number, (system, (line, mark, grey)) in enumerate(zip(systems, _LINES, strict=False)):
        own = [record for record in records if record["system"] == system]
        level = np.array([record["level"] for record in own])
        mean, low, high = (
            factor * np.array([record[key] for record in own], dtype=float)  # None, an undefined end, becomes NaN
            for key in (main, f"{main}_low", f"{main}_high")
        )
        axes.errorbar(
            level + (2 * number - len(systems) + 1) * apart,
            mean,
            yerr=np.maximum([mean - low, high - mean], 0),
            linestyle=line,
            marker=mark,
            color=grey,
            markerfacecolor=grey if mark == "o" else "white",
            markersize=5,
            capsize=3,
            linewidth=1.3,
            label=system.replace("_", " "),
        )
    uncut = [r for r in records if r["system"] == systems[0] and r["uncut"] is not None]
    if uncut:
        line, mark, grey = _LINES[3]
        points = [[record["level"] for record in uncut], [factor * record["uncut"] for record in uncut]]
        axes.plot(
            *points,
            linestyle=line,
            marker=mark,
            color=grey,
            markersize=4,
            label=f"{systems[0]}, same turns, nothing cut off",
        )
    _legend(figure, 1 if uncut else 2)
    return figure


def _learning(records: list[Record], kinds: dict[str, str], unit: str) -> Figure:
    figure, axes = _axes("epoch", unit)
    factor = 100 if "per cent" in unit else 1
    for (kind, name), (line, mark, grey) in zip(kinds.items(), itertools.cycle(_LINES), strict=False):
        known = [record for record in records if record[kind] is not None]
        epochs = [record["epoch"] for record in known]
        mean, low, high = (
            factor * np.array([record[key] for record in known]) for key in (kind, f"{kind}_low", f"{kind}_high")
        )
        axes.fill_between(epochs, low, high, color=grey, alpha=0.12, linewidth=0)
        every = max(1, len(known) // 8)
        axes.plot(epochs, mean, linestyle=line, marker=mark, markevery=every, color=grey, markersize=4, label=name)
    _legend(figure)
    return figure
