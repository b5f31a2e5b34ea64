"""Read and check the turns that `mister-e predict` writes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import InputError, short
from ..base.part_weights import ANSWERED_WEIGHTS
from ..media.text_files import read_text, split_lines
from .predicted_tables import TABLES, table_turns

_NEEDED = ("label", "score", "scores")
_TASKS = ("classification", "regression")
_LATEST = 1e10  # seconds; times in seconds since 1970 are smaller
_LARGEST = 1e30  # predicted score, in size
_ROUNDING = 1e-6
_PANELS = 20  # parts of a model, or targets
_HOW = "expected the lines of mister-e predict --out FILE.jsonl, or a table (.csv, .tsv, .parquet)"


def read_predictions(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    r"""
    Read the predicted turns of a file by dialogue, in order: JSON lines, or a table by its ending (`.csv`, `.tsv`,
    `.parquet`), the `predictions.parquet` of a run included.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: naming line and field, if `mister-e predict` could not have written it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' not found; write it with mister-e predict --out")
    dialogues: dict[str, dict[int, dict[str, Any]]] = {}
    places: dict[tuple[str, int], str] = {}
    for place, given in table_turns(path) if path.suffix.lower() in TABLES else _lines(path):
        where = f"'{path}', {place}"
        name, number = _place(given, where)
        check_turn(given, where)
        if (name, number) in places:
            raise InputError(
                f"{where}: turn {number} of dialogue '{short(name, 60)}' also appears in {places[name, number]}"
            )
        places[name, number] = place
        dialogues.setdefault(name, {})[number] = given
    if not dialogues:
        raise InputError(f"'{path}' is empty")
    found = {name: [turns[number] for number in sorted(turns)] for name, turns in dialogues.items()}
    for name, turns in found.items():

        def place_of(number: int, name: str = name) -> str:
            return f"'{path}', {places[name, found[name][number]['turn']]}"

        check_alike(turns, place_of)
    return found


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of JSON lines, each with its place for messages."""
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if not line.strip():
            continue
        where = f"'{path}', line {number}"
        try:
            given = json.loads(line, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise InputError(f"{where} is not valid JSON from column {error.colno}; {_HOW}") from error
        except RecursionError as error:
            raise InputError(f"{where} is nested too deeply; {_HOW}") from error
        except ValueError as error:  # a field appears twice, or a number has too many digits
            raise InputError(f"{where}: {short(error, 100)}; {_HOW}") from error
        yield f"line {number}", given


def check_turn(turn: Any, where: str):
    r"""
    Raises:
        InputError: naming `where` and the field, if it is not the pipeline's result for a turn.
    """
    if not isinstance(turn, Mapping):
        raise InputError(f"{where} must be the pipeline's result for a turn, got {short(repr(turn), 60)}")
    if missing := sorted(set(_NEEDED) - set(turn)):
        raise InputError(f"{where} lacks {', '.join(missing)}, which the pipeline returns for a turn")
    label, task = turn["label"], turn.get("task", _TASKS[0])
    if task not in _TASKS:
        raise InputError(f"{where}: task must be one of {', '.join(_TASKS)}, got {short(repr(task), 60)}")
    if not isinstance(label, str) or not label.strip():
        kind = "target" if task == "regression" else "class"
        raise InputError(f"{where}: label must be the name of a {kind}, got {short(repr(label), 60)}")
    share = (0.0, 1 + _ROUNDING)
    limits = (-_LARGEST, _LARGEST) if task == "regression" else share
    _check_number(turn["score"], limits, "score", where)
    weights = [weight for weight in ANSWERED_WEIGHTS if weight.answer in turn]
    for field in ("scores", *(weight.answer for weight in weights)):
        given = turn[field]
        if not isinstance(given, Mapping) or not given or not all(isinstance(name, str) for name in given):
            raise InputError(f"{where}: {field} must hold numbers by name, got {short(repr(given), 60)}")
        for name, value in given.items():
            _check_number(value, limits if field == "scores" else share, f"{field} of {short(repr(name), 60)}", where)
    for weight in weights:
        if (count := len(turn[weight.answer])) > _PANELS:
            raise InputError(f"{where}: {weight.answer} has {count} weights; at most {_PANELS} can be plotted")
    if task == "regression" and len(turn["scores"]) > _PANELS:
        raise InputError(f"{where}: scores names {len(turn['scores'])} targets; at most {_PANELS} can be plotted")
    times = {name: turn[name] for name in ("start", "end") if turn.get(name) is not None}
    for name, value in times.items():
        _check_number(value, (0.0, _LATEST), name, where)
    if len(times) == 2 and times["start"] >= times["end"]:
        raise InputError(f"{where}: start {times['start']:g} s must be before end {times['end']:g} s")


def check_alike(turns: Sequence[Mapping[str, Any]], where: Callable[[int], str]):
    """
    Check that all turns of a dialogue have weights of the same parts of a model, and all scores of the same targets or
    none; `where` names a turn by its number.
    """

    def names_of(turn: Mapping[str, Any], field: str) -> set[str]:
        of_classes = field == "scores" and turn.get("task") != "regression"  # which `top_k` leaves out
        return set() if of_classes else set(turn.get(field, ()))

    for field in ("scores", *(kind.answer for kind in ANSWERED_WEIGHTS)):
        expected = names_of(turns[0], field)
        for number, turn in enumerate(turns):
            if (names := names_of(turn, field)) != expected:
                given, first = (short(", ".join(sorted(each)) or "nothing", 60) for each in (names, expected))
                raise InputError(f"{where(number)}: {field} names {given}, but in the dialogue's first turn {first}")


def _place(turn: Any, where: str) -> tuple[str, int]:
    if not isinstance(turn, Mapping):
        raise InputError(f"{where} must be an object with the result for a turn, got {short(repr(turn), 60)}")
    if missing := sorted({"dialogue", "turn", *_NEEDED} - set(turn)):
        raise InputError(f"{where} lacks {', '.join(missing)}, which mister-e predict writes")
    name, place = turn["dialogue"], turn["turn"]
    if not isinstance(name, str | int):
        raise InputError(f"{where}: dialogue must be a name, got {short(repr(name), 60)}")
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < 1e9:
        raise InputError(f"{where}: turn must be an integer of at least 0, got {short(repr(place), 60)}")
    return str(name), place


def _check_number(value: Any, limits: tuple[float, float], field: str, where: str):
    lowest, largest = limits
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= largest:
        raise InputError(
            f"{where}: {field} must be a number from {lowest:g} to {largest:g}, got {short(repr(value), 60)}"
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the field {short(repr(repeated), 60)} appears twice")
    return fields
