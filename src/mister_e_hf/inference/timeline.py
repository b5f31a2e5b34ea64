"""
Plot of a dialogue: the emotion or scores of each turn over time, and below them the weights of the model's parts, such
as heads or capsules, if it has any.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import InputError, MissingLibraryError, short
from ..base.files import check_output
from ..base.part_weights import ANSWERED_WEIGHTS
from ..base.plain_text import display_width, for_plot
from ..base.whole_files import write_atomically
from .predicted_turns import check_alike, check_turn, read_predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Okabe and Ito's colours, which colour-blind people can distinguish; then the same with hatches.
_COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"]
_HATCHES = ["", "///", "...", "xxx"]
# The colour that people expect of an emotion, unless another of the dialogue's emotions has taken it.
_EXPECTED = {
    "#D55E00": "anger angry ang frustration frustrated fru mad 愤怒 生气",
    "#999999": "neutral neu none 中性 平静",
    "#F0E442": "joy happy happiness hap joyful positive 高兴 开心 快乐 积极",
    "#0072B2": "sadness sad negative depressed 悲伤 伤心 消极",
    "#009E73": "disgust disgusted dis 厌恶",
    "#CC79A7": "fear fearful fea scared anxious 恐惧 害怕",
    "#E69F00": "excited excitement exc",
    "#56B4E9": "surprise surprised sur calm peaceful 惊讶 惊奇",
}
_LIGHTEST, _DARKEST = 0.85, 0.25  # greys of a model's parts in their order
_INCHES, _DPI = 11.0, 150
_MAIN_INCHES, _TARGET_INCHES, _FRAME_INCHES = 2.7, 1.4, 0.8  # heights of panels, and around them
_WEIGHTS_INCHES, _NAME_INCHES = 0.9, 0.19  # least height of a panel of weights, and that of a name beside it
_GREYS = 4  # largest number of parts that greys alone tell apart
_OUTLINED = 200  # largest number of turns whose bars have an outline
_CHARACTER, _LINE = 0.085, 0.13  # width and height of a letter in inches
_LETTERS, _NAMES = 30, 40  # longest label, and largest number of labels in the legend


def timeline_figure(turns: Sequence[Mapping[str, Any]], first: int = 0) -> "Figure":
    r"""
    Plot one dialogue.

    Args:
        turns: the pipeline's result for a dialogue, with `start` and `end` in seconds if known. If every turn has
            them, the axis is time, else the number of the turn.
        first: number of the first turn.

    Returns:
        a `matplotlib.figure.Figure`. Of emotions, the height of a bar is the probability, and labels are shown where
        they fit. Of scores, each target has a line on an axis of its own units.

    Raises:
        ImportError: if matplotlib is not installed.
        InputError: without turns, or naming the turn and field that are not the pipeline's.
    """
    try:
        from matplotlib.text import Text
        from matplotlib.ticker import MaxNLocator

        from ..base.fonts import PlotFigure
    except ImportError:
        raise MissingLibraryError("A plot needs matplotlib: pip install matplotlib") from None
    if not turns:
        raise InputError("No turns to plot")
    for number, turn in enumerate(turns, first):
        check_turn(turn, f"Turn {number}")
    check_alike(turns, lambda number: f"Turn {number + first}")
    timed = all(turn.get("start") is not None and turn.get("end") is not None for turn in turns)
    numbers = [turn.get("turn", number) for number, turn in enumerate(turns, first)]
    starts = [turn["start"] if timed else number - 0.5 for number, turn in zip(numbers, turns, strict=True)]
    widths = [turn["end"] - turn["start"] if timed else 1.0 for turn in turns]
    weights = [kind for kind in ANSWERED_WEIGHTS if turns[0].get(kind.answer)]
    targets = list(turns[0]["scores"]) if turns[0].get("task") == "regression" else []
    main = _MAIN_INCHES if weights else _MAIN_INCHES + _WEIGHTS_INCHES
    heights = [_TARGET_INCHES] * len(targets) if len(targets) > 1 else [main]
    heights += [max(_WEIGHTS_INCHES, _NAME_INCHES * len(turns[0][kind.answer])) for kind in weights]
    figure = PlotFigure(figsize=(_INCHES, sum(heights) + _FRAME_INCHES), dpi=_DPI, layout="constrained")
    panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    outline = "white" if len(turns) <= _OUTLINED else "none"
    for axes, target in zip(panels, targets, strict=False):
        _plot_scores(axes, target, [turn["scores"][target] for turn in turns], starts, widths)
    if not targets:
        _plot_emotions(figure, panels[0], turns, starts, widths, outline)
    panels[-1].set_xlabel("time, seconds" if timed else "turn")
    if not timed:
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes, kind in zip(panels[len(heights) - len(weights) :], weights, strict=True):
        by_part = {part: [turn[kind.answer][part] for turn in turns] for part in turns[0][kind.answer]}
        _plot_weights(axes, kind.title, by_part, starts, widths, outline)
    for text in figure.findobj(Text):
        text.set_usetex(False)  # whatever matplotlib's settings are
    return figure


def _plot_emotions(
    figure: "Figure",
    axes: "Axes",
    turns: Sequence[Mapping[str, Any]],
    starts: list[float],
    widths: list[float],
    outline: str,
):
    """Plot the probability of each turn's emotion as a bar."""
    from matplotlib.patches import Patch

    styles = _styles({label for turn in turns for label in (*turn["scores"], turn["label"])})
    highest, span = (1.05, max(start + width for start, width in zip(starts, widths, strict=True)) - min(starts))
    for start, width, turn in zip(starts, widths, turns, strict=True):
        style, label = styles[turn["label"]], for_plot(turn["label"], _LETTERS)
        axes.bar(start, turn["score"], width, align="edge", edgecolor=outline, linewidth=0.5, gid="turn", **style)
        room = 0.8 * _INCHES * width / span
        upright = display_width(label) * _CHARACTER > room
        if room > _LINE:
            axes.text(
                start + width / 2,
                turn["score"] + 0.02,
                label,
                ha="center",
                va="bottom",
                rotation=90 * upright,
                fontsize=8,
            )
            highest = max(highest, turn["score"] + (0.06 * display_width(label) if upright else 0.1))
    axes.set_ylim(0, highest)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.margins(x=0.01)
    axes.set_ylabel("probability")
    shown = sorted({turn["label"] for turn in turns})
    names = [for_plot(label, _LETTERS) for label in shown[:_NAMES]]
    patches = [Patch(edgecolor="white", **styles[label]) for label in shown[:_NAMES]]
    if len(shown) > _NAMES:
        names.append(f"and {len(shown) - _NAMES} more")
        patches.append(Patch(facecolor="none"))
    legend = figure.legend(
        patches, ["-"] * len(names), loc="outside upper center", ncols=min(len(names), 8), frameon=False
    )
    _name(legend, names)


