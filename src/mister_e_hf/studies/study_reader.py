"""A study's folder read and checked: runs that are those of the study, turns and labels that are the same in all of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import InputError, short
from ..base.yaml_files import read_yaml
from .study import FULL, LAST_EPOCH, ROBUST, Stage, Study, System, derived_systems
from .study_files import (
    check_digests,
    differences,
    heads_of,
    read_frozen,
    read_predictions,
    read_robustness,
    read_run_results,
    read_settings,
    weighted_f1,
)


def read_study(folder: str | Path) -> Study:
    r"""
    Read a study's folder. Runs that failed or are not finished become lines in their stage's `problems`.

    Raises:
        FileNotFoundError: if there is no `study.yaml`.
        ValueError: naming the file, if it is damaged, was edited, or is of another run than its folder says; if its turns or their labels
            are not those of the other runs; if no run is finished.
    """
    folder = Path(folder)
    settings = read_settings(folder / "study.yaml")
    study = Study(folder, settings, read_frozen(folder / "frozen.yaml", settings))
    for name in ("development", "final"):
        if (folder / name).is_dir() and (stage := _read_stage(study, name)):
            study.stages[name] = stage
    if not study.stages:
        raise InputError(f"No seed in '{folder}' is finished, so there is nothing to report yet")
    return study


def _read_stage(study: Study, name: str) -> Stage | None:
    """None where no seed of any system is finished."""
    reader, systems = _StageReader(study, name), {}
    for variant, about in study.settings["variants"].items():
        if name == "development" and about["kind"] == "split":
            continue  # another validation split is no other model of the same folds
        system = reader.system(variant, about)
        if system is not None:
            systems[variant] = system
            if variant == FULL:
                systems |= derived_systems(system)
    if reader.turns is None:
        return None
    turns = reader.turns
    return Stage(name, turns["dialogue_id"], turns["label"], turns["score"], systems)


class _StageReader:
    """Reads one stage's runs, all in the order of the turns of the first one."""

    def __init__(self, study: Study, stage: str):
        self.root, self.stage, self.problems = study.folder, stage, study.problems
        self.class_names = study.class_names
        self.seeds = study.settings["seeds"]
        self.folds = range(study.settings["folds"]) if stage == "development" else None
        # What is frozen is what runs on test were made of; the two are the same, as reading them has made sure.
        self.recipes = {name: about["recipe"] for name, about in study.settings["variants"].items()}
        self.data = study.settings.get("data_fingerprints") or {}
        self.turns: dict[str, np.ndarray] | None = None
        self._position: dict[tuple[str, str], int] = {}

    def system(self, variant: str, about: Mapping[str, Any]) -> System | None:
        if not (self.root / self.stage / variant).is_dir():
            self.problems.append(f"{self.stage}/{variant}: not run")
            return None
        finished = [seed for seed in self.seeds if self._is_finished(variant, seed)]
        if not finished:
            return None
        runs = [self._seed(variant, seed) for seed in finished]
        columns = [run for run, *_ in runs]

        def stacked(column: str) -> np.ndarray | None:
            return np.stack([run[column] for run in columns]) if _in_all(column, columns) else None

        self._refuse_copies(variant, finished, [run["probabilities"] for run in columns])
        heads = {name: stacked(f"{name}_probabilities") for name in heads_of(columns[0])}
        return System(
            variant,
            about["kind"],
            about["description"],
            finished,
            stacked("prediction"),
            stacked("probabilities"),
            {name: values for name, values in heads.items() if values is not None},
            stacked("gate_weights") if len(heads) > 1 else None,
            stacked("temperature"),
            [results for _, results, _ in runs],
            *self._robustness(variant, finished, [curves for *_, curves in runs]),
        )

    def _parts(self, seed_folder: Path) -> list[Path]:
        return [seed_folder] if self.folds is None else [seed_folder / f"fold-{fold}" for fold in self.folds]

    def _is_finished(self, variant: str, seed: int) -> bool:
        """Notes down what is not."""
        seed_folder, found = self.root / self.stage / variant / f"seed-{seed}", []
        for part in self._parts(seed_folder):
            if (part / "results.json").is_file() and (part / "predictions.parquet").is_file():
                continue
            if (part / "error.txt").is_file():
                lines = (part / "error.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                found.append((part, f"failed: {lines[-1] if lines else 'no reason given'}"))
            else:
                found.append((part, "not finished" if part.is_dir() else "not run"))
        if found and all(what == "not run" for _, what in found) and len(found) == len(self._parts(seed_folder)):
            found = [(seed_folder, "not run")]
        self.problems += [f"{part.relative_to(self.root)}: {what}" for part, what in found]
        return not found

    def _refuse_copies(self, variant: str, seeds: list[int], probabilities: list[np.ndarray]):
        """Two seeds never give the same probabilities to the last bit."""
        for number, seed in enumerate(seeds):
            for other in range(number):
                if np.array_equal(probabilities[number], probabilities[other]):
                    folder = self.root / self.stage / variant
                    raise InputError(
                        f"'{folder / f'seed-{seed}'}' holds the same probabilities as seed-{seeds[other]}: one is a copy of the other"
                    )

    def _check_run(self, part: Path, variant: str, seed: int, fold: int | None, results: Mapping[str, Any]):
        """Whether the run is the one that its folder says."""
        if results.get("seed", seed) != seed:
            raise InputError(self._of_another(part / "results.json", "seed", results["seed"], seed))
        path = part / "run.yaml"
        if not path.is_file():
            self.problems.append(f"{part.relative_to(self.root)}: no run.yaml, so what it is a run of is not known")
            return
        record = read_yaml(path)
        if not isinstance(record, dict):
            raise InputError(f"'{path}' must hold names and values, got {short(repr(record))}")
        expected = {"seed": seed} if fold is None else {"seed": seed, "fold": [fold, len(self.folds)]}
        for name, value in expected.items():
            if record.get(name) != value:
                raise InputError(self._of_another(path, name, record.get(name), value))
        own_fields = LAST_EPOCH if fold is not None else {}
        found = differences(self.recipes[variant], record.get("recipe"))
        if other := [name for name in found if name not in own_fields]:
            raise InputError(
                f"'{path}' is of another recipe than the study's '{variant}' (other values of {', '.join(other[:4])}): the run was edited, "
                "swapped or copied"
            )
        fingerprints = record.get("data_fingerprints") or {}
        if other := [split for split, value in self.data.items() if fingerprints.get(split, value) != value]:
            raise InputError(f"'{path}' is of other data than the study's: the fingerprint of {other[0]} differs")

    @staticmethod
    def _of_another(path: Path, what: str, found: Any, expected: Any) -> str:
        return f"'{path}' is of {what} {short(found)}, but lies in the folder of {what} {expected}: the run was swapped or copied"

    def _check_score(self, path: Path, table: Mapping[str, np.ndarray], results: Mapping[str, Any]):
        stored = results.get("test" if self.folds is None else "held out")
        stored = stored.get("mixture") if isinstance(stored, dict) else None
        if not isinstance(stored, dict) or "weighted_f1" not in stored:
            return
        found = weighted_f1(table, len(self.class_names))
        if not isinstance(stored["weighted_f1"], float | int) or abs(stored["weighted_f1"] - found) > 1e-6:
            raise InputError(
                f"'{path}' says a weighted F1 of {short(stored['weighted_f1'])}, but the predictions beside it have {found:.4f}: one of the "
                "two files was edited, swapped or copied"
            )

    def _seed(self, variant: str, seed: int) -> tuple[dict[str, np.ndarray], list[dict], dict | None]:
        """One seed's columns and curves in the order of the stage's turns, and its results by fold."""
        seed_folder = self.root / self.stage / variant / f"seed-{seed}"
        parts = self._parts(seed_folder)
        split = "test" if self.folds is None else None  # a run's own validation turns are in the table, too
        results = [read_run_results(part / "results.json") for part in parts]
        for fold, (part, result) in enumerate(zip(parts, results, strict=True)):
            self._check_run(part, variant, seed, None if self.folds is None else fold, result)
        tables = [read_predictions(part / "predictions.parquet", self.class_names, split) for part in parts]
        for part, table, result in zip(parts, tables, results, strict=True):
            check_digests(result, part)
            self._check_score(part / "results.json", table, result)
            temperature = (result.get("calibration") or {}).get("temperature")
            table["temperature"] = np.full(len(table["label"]), np.nan if temperature is None else temperature)
        columns = {
            name: np.concatenate([table[name] for table in tables]) for name in tables[0] if _in_all(name, tables)
        }
        keys = list(zip(columns["dialogue_id"].tolist(), columns["utterance_id"].tolist(), strict=True))
        path = seed_folder if len(parts) > 1 else parts[0] / "predictions.parquet"
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"'{path}': utterance '{twice[1]}' of dialogue '{twice[0]}' is there more than once")
        if self.turns is None:
            self._position = {key: number for number, key in enumerate(keys)}
            self.turns = {"score": None} | columns
        order = self._order(keys, [part / "predictions.parquet" for part in parts], [len(t["label"]) for t in tables])
        columns = {name: values[order] for name, values in columns.items()}
        different = np.flatnonzero(columns["label"] != self.turns["label"])
        if len(different):
            turn = keys[order[different[0]]]
            raise InputError(
                f"'{path}': the label of utterance '{turn[1]}' of dialogue '{turn[0]}' is not that of other runs"
            )
        curves = [
            read_robustness(p / "robustness.parquet", len(t["label"]), len(self.class_names))
            for p, t in zip(parts, tables, strict=True)
        ]
        return columns, results, _joined(curves, order, seed_folder)

    def _order(self, keys: list[tuple[str, str]], paths: list[Path], lengths: list[int]) -> np.ndarray:
        """Where in this seed's turns each of the stage's stands."""
        found = {key: number for number, key in enumerate(keys)}
        for key, path in zip(keys, np.repeat(paths, lengths), strict=True):
            if key not in self._position:
                raise InputError(
                    f"'{path}': utterance '{key[1]}' of dialogue '{key[0]}' is not among the turns of other runs"
                )
        if missing := self._position.keys() - found.keys():
            dialogue, utterance = min(missing, key=self._position.get)
            where = paths[0] if len(paths) == 1 else paths[0].parents[1]
            raise InputError(
                f"'{where}' lacks {len(missing)} turns that other runs have, first utterance '{utterance}' of dialogue '{dialogue}'"
            )
        return np.array([found[key] for key in self._position])

    def _robustness(self, variant: str, seeds: list[int], curves: list[dict | None]) -> tuple[dict, list[int]]:
        """The curves of the seeds that have them, and which these are."""
        if variant not in ROBUST:
            return {}, []
        there = [number for number, found in enumerate(curves) if found is not None]
        if lacking := [str(seed) for number, seed in enumerate(seeds) if number not in there]:
            self.problems.append(f"{self.stage}/{variant}: no robustness.parquet for seed {', '.join(lacking)}")
        if not there:
            return {}, []
        shapes = [{key: len(values) for key, values in curves[number].items()} for number in there]
        if any(shape != shapes[0] for shape in shapes):
            folder = self.root / self.stage / variant
            raise InputError(
                f"'{folder}': robustness.parquet of one seed holds other curves, levels or draws than another"
            )
        return {key: np.stack([curves[number][key] for number in there]) for key in shapes[0]}, there


def _in_all(name: str, tables: list[dict]) -> bool:
    """Whether all have a column, of one width."""
    return all(name in table for table in tables) and len({table[name].shape[1:] for table in tables}) == 1


def _joined(
    folds: list[dict | None], order: np.ndarray, seed_folder: Path
) -> dict[tuple[str, float], np.ndarray] | None:
    """The folds' curves as one, in the stage's order; None where a fold has none."""
    if any(fold is None for fold in folds):
        return None
    shapes = [{key: len(values) for key, values in fold.items()} for fold in folds]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError(f"'{seed_folder}': the folds' robustness.parquet hold other curves, levels or draws")
    return {key: np.concatenate([fold[key] for fold in folds], axis=-1)[:, order] for key in folds[0]}
