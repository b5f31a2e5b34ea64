"""Read and check the files of a study one by one; errors name the file that is damaged or was edited."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..base.errors import InputError, reading, short
from ..base.files import file_digest
from ..base.yaml_files import read_yaml
from ..evaluation.metrics import IGNORE_INDEX, scores_from_confusion

Curves = dict[tuple[str, float], np.ndarray]  # by curve and level, class indices (D, N)

_TURN_COLUMNS = ("split", "dialogue_id", "utterance_id", "label", "prediction", "probabilities")
_OF_HEAD = "_probabilities"
_TOLERANCE = 1e-4  # for probabilities in single precision


def read_settings(path: Path) -> dict[str, Any]:
    """Read and check `study.yaml`."""
    if not path.is_file():
        raise FileNotFoundError(f"'{path.parent}' is not a study: it has no study.yaml")
    settings = _mapping(read_yaml(path), f"'{path}'")
    if missing := {"recipe", "seeds", "folds", "variants"} - set(settings):
        raise InputError(f"'{path}' lacks {', '.join(sorted(missing))}")
    corpus = _mapping(_mapping(settings["recipe"], f"'{path}': recipe").get("corpus"), f"'{path}': recipe.corpus")
    labels = corpus.get("labels")
    if not labels:
        raise InputError(f"'{path}' lacks recipe.corpus.labels, the names of the classes")
    if not _all_texts(labels) or len(set(labels)) != len(labels):
        raise InputError(f"'{path}': recipe.corpus.labels must be different names, got {short(labels)}")
    check_seed_list(settings["seeds"], path)
    if not _is_count(settings["folds"]) or settings["folds"] < 2:
        raise InputError(f"'{path}': folds must be a whole number from 2, got {short(settings['folds'])}")
    for name, about in _mapping(settings["variants"], f"'{path}': variants").items():
        if not isinstance(name, str) or not name or Path(name).name != name or name.startswith("."):
            raise InputError(f"'{path}': variants must be named as folders of the study, got {short(repr(name))}")
        about = _mapping(about, f"'{path}': variants.{name}")
        if not _all_texts([about.get("kind"), about.get("description")]):
            raise InputError(f"'{path}': variants.{name} must have a kind and a description, got {short(about)}")
        _mapping(about.get("recipe"), f"'{path}': variants.{name}.recipe")
    for name in ("vectors", "data_fingerprints"):
        _mapping(settings.get(name) or {}, f"'{path}': {name}")
    return settings


def check_seed_list(seeds: Any, path: Path):
    """Raise an InputError unless the seeds that a file of a study lists are different whole numbers."""
    whole = isinstance(seeds, list) and seeds and all(map(_is_count, seeds)) and len(set(seeds)) == len(seeds)
    if not whole:
        raise InputError(f"'{path}': seeds must be different whole numbers from 0, got {short(seeds)}")


def read_freeze(path: Path) -> dict[str, Any]:
    """Read `frozen.yaml`: `date`, `seeds` and `variants`."""
    frozen = _mapping(read_yaml(path), f"'{path}'")
    if missing := {"date", "seeds", "variants"} - set(frozen):
        raise InputError(f"'{path}' lacks {', '.join(sorted(missing))}; restore the file, or choose another --out")
    check_seed_list(frozen["seeds"], path)
    return frozen


def read_frozen(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read `frozen.yaml`, whose recipes must equal those of the study; None without such a file."""
    if not path.is_file():
        return None
    frozen = _mapping(read_yaml(path), f"'{path}'")
    for name, recipe in _mapping(frozen.get("variants"), f"'{path}': variants").items():
        if name not in settings["variants"]:
            raise InputError(
                f"'{path}': '{short(name)}' is not a variant of study.yaml; one of the two files was edited"
            )
        if fields := list(differences(settings["variants"][name]["recipe"], recipe)):
            raise InputError(
                f"'{path}': the recipe of '{name}' differs from study.yaml in {_first_four(fields)}; one of the two "
                "files was edited"
            )
    return frozen


def read_run_results(path: Path) -> dict[str, Any]:
    """Read and check `results.json` of a run."""
    with reading(path, "a JSON file"):
        results = json.loads(path.read_text(encoding="utf-8"))
    results = _mapping(results, f"'{path}'")
    temperature = _mapping(results.get("calibration") or {}, f"'{path}': calibration").get("temperature", 1.0)
    if not _is_number(temperature) or temperature <= 0:
        raise InputError(f"'{path}': calibration.temperature must be a positive number, got {short(temperature)}")
    history = results.get("history", [])
    if not isinstance(history, list) or not all(
        isinstance(entry, dict) and all(map(_is_number, entry.values())) for entry in history
    ):
        raise InputError(f"'{path}': history must hold numbers by name for each epoch, got {short(history)}")
    for name in ("parameters", "training_seconds", "peak_memory_bytes", "epochs", "best_epoch"):
        if results.get(name) is not None and not _is_number(results[name]):
            raise InputError(f"'{path}': {name} must be a number, got {short(results[name])}")
    _mapping(results.get("versions", {}), f"'{path}': versions")
    return results


