"""A picture of a dialogue's emotions: a colour, a hatch and a word per turn along time, the gate's weights below."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError

# Okabe and Ito's colours, which colour-blind people can tell apart; then the same with hatches.
_COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"]
_HATCHES = ["", "///", "...", "xxx"]
_GREYS = {"speech": "0.85", "text": "0.55", "fusion": "0.25"}
_INCHES, _DPI = 11.0, 150
_CHARACTER, _LINE = 0.085, 0.13  # inches that a letter of the size used is wide, and high


def timeline_figure(turns: Sequence[Mapping[str, Any]], first: int = 0):
    r"""
    Draw one dialogue.

    Args:
        turns: what the pipeline gives for a dialogue, where known with `start` and `end` in seconds. Where every turn has them the axis is time, else the
            number of the turn.
        first: number of the first turn.

    Returns:
        a `matplotlib.figure.Figure`. A bar is as high as its emotion is probable; words stand where they fit.

    Raises:
        ImportError: without matplotlib, with what to install.
        ValueError: if there is no turn, or one lacks label, score, scores or gate.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise ImportError("A picture needs matplotlib: pip install 'mister-e-hf[plot]'") from None
    _check(turns)
    timed = all(turn.get("start") is not None and turn.get("end") is not None for turn in turns)
    starts = [turn["start"] if timed else number - 0.5 for number, turn in enumerate(turns, first)]
    widths = [turn["end"] - turn["start"] if timed else 1.0 for turn in turns]
    labels, experts = (
        sorted({label for turn in turns for label in (*turn["scores"], turn["label"])}),
        list(turns[0]["gate"]),
    )
    figure = Figure(figsize=(_INCHES, 4.4), dpi=_DPI, layout="constrained")
    emotions, gate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])

    outline = "white" if len(turns) <= 200 else "none"
    highest, span = (1.05, max(start + width for start, width in zip(starts, widths, strict=True)) - min(starts))
    for start, width, turn in zip(starts, widths, turns, strict=True):
        style = _style(labels.index(turn["label"]))
        emotions.bar(start, turn["score"], width, align="edge", edgecolor=outline, linewidth=0.5, gid="turn", **style)
        room = 0.8 * _INCHES * width / span
        upright = len(turn["label"]) * _CHARACTER > room
        if room > _LINE:
            emotions.text(
                start + width / 2,
                turn["score"] + 0.02,
                turn["label"],
                ha="center",
                va="bottom",
                rotation=90 * upright,
                fontsize=8,
            )
            highest = max(highest, turn["score"] + (0.06 * len(turn["label"]) if upright else 0.1))
    emotions.set_ylim(0, highest)
    emotions.set_yticks([0, 0.25, 0.5, 0.75, 1])
    emotions.margins(x=0.01)
    emotions.set_ylabel("probability")
    shown = [label for label in labels if any(turn["label"] == label for turn in turns)]
    patches = [Patch(label=label, edgecolor="white", **_style(labels.index(label))) for label in shown]
    figure.legend(handles=patches, loc="outside upper center", ncols=min(len(shown), 8), frameon=False)

    below = [0.0] * len(turns)
    for expert in experts:
        weights = [turn["gate"][expert] for turn in turns]
        grey = _GREYS.get(expert, "0.7")
        gate.bar(
            starts,
            weights,
            widths,
            bottom=below,
            align="edge",
            color=grey,
            edgecolor=outline,
            linewidth=0.5,
            label=expert,
        )
        below = [low + weight for low, weight in zip(below, weights, strict=True)]
    gate.set_ylim(0, 1)
    gate.set_ylabel("gate weight")
    gate.set_xlabel("time, seconds" if timed else "turn")
    gate.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def plot_lines(path: str | Path, out: str | Path | None = None, dialogue: str | None = None) -> tuple[Path, str, int]:
    r"""
    Draw one dialogue of the JSON lines that `mister-e predict` writes.

    Args:
        path: the lines.
        out: the picture; its suffix (png, svg, pdf) is its format. By default the lines' name with `.png`.
        dialogue: which one; by default the first.

    Returns:
        the picture's path, the dialogue's name, and how many dialogues the file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line, if it is none of such lines; if there is no such dialogue; for another suffix.
    """
    path = Path(path)
    out = path.with_suffix(".png") if out is None else Path(out)
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"'{out}' must end in .png, .svg or .pdf, which says its format")
    dialogues = _read(path)
    name = next(iter(dialogues)) if dialogue is None else dialogue
    if name not in dialogues:
        raise InputError(f"'{path}' has no dialogue '{name}'; it has {', '.join(list(dialogues)[:10])}")
    figure = timeline_figure(dialogues[name])
    figure.savefig(out)
    return out, name, len(dialogues)


def _style(number: int) -> dict[str, Any]:
    return {
        "facecolor": _COLOURS[number % len(_COLOURS)],
        "hatch": _HATCHES[number // len(_COLOURS) % len(_HATCHES)],
    }


def _check(turns: Sequence[Mapping[str, Any]]):
    if not turns:
        raise InputError("There is no turn to draw")
    for number, turn in enumerate(turns):
        if missing := {"label", "score", "scores", "gate"} - set(turn):
            raise InputError(
                f"Turn {number} lacks {', '.join(sorted(missing))}; give what the pipeline gave for the dialogue"
            )


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"There are no lines at '{path}'; write them by mister-e predict --out")
    dialogues: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            turn = json.loads(line)
            _check([turn])
            dialogues.setdefault(str(turn["dialogue"]), []).append(turn)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"'{path}', line {number} is no line of mister-e predict: {error}") from error
    if not dialogues:
        raise InputError(f"'{path}' is empty")
    return dialogues
