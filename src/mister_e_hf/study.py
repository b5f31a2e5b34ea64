"""What an ablation study left on disk, read and checked: every system's predictions of the same turns in the same order.

Letters: S seeds, N turns, C classes, E experts in the order speech, text, fusion, D repetitions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .configuration_mister_e import EXPERTS
from .errors import InputError
from .metrics import IGNORE_INDEX, scored_turns
from .yaml_files import read_yaml

KNEW_LABELS = (
    "The vectors come from encoders that were trained on the labels of train, so turns that a fold leaves out were not unknown to them: "
    "scores on folds will be too good. Those on test are not affected."
)

FULL, MAJORITY = "full", "majority_vote"
ROBUST = (FULL, "without_modality_dropout")  # whose answers to damaged input are there, too
_TURN_COLUMNS = ("split", "dialogue_id", "utterance_id", "label", "prediction", "probabilities")


@dataclass
class System:
    r"""
    One system's finished seeds.

    Args:
        name: its folder's name.
        kind: `full`, `ablation`, `baseline`, or `derived` from the predictions of the full model.
        description: what it is, in words.
        seeds: S finished ones; a seed is finished when all its folds are.
        predictions (`(S, N)`): class indices.
        probabilities (`(S, N, C)`): None for a derived system without any.
        expert_probabilities: of each expert it has, (S, N, C).
        gate_weights (`(S, N, E)`): None where it has no gate over all three experts.
        temperatures (`(S, N)`): what the logits were divided by; NaN where that is not known.
        results: by seed, `results.json` of each of its folds; of its one run in the final stage.
        robustness: by curve and level, class indices (S', D, N); -1 where the turn was cut off.
        robustness_seeds: positions in `seeds` of the S' that have them.
    """

    name: str
    kind: str
    description: str
    seeds: list[int]
    predictions: np.ndarray
    probabilities: np.ndarray | None = None
    expert_probabilities: dict[str, np.ndarray] = field(default_factory=dict)
    gate_weights: np.ndarray | None = None
    temperatures: np.ndarray | None = None
    results: list[list[dict[str, Any]]] = field(default_factory=list)
    robustness: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)
    robustness_seeds: list[int] = field(default_factory=list)


@dataclass
class Stage:
    r"""
    What was predicted in `development`, where every turn of train and validation was left out once, or in `final`, on test.

    Args:
        name: of the stage.
        dialogues (`(N,)`): ids.
        labels (`(N,)`): class indices, -100 where a turn is not scored.
        scores (`(N,)`): real-valued scores (CMU-MOSI), NaN where there is none; None for a corpus without them.
        systems: those with a finished seed, by name; the derived ones follow the full model.
    """

    name: str
    dialogues: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    systems: dict[str, System]

    def views(self) -> dict[str, np.ndarray]:
        """Labels by which turns are scored: all, and with real-valued scores also without those of zero or none."""
        return scored_turns(self.labels, self.scores)


@dataclass
class Study:
    r"""
    One study.

    Args:
        folder: where it lies.
        settings: `study.yaml`.
        frozen: `frozen.yaml`, written before test is touched; None until then.
        stages: those with a finished seed, by name.
        problems: what failed or is missing, a line each.
    """

    folder: Path
    settings: dict[str, Any]
    frozen: dict[str, Any] | None
    stages: dict[str, Stage] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def corpus(self) -> str:
        return self.settings["recipe"]["corpus"].get("name") or self.folder.name

    @property
    def class_names(self) -> list[str]:
        return self.settings["recipe"]["corpus"]["labels"]

    @property
    def latest(self) -> Stage:
        """Final where test was scored, else development."""
        return self.stages.get("final") or self.stages["development"]


def read_study(folder: str | Path) -> Study:
    r"""
    Read a study's folder. Runs that failed or are not finished become lines in their stage's `problems`.

    Raises:
        FileNotFoundError: if there is no `study.yaml`.
        ValueError: naming the file, if it is not of the form, or its turns or their labels are not those of the other runs; if no run is
            finished.
    """
    folder = Path(folder)
    path = folder / "study.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"There is no study in '{folder}': it has no study.yaml")
    settings = read_yaml(path)
    missing = {"recipe", "seeds", "folds", "variants"} - set(settings if isinstance(settings, dict) else ())
    if missing:
        raise InputError(f"'{path}' lacks {', '.join(sorted(missing))}")
    if not isinstance(settings["recipe"], dict) or not settings["recipe"].get("corpus", {}).get("labels"):
        raise InputError(f"'{path}' lacks recipe.corpus.labels, the names of the classes")
    frozen = folder / "frozen.yaml"
    study = Study(folder, settings, read_yaml(frozen) if frozen.is_file() else None)
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
        self.turns: dict[str, np.ndarray] | None = None
        self._position: dict[tuple[str, str], int] = {}

    def system(self, variant: str, about: Mapping[str, Any]) -> System | None:
        if not (self.root / self.stage / variant).is_dir():
            self.problems.append(f"{self.stage}/{variant}: not run")
            return None
        finished = [seed for seed in self.seeds if self._is_finished(variant, seed)]
        if not finished:
            return None
        runs = [self._seed(self.root / self.stage / variant / f"seed-{seed}") for seed in finished]
        columns = [run for run, *_ in runs]

        def stacked(column: str) -> np.ndarray | None:
            return np.stack([run[column] for run in columns]) if all(column in run for run in columns) else None

        experts = {name: stacked(f"{name}_probabilities") for name in EXPERTS}
        return System(
            variant,
            about["kind"],
            about["description"],
            finished,
            stacked("prediction"),
            stacked("probabilities"),
            {name: values for name, values in experts.items() if values is not None},
            stacked("gate_weights"),
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

    def _seed(self, seed_folder: Path) -> tuple[dict[str, np.ndarray], list[dict], dict | None]:
        """One seed's columns and curves in the order of the stage's turns, and its results by fold."""
        parts = self._parts(seed_folder)
        split = "test" if self.folds is None else None  # a run's own validation turns stand beside those of test
        tables = [_read_predictions(part / "predictions.parquet", self.class_names, split) for part in parts]
        results = [_read_json(part / "results.json") for part in parts]
        for table, result in zip(tables, results, strict=True):
            temperature = result.get("calibration", {}).get("temperature")
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
            _read_robustness(p / "robustness.parquet", len(t["label"])) for p, t in zip(parts, tables, strict=True)
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


def derived_systems(full: System) -> dict[str, System]:
    r"""
    What the full model's experts say themselves, and their majority vote: the class that two or three of them give, and the fusion
    expert's where all three differ. Nothing where it lacks an expert's probabilities.
    """
    if set(full.expert_probabilities) != set(EXPERTS):
        return {}
    votes = np.stack([full.expert_probabilities[name].argmax(-1) for name in EXPERTS])
    speech, text, fusion = votes
    systems = [
        System(
            f"{name}_expert_of_full",
            "derived",
            f"the {name} expert's own logits within the full model",
            full.seeds,
            vote,
            full.expert_probabilities[name],
        )
        for name, vote in zip(EXPERTS, votes, strict=True)
    ]
    majority = np.where(
        speech == text, speech, fusion
    )  # where speech and text differ, fusion sides with one or decides
    about = "what most of the full model's experts say, the fusion expert where all differ"
    return {system.name: system for system in [*systems, System(MAJORITY, "derived", about, full.seeds, majority)]}


def _in_all(name: str, tables: list[dict]) -> bool:
    return all(name in table for table in tables)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON: {error}") from error


def _read_table(path: Path, columns: tuple[str, ...]) -> pa.Table:
    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowException as error:
        raise InputError(f"'{path}' is no Parquet table: {error}") from error
    if missing := set(columns) - set(table.column_names):
        raise InputError(f"'{path}' lacks the columns {', '.join(sorted(missing))}")
    return table.combine_chunks()


def _read_predictions(path: Path, class_names: list[str], split: str | None) -> dict[str, np.ndarray]:
    table = _read_table(path, _TURN_COLUMNS)
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    index = {name: number for number, name in enumerate(class_names)} | {None: IGNORE_INDEX}
    columns = {name: np.array(table[name].to_pylist(), dtype=object) for name in ("dialogue_id", "utterance_id")}
    for column in ("label", "prediction"):
        names = table[column].to_pylist()
        if unknown := set(names) - set(index if column == "label" else class_names):
            raise InputError(f"'{path}': {column} {sorted(map(str, unknown))} is none of the classes {class_names}")
        columns[column] = np.array([index[name] for name in names], dtype=np.int64)
    lists = {"probabilities": len(class_names), "gate_weights": len(EXPERTS)}
    lists |= {f"{name}_probabilities": len(class_names) for name in EXPERTS}
    for column, width in lists.items():
        if column in table.column_names:
            values = np.array(table[column].to_pylist(), dtype=np.float32)
            if values.shape == (len(table), width):
                columns[column] = values
            elif column != "gate_weights":  # which a model with fewer experts has fewer of
                raise InputError(
                    f"'{path}': {column} must hold {width} numbers per turn, got the shape {values.shape}"
                )
    if "score" in table.column_names:
        columns["score"] = np.array(table["score"].to_pylist(), dtype=np.float64)  # null becomes NaN
    return columns


def _read_robustness(path: Path, turns: int) -> dict[tuple[str, float], np.ndarray] | None:
    """By curve and level, class indices (D, N); None where there is no such file."""
    if not path.is_file():
        return None
    found: dict[tuple[str, float], list] = {}
    for row in sorted(
        _read_table(path, ("curve", "level", "draw", "predictions")).to_pylist(), key=lambda row: row["draw"]
    ):
        if len(row["predictions"]) != turns:
            raise InputError(
                f"'{path}': {len(row['predictions'])} predictions of '{row['curve']}' at {row['level']}, but predictions.parquet "
                f"beside it has {turns} turns"
            )
        found.setdefault((row["curve"], row["level"]), []).append(row["predictions"])
    return {key: np.array(rows, dtype=np.int64) for key, rows in sorted(found.items())}


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