def check_digests(results: Mapping[str, Any], folder: Path):
    """
    Raise an InputError if a file beside `results.json` is not the one that the run left. Runs of older versions did
    not record the hashes.
    """
    for name, digest in _mapping(results.get("digests", {}), f"'{folder / 'results.json'}': digests").items():
        if Path(name).name != name or not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise InputError(f"'{folder / name}' is not the file that the run left: it was edited, swapped or copied")


def read_predictions(path: Path, class_names: list[str], split: str | None) -> dict[str, np.ndarray]:
    """Read the columns of `predictions.parquet`, of one split if given."""
    table = _read_table(path, _TURN_COLUMNS)
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    index = {name: number for number, name in enumerate(class_names)} | {None: IGNORE_INDEX}
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in ("dialogue_id", "utterance_id")}
    for column in ("label", "prediction"):
        names = table[column].to_pylist()
        if unknown := set(names) - set(index if column == "label" else class_names):
            raise InputError(
                f"'{path}': {column} {short(sorted(map(str, unknown)))} is not one of the classes {short(class_names)}"
            )
        columns[column] = np.array([index[name] for name in names], dtype=np.int64)
    heads = heads_of(table.column_names)
    lists = {"probabilities": len(class_names), **{f"{name}_probabilities": len(class_names) for name in heads}}
    lists["gate_weights"] = len(heads)
    for column, width in lists.items():
        if column in table.column_names:
            with reading(path, f"a table with numbers in '{column}'"):
                values = np.array(table[column].to_pylist(), dtype=np.float32)
            if values.shape != (len(table), width):
                raise InputError(
                    f"'{path}': {column} must hold {width} numbers per turn, got the shape {values.shape}"
                )
            _check_shares(values, f"'{path}': {column}")
            columns[column] = values
    _check_likeliest(columns, f"'{path}'")
    if "score" in table.column_names:
        with reading(path, "a table with numbers in 'score'"):
            columns["score"] = np.array(table["score"].to_pylist(), dtype=np.float64)  # null becomes NaN
    return columns


def heads_of(columns: Iterable[str]) -> list[str]:
    """Names of the heads beside the main one, in the order of the columns, which is that of the gate's weights."""
    return [name.removesuffix(_OF_HEAD) for name in columns if name.endswith(_OF_HEAD)]


def weighted_f1(columns: Mapping[str, np.ndarray], classes: int) -> float:
    """Weighted F1 of the labelled turns."""
    scored = columns["label"] != IGNORE_INDEX
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (columns["label"][scored], columns["prediction"][scored]), 1)
    return float(scores_from_confusion(confusion)["weighted_f1"])


def read_robustness(path: Path, turns: int, classes: int) -> Curves | None:
    """Read `robustness.parquet`: class indices (D, N) by curve and level; None without such a file."""
    if not path.is_file():
        return None
    found: dict[tuple[str, float], list] = {}
    with reading(path, "a table of predictions"):
        rows = sorted(
            _read_table(path, ("curve", "level", "draw", "predictions")).to_pylist(), key=lambda row: row["draw"]
        )
        for row in rows:
            curve, level, predictions = row["curve"], row["level"], row["predictions"]
            if not isinstance(curve, str) or not _is_number(level):
                raise InputError(f"'{path}': expected a curve's name and a number, got {short((curve, level))}")
            if len(predictions) != turns:
                raise InputError(
                    f"'{path}': {len(predictions)} predictions of '{curve}' at {level}, but predictions.parquet "
                    f"beside it has {turns} turns"
                )
            if not all(isinstance(one, int) and -1 <= one < classes for one in predictions):
                raise InputError(
                    f"'{path}': predictions of '{curve}' at {level} must be class indices from -1 to {classes - 1}"
                )
            found.setdefault((curve, level), []).append(predictions)
    return {key: np.array(rows, dtype=np.int64) for key, rows in sorted(found.items())}


def differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Yield the names of the fields in which two nested mappings differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            below = f"{name}.{key}" if name else str(key)
            if key not in one or key not in other:
                yield below
            else:
                yield from differences(one[key], other[key], below)
    elif one != other:
        yield name


def _first_four(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


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


def _check_likeliest(columns: Mapping[str, np.ndarray], what: str):
    """Raise an InputError unless each prediction is the class of the highest probability (either one in a tie)."""
    probabilities, prediction = columns["probabilities"], columns["prediction"]
    behind = probabilities.max(-1) - np.take_along_axis(probabilities, prediction[:, None], -1)[:, 0]
    if (wrong := behind > _TOLERANCE).any():
        turn = int(np.argmax(wrong))
        raise InputError(
            f"{what}: the prediction of utterance '{columns['utterance_id'][turn]}' of dialogue "
            f"'{columns['dialogue_id'][turn]}' is not the class of the highest probability ({int(wrong.sum())} such "
            "turns); the file was edited"
        )


def _mapping(value: Any, what: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{what} must hold names and values, got {short(repr(value))}")
    return value


def _all_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and value for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