def _plot_scores(axes: "Axes", target: str, values: list[float], starts: list[float], widths: list[float]):
    """Plot the predicted score of each turn: a line through the turns' centres, and a bar as long as each turn."""
    colour = _COLOURS[4]
    turns = sorted(zip(starts, widths, values, strict=True))
    centres = [start + width / 2 for start, width, _ in turns]
    axes.plot(centres, [value for *_, value in turns], color=colour, linewidth=1, alpha=0.6, gid="scores")
    ends = [start + width for start, width, _ in turns]
    axes.hlines([value for *_, value in turns], [start for start, *_ in turns], ends, color=colour, linewidth=3)
    # From zero, which is where a score changes its sign: a narrow range would look like a large change.
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
    axes.margins(x=0.01, y=0.1)
    axes.set_ylabel(for_plot(target, _LETTERS))


def _plot_weights(
    axes: "Axes",
    title: str,
    weights: Mapping[str, list[float]],
    starts: list[float],
    widths: list[float],
    outline: str,
):
    """Plot the weights of each part at each turn, stacked."""
    from matplotlib.patches import Patch

    step = (_LIGHTEST - _DARKEST) / max(1, len(weights) - 1)
    styles: list[dict[str, Any]] = [{"facecolor": f"{_LIGHTEST - step * number:g}"} for number in range(len(weights))]
    if len(weights) > _GREYS:
        styles = [style | {"hatch": _HATCHES[number % len(_HATCHES)]} for number, style in enumerate(styles)]
    below = [0.0] * len(starts)
    for style, heights in zip(styles, weights.values(), strict=True):
        axes.bar(starts, heights, widths, bottom=below, align="edge", edgecolor=outline, linewidth=0.5, **style)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_ylim(0, 1)
    axes.set_ylabel(title.replace(" ", "\n"))  # the panels are low, and a title in one line overlaps the next
    patches = [Patch(edgecolor="white", **style) for style in reversed(styles)]  # from top to bottom, as the bars
    legend = axes.legend(patches, ["-"] * len(patches), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _name(legend, [for_plot(part, _LETTERS) for part in reversed(list(weights))])


def plot_lines(path: str | Path, out: str | Path | None = None, dialogue: str | None = None) -> tuple[Path, str, int]:
    r"""
    Plot one dialogue of a file that `mister-e predict` writes, or of the `predictions.parquet` of a run.

    Args:
        path: the file; its suffix is its format.
        out: the plot; its suffix (png, svg, pdf) is its format. By default the name of the file with `.png`.
        dialogue: the dialogue to plot; by default the first.

    Returns:
        the plot's path, the dialogue's name, and the number of dialogues in the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: naming line and field of a wrong line; if the file does not have the dialogue, or the plot cannot
            be written.
    """
    path = Path(path)
    out = path.with_suffix(".png") if out is None else Path(out)
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"'{out}' must end in .png, .svg or .pdf")
    dialogues = read_predictions(path)
    check_output(out, [path])
    name = next(iter(dialogues)) if dialogue is None else dialogue
    if name not in dialogues:
        raise InputError(f"'{path}' has no dialogue '{name}'; it has {short(', '.join(list(dialogues)[:10]))}")
    figure = timeline_figure(dialogues[name])
    write_atomically(out, lambda partial: figure.savefig(partial, format=out.suffix[1:].lower()))
    return out, name, len(dialogues)


def _styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and hatch for each label, independent of their order."""
    looks = [(colour, hatch) for hatch in _HATCHES for colour in _COLOURS]
    expected = {name: colour for colour, names in _EXPECTED.items() for name in names.split()}
    labels = sorted(labels)
    taken: dict[str, tuple[str, str]] = {}
    for label in labels:
        colour = expected.get(label.strip().lower())
        if colour is not None and (colour, "") not in taken.values():
            taken[label] = colour, ""
    free = [look for look in looks if look not in taken.values()]
    for number, label in enumerate(label for label in labels if label not in taken):
        taken[label] = free[number % len(free)]
    return {label: {"facecolor": colour, "hatch": hatch} for label, (colour, hatch) in taken.items()}


def _name(legend: "Legend", names: list[str]):
    """Name the entries of a legend. matplotlib itself leaves out names that begin with an underscore."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
