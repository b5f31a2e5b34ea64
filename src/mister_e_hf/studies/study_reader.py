"""Read and check the folder of a study: its runs are those that it lists, all with the same turns and labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import InputError, short
from ..base.score_names import score_title
from ..base.yaml_files import read_yaml
from .prediction_files import Curves, head_column, heads_of, part_weights_of, read_predictions, read_robustness
from .study import FULL, LAST_EPOCH, Stage, Study, System, derived_systems, is_robust
from .study_files import asked_of, check_digests, differences, read_frozen, read_run_results, read_settings

_TOLERANCE = 1e-5  # of a stored score: predictions are stored in single precision


def read_study(folder: str | Path) -> Study:
    r"""
    Read the folder of a study. Runs that failed or are not finished become lines of [`Study.problems`].

    Raises:
        FileNotFoundError: if the folder has no `study.yaml`.
        InputError: if a file is damaged, was edited or belongs to another run, which the message names; if turns or
            labels differ between runs; if no run is finished.
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
    """Read a stage; None if no seed of any system is finished."""
    reader, systems = _StageReader(study, name), {}
    asked = asked_of(study.folder, name, study.settings)
    for variant, seeds in asked.items():
        system = reader.system(variant, seeds, study.settings["variants"][variant])
        if system is not None:
            systems[variant] = system
            if variant == FULL:
                systems |= derived_systems(system, study.measures.task == "regression")
    if reader.turns is None:
        return None
    turns = reader.turns
    return Stage(name, turns["dialogue_id"], turns["label"], turns.get("score"), systems, asked)


