"""Read and check the records of a study one by one; errors name the file that is damaged or was edited."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..base.errors import InputError, reading, short
from ..base.files import file_digest
from ..base.yaml_files import read_yaml


def read_settings(path: Path) -> dict[str, Any]:
    """Read and check `study.yaml`."""
    if (path.parent / "search.yaml").is_file() and not path.is_file():
        raise InputError(
            f"'{path.parent}' holds a search, for which no report is written: every trial and its score is in "
            f"'{path.parent / 'search.json'}'; a report is of an ablation study, `mister-e ablate`"
        )
    if not path.is_file():
        raise FileNotFoundError(f"'{path.parent}' is not a study: it has no study.yaml")
    settings = _mapping(read_yaml(path), f"'{path}'")
    if missing := {"recipe", "seeds", "folds", "variants"} - set(settings):
        raise InputError(f"'{path}' lacks {', '.join(sorted(missing))}")
    corpus = _mapping(_mapping(settings["recipe"], f"'{path}': recipe").get("corpus"), f"'{path}': recipe.corpus")
    targets = corpus.get("targets")
    field, labels = ("labels", corpus.get("labels")) if targets is None else ("targets", targets)
    if not labels:
        raise InputError(
            f"'{path}' lacks recipe.corpus.{field}, the names of the {'classes' if targets is None else 'scores'}"
        )
    labels = list(labels) if isinstance(labels, dict) else labels
    if not _all_texts(labels) or len(set(labels)) != len(labels):
        raise InputError(f"'{path}': recipe.corpus.{field} must be different names, got {short(labels)}")
    check_seed_list(settings["seeds"], path)
    if not _is_count(settings["folds"]) or settings["folds"] < 1:
        raise InputError(f"'{path}': folds must be a whole number from 1, got {short(settings['folds'])}")
    for name, about in _mapping(settings["variants"], f"'{path}': variants").items():
        if not isinstance(name, str) or not name or Path(name).name != name or name.startswith("."):
            raise InputError(f"'{path}': variants must be named as folders of the study, got {short(repr(name))}")
        about = _mapping(about, f"'{path}': variants.{name}")
        if not _all_texts([about.get("kind"), about.get("description")]):
            raise InputError(f"'{path}': variants.{name} must have a kind and a description, got {short(about)}")
        recipe = _mapping(about.get("recipe"), f"'{path}': variants.{name}.recipe")
        own = _mapping(recipe.get("corpus", corpus), f"'{path}': variants.{name}.recipe.corpus").get("targets")
        if own != targets:
            raise InputError(
                f"'{path}': variants.{name} has {_task(own)}, but the study {_task(targets)}: the variants of a study "
                "have one task"
            )
    for name in ("vectors", "data_fingerprints"):
        _mapping(settings.get(name) or {}, f"'{path}': {name}")
    check_asked(settings, path)
    return settings


def check_asked(settings: Mapping[str, Any], path: Path):
    """Raise an InputError unless the runs that a study was asked for, if recorded, are of its variants and seeds."""
    for stage, asked in _mapping(settings.get("asked") or {}, f"'{path}': asked").items():
        for variant, seeds in _mapping(asked, f"'{path}': asked.{stage}").items():
            known = variant in settings["variants"] and isinstance(seeds, list)
            if not known or any(seed not in settings["seeds"] for seed in seeds):
                raise InputError(
                    f"'{path}': asked.{stage} must hold variants with some of the seeds of the study, got "
                    f"{short(variant)}: {short(seeds)}"
                )


def asked_of(folder: Path, stage: str, settings: Mapping[str, Any]) -> dict[str, list[int]]:
    """
    The seeds that a stage of a study was asked for, by variant in the order of the study. Runs that have a folder
    count, and studies of older versions, which did not record it, were asked for everything.
    """
    recorded = settings.get("asked")
    found = {}
    for variant, about in settings["variants"].items():
        if stage == "development" and about["kind"] == "split":
            continue  # another validation split does not change what is trained on folds
        own = settings["seeds"] if recorded is None else recorded.get(stage, {}).get(variant, [])
        runs = folder / stage / variant
        if seeds := [seed for seed in settings["seeds"] if seed in own or (runs / f"seed-{seed}").is_dir()]:
            found[variant] = seeds
    return found


def _task(targets: Any) -> str:
    return "classes" if targets is None else f"the targets {short(list(targets))}"


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
    if not is_number(temperature) or temperature <= 0:
        raise InputError(f"'{path}': calibration.temperature must be a positive number, got {short(temperature)}")
    history = results.get("history", [])
    if not isinstance(history, list) or not all(
        isinstance(entry, dict) and all(map(is_number, entry.values())) for entry in history
    ):
        raise InputError(f"'{path}': history must hold numbers by name for each epoch, got {short(history)}")
    for name in ("parameters", "training_seconds", "peak_memory_bytes", "epochs", "best_epoch"):
        if results.get(name) is not None and not is_number(results[name]):
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


def _mapping(value: Any, what: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{what} must hold names and values, got {short(repr(value))}")
    return value


def _all_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and value for value in values)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