class _StageReader:
    """Reads the runs of one stage, their turns in the order of the first run."""

    def __init__(self, study: Study, stage: str):
        self.root, self.stage, self.problems = study.folder, stage, study.problems
        self.measures = study.measures
        self.folds = range(study.settings["folds"]) if stage == "development" else None
        # The frozen recipes, from which the runs on test are made, are the same: `read_frozen` has checked that.
        self.recipes = {name: about["recipe"] for name, about in study.settings["variants"].items()}
        self.data = study.settings.get("data_fingerprints") or {}
        self.turns: dict[str, np.ndarray] | None = None
        self._position: dict[tuple[str, str], int] = {}

    def system(self, variant: str, seeds: list[int], about: Mapping[str, Any]) -> System | None:
        if not (self.root / self.stage / variant).is_dir():
            self.problems.append(f"{self.stage}/{variant}: not run")
            return None
        finished = [seed for seed in seeds if self._is_finished(variant, seed)]
        if not finished:
            return None
        runs = [self._seed(variant, seed) for seed in finished]
        self._refuse_copies(variant, finished, [run.get("probabilities", run["prediction"]) for run, *_ in runs])
        columns = _in_all([run for run, *_ in runs])
        stacked = {name: np.stack(values) for name, values in columns.items()}
        heads = {name: stacked[head_column(name, self.measures)] for name in heads_of(stacked, self.measures)}
        return System(
            variant,
            about["kind"],
            about["description"],
            finished,
            stacked["prediction"],
            stacked.get("probabilities"),
            heads,
            stacked.get("gate_weights") if len(heads) > 1 else None,
            stacked["temperature"],
            [results for _, results, _ in runs],
            *self._robustness(variant, finished, [curves for *_, curves in runs]),
            part_weights_of(stacked),
        )

    def _parts(self, seed_folder: Path) -> list[Path]:
        return [seed_folder] if self.folds is None else [seed_folder / f"fold-{fold}" for fold in self.folds]

    def _is_finished(self, variant: str, seed: int) -> bool:
        """Whether all runs of a seed are finished; those that are not become problems."""
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

    def _refuse_copies(self, variant: str, seeds: list[int], outputs: list[np.ndarray]):
        """
        Raise an InputError if two seeds have equal probabilities or scores to the last bit, as only copies can have.
        """
        what = "probabilities" if self.measures.task == "classification" else "scores"
        for number, seed in enumerate(seeds):
            for other in range(number):
                if np.array_equal(outputs[number], outputs[other]):
                    folder = self.root / self.stage / variant
                    raise InputError(
                        f"'{folder / f'seed-{seed}'}' holds the same {what} as seed-{seeds[other]}: one is a "
                        "copy of the other"
                    )

    def _check_run(self, part: Path, variant: str, seed: int, fold: int | None, results: Mapping[str, Any]):
        """Raise an InputError if a run is not the one that its folder's name says."""
        if results.get("seed", seed) != seed:
            raise InputError(self._of_another(part / "results.json", "seed", results["seed"], seed))
        path = part / "run.yaml"
        if not path.is_file():
            self.problems.append(
                f"{part.relative_to(self.root)}: no run.yaml, so its recipe and seed cannot be checked"
            )
            return
        record = read_yaml(path)
        if not isinstance(record, dict):
            raise InputError(f"'{path}' must hold names and values, got {short(repr(record))}")
        expected: dict[str, Any] = {"seed": seed}
        if self.folds is not None:
            expected["fold"] = [fold, len(self.folds)]
        for name, value in expected.items():
            if record.get(name) != value:
                raise InputError(self._of_another(path, name, record.get(name), value))
        own_fields = LAST_EPOCH if fold is not None else {}
        found = differences(self.recipes[variant], record.get("recipe"))
        if other := [name for name in found if name not in own_fields]:
            raise InputError(
                f"'{path}' has another recipe than the study's '{variant}' (other values of {', '.join(other[:4])}): "
                "the run was edited, swapped or copied"
            )
        fingerprints = record.get("data_fingerprints") or {}
        if other := [split for split, value in self.data.items() if fingerprints.get(split, value) != value]:
            raise InputError(
                f"'{path}' was trained on other data than the study's: the fingerprint of {other[0]} differs"
            )

    @staticmethod
    def _of_another(path: Path, what: str, found: Any, expected: Any) -> str:
        return (
            f"'{path}' records {what} {short(found)}, but is in the folder of {what} {expected}: the run was swapped "
            "or copied"
        )

    def _check_score(self, path: Path, table: Mapping[str, np.ndarray], results: Mapping[str, Any]):
        stored = results.get("test" if self.folds is None else "held out")
        stored = stored.get("mixture") if isinstance(stored, dict) else None
        main = self.measures.main
        if not isinstance(stored, dict) or stored.get(main) is None:  # None: undefined on this fold
            return
        found = self.measures.observed(table["label"], table["prediction"])
        if not isinstance(stored[main], float | int) or abs(stored[main] - found) > _TOLERANCE:
            raise InputError(
                f"'{path}' records the {score_title(main)} {short(stored[main])}, but the predictions beside it have "
                f"{found:.4f}: one of the two files was edited, swapped or copied"
            )

    def _seed(self, variant: str, seed: int) -> tuple[dict[str, np.ndarray], list[dict], Curves | None]:
        """Read one seed: columns in the order of the stage's turns, the results of each fold, robustness curves."""
        seed_folder = self.root / self.stage / variant / f"seed-{seed}"
        parts = self._parts(seed_folder)
        split = "test" if self.folds is None else None  # the table of a run on test also has validation turns
        results = [read_run_results(part / "results.json") for part in parts]
        for fold, (part, result) in enumerate(zip(parts, results, strict=True)):
            self._check_run(part, variant, seed, None if self.folds is None else fold, result)
        tables = [read_predictions(part / "predictions.parquet", self.measures, split) for part in parts]
        for part, table, result in zip(parts, tables, results, strict=True):
            check_digests(result, part)
            self._check_score(part / "results.json", table, result)
            temperature = (result.get("calibration") or {}).get("temperature")
            table["temperature"] = np.full(len(table["label"]), np.nan if temperature is None else temperature)
        columns = {name: np.concatenate(values) for name, values in _in_all(tables).items()}
        keys = list(zip(columns["dialogue_id"].tolist(), columns["utterance_id"].tolist(), strict=True))
        path = seed_folder if len(parts) > 1 else parts[0] / "predictions.parquet"
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"'{path}': utterance '{twice[1]}' of dialogue '{twice[0]}' appears more than once")
        if self.turns is None:
            self._position = {key: number for number, key in enumerate(keys)}
            self.turns = columns
        order = self._order(keys, [part / "predictions.parquet" for part in parts], [len(t["label"]) for t in tables])
        columns = {name: values[order] for name, values in columns.items()}
        other = ~np.isclose(columns["label"], self.turns["label"], rtol=0, atol=0, equal_nan=True)
        different = np.flatnonzero(other.reshape(len(other), -1).any(-1))
        if len(different):
            turn = keys[order[different[0]]]
            raise InputError(
                f"'{path}': the label of utterance '{turn[1]}' of dialogue '{turn[0]}' differs from that of other runs"
            )
        curves = [
            read_robustness(part / "robustness.parquet", t, self.measures)
            for part, t in zip(parts, tables, strict=True)
        ]
        return columns, results, _joined(curves, order, seed_folder)

    def _order(self, keys: list[tuple[str, str]], paths: list[Path], lengths: list[int]) -> np.ndarray:
        """Positions in this seed's turns of the stage's turns."""
        found = {key: number for number, key in enumerate(keys)}
        path_of_turn = [path for path, length in zip(paths, lengths, strict=True) for _ in range(length)]
        for key, path in zip(keys, path_of_turn, strict=True):
            if key not in self._position:
                raise InputError(
                    f"'{path}': utterance '{key[1]}' of dialogue '{key[0]}' is not among the turns of other runs"
                )
        if missing := self._position.keys() - found.keys():
            dialogue, utterance = min(missing, key=self._position.__getitem__)
            where = paths[0] if len(paths) == 1 else paths[0].parents[1]
            raise InputError(
                f"'{where}' lacks {len(missing)} turns that other runs have, first utterance '{utterance}' of "
                f"dialogue '{dialogue}'"
            )
        return np.array([found[key] for key in self._position])

    def _robustness(self, variant: str, seeds: list[int], curves: list[Curves | None]) -> tuple[Curves, list[int]]:
        """Robustness curves of the seeds that have them, and the positions of these seeds."""
        if not is_robust(variant, self.recipes[variant]):
            return {}, []
        found = {number: of_seed for number, of_seed in enumerate(curves) if of_seed is not None}
        if lacking := [str(seed) for number, seed in enumerate(seeds) if number not in found]:
            self.problems.append(f"{self.stage}/{variant}: no robustness.parquet for seed {', '.join(lacking)}")
        if not found:
            return {}, []
        if _differ(list(found.values())):
            folder = self.root / self.stage / variant
            raise InputError(
                f"'{folder}': robustness.parquet of one seed holds other curves, levels or draws than another"
            )
        first = next(iter(found.values()))
        return {key: np.stack([of_seed[key] for of_seed in found.values()]) for key in first}, list(found)


def _in_all(tables: list[dict[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """The columns that all tables have with one width."""
    found = {name: [table[name] for table in tables if name in table] for name in tables[0]}
    return {
        name: values
        for name, values in found.items()
        if len(values) == len(tables) and len({each.shape[1:] for each in values}) == 1
    }


def _differ(curves: list[Curves]) -> bool:
    """Whether these have other curves, levels or numbers of draws."""
    shapes = [{key: len(values) for key, values in each.items()} for each in curves]
    return any(shape != shapes[0] for shape in shapes)


def _joined(folds: list[Curves | None], order: np.ndarray, seed_folder: Path) -> Curves | None:
    """Join the curves of the folds, in the order of the stage's turns; None if a fold has none."""
    found = [fold for fold in folds if fold is not None]
    if len(found) < len(folds):
        return None
    if _differ(found):
        raise InputError(
            f"'{seed_folder}': robustness.parquet of one fold holds other curves, levels or draws than another"
        )
    return {key: np.concatenate([fold[key] for fold in found], axis=1)[:, order] for key in found[0]}
