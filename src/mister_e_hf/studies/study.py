"""An ablation study in memory: systems, and their predictions of the same turns in the same order.

Letters: S seeds, N turns, C classes, K targets, E heads of a model beside its main one, P parts of a model, D
repetitions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..base.part_weights import GATE, PartWeights
from ..evaluation.metrics import scored_turns
from ..models.registry import default_model_type, entry, entry_of, registered
from .measures import Measures, measures_of

LABEL_LEAKAGE = (
    "Label leakage: the encoders that made these vectors were trained on the labels of train, which include those of "
    "held-out turns, so scores on folds are inflated. Scores on test are not affected."
)

FULL, MAJORITY, BASELINE = "full", "majority_vote", "baseline_"  # names of systems; the last begins that of a baseline
ROBUST = (FULL, "without_modality_dropout")  # the variants that also predict damaged input, see `is_robust`
# The held-out fold is scored, so it cannot also choose the epoch: the last one counts, and no checkpoint is needed.
LAST_EPOCH = {
    "training.save_strategy": "no",
    "training.load_best_model_at_end": False,
    "training.early_stopping_patience": None,
    "training.disable_tqdm": True,
}


def is_robust(variant: str, recipe: Mapping[str, Any]) -> bool:
    """
    Whether a variant with these sections of a recipe also predicts damaged input: more than a hundred times, which is
    too much for a language model.
    """
    return variant in ROBUST and "language_model" not in recipe.get("model", {})


@dataclass
class System:
    r"""
    One system and its finished seeds.

    Args:
        name: name of its folder.
        kind: `full`, `ablation`, `baseline`, or `derived` from the predictions of the full model.
        description: what it is, in words.
        seeds: the S finished seeds; a seed is finished when all its folds are.
        predictions (`(S, N)`): class indices; in a regression (S, N, K) scores.
        probabilities (`(S, N, C)`): class probabilities; None for a majority vote and in a regression.
        heads: class probabilities (S, N, C), or scores (S, N, K), of each head beside the main one, by name.
        gate_weights (`(S, N, E)`): weights of these heads; None without a gate over at least two of them.
        temperatures (`(S, N)`): calibration temperature of each turn's logits; NaN where it is unknown.
        results: for each seed, `results.json` of each of its folds; in the final stage of its single run.
        robustness: predictions (S', D, N) or (S', D, N, K) by curve and level; -1 or NaN where the turn was cut off.
        robustness_seeds: positions in `seeds` of the S' seeds with these predictions.
        part_weights: weights (S, N) of other parts of a model, such as capsules, by [`PartWeights.field`] and name.
    """

    name: str
    kind: str
    description: str
    seeds: list[int]
    predictions: np.ndarray
    probabilities: np.ndarray | None = None
    heads: dict[str, np.ndarray] = field(default_factory=dict)
    gate_weights: np.ndarray | None = None
    temperatures: np.ndarray | None = None
    results: list[list[dict[str, Any]]] = field(default_factory=list)
    robustness: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)
    robustness_seeds: list[int] = field(default_factory=list)
    part_weights: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def head_noun(self) -> str:
        """What a head is called: "expert" in a model with a gate, else "head"."""
        return "head" if self.gate_weights is None else "expert"

    def weights_of(self, kind: PartWeights) -> tuple[list[str], np.ndarray] | None:
        """The names of these parts and their weights (S, N, P); None for a model without at least two of them."""
        if kind is GATE:
            return None if self.gate_weights is None else (list(self.heads), self.gate_weights)
        weights = self.part_weights.get(kind.field, {})
        return (list(weights), np.stack([*weights.values()], -1)) if len(weights) > 1 else None


@dataclass
class Stage:
    r"""
    The predictions of one stage: of `development`, where every turn of train and validation was held out once, or of
    `final`, the test split.

    Args:
        name: `development` or `final`.
        dialogues (`(N,)`): dialogue id of each turn.
        labels (`(N,)`): class indices, -100 where a turn is not scored; in a regression (N, K) scores, NaN where a
            turn has none.
        scores (`(N,)`): real-valued scores (CMU-MOSI), NaN where a turn has none; None for a corpus without scores.
        systems: the systems with a finished seed, by name; derived ones follow the full model.
        asked: the variants that this stage was asked for, by name, each with its seeds, finished or not.
    """

    name: str
    dialogues: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    systems: dict[str, System]
    asked: dict[str, list[int]]

    def planned_seeds(self, system: str) -> list[int]:
        """The seeds that a system was asked for; a derived system has those of the full model."""
        return self.asked[system if system in self.asked else FULL]

    def views(self) -> dict[str, np.ndarray]:
        """Labels of each set of scored turns: all and, given real-valued scores, those whose score is not zero."""
        return scored_turns(self.labels, self.scores)


@dataclass
class Study:
    r"""
    One study, as its folder records it.

    Args:
        folder: folder of the study.
        settings: content of `study.yaml`.
        frozen: content of `frozen.yaml`, which is written before test is scored; None until then.
        stages: the stages with a finished seed, by name.
        problems: what failed or is missing, one line each.
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
    def measures(self) -> Measures:
        """What is measured: of the classes that the study predicts, or of its targets."""
        return measures_of(self.settings["recipe"]["corpus"])

    def title(self, system: str) -> str:
        """Name of a system in tables: for the full model and the baselines the title of their method."""
        if system == FULL:
            model_type = self.settings["recipe"].get("model", {}).get("model_type", default_model_type())
            return f"{entry_of(model_type).title}, full"
        name = system.removeprefix(BASELINE)
        if system.startswith(BASELINE) and name in (each.name for each in registered()):
            return entry(name).title
        return name.replace("_", " ")

    @property
    def latest(self) -> Stage:
        """The final stage if test was scored, else development."""
        return self.stages.get("final") or self.stages["development"]


def derived_systems(full: System, is_regression: bool = False) -> dict[str, System]:
    r"""
    Systems made of the full model's own heads: each head by itself and what they say together. Of classes that is the
    majority vote of at least three heads, which is the last head's class where several classes have the most votes; of
    scores it is the mean. Empty for a model with fewer than two heads.
    """
    heads, noun = list(full.heads), full.head_noun
    if len(heads) < 2:
        return {}
    own = "scores" if is_regression else "logits"
    votes = [values if is_regression else values.argmax(-1) for values in full.heads.values()]
    systems = [
        System(
            f"{name}_{noun}_of_full",
            "derived",
            f"the {name} {noun}'s own {own} within the full model",
            full.seeds,
            vote,
            None if is_regression else full.heads[name],
        )
        for name, vote in zip(heads, votes, strict=True)
    ]
    if is_regression:
        about = f"the mean of the full model's {noun}s' scores"
        systems.append(System(f"mean_of_{noun}s", "derived", about, full.seeds, np.mean(votes, axis=0)))
    elif len(heads) > 2:
        about = f"what most of the full model's {noun}s say, the {heads[-1]} {noun} where all differ"
        systems.append(System(MAJORITY, "derived", about, full.seeds, _majority(votes)))
    return {system.name: system for system in systems}


def _majority(votes: list[np.ndarray]) -> np.ndarray:
    """The class with the most votes, or the last vote where several classes tie; class indices (S, N)."""
    counts = sum(np.eye(1 + max(vote.max() for vote in votes), dtype=np.int64)[vote] for vote in votes)  # [S, N, C]
    is_tie = (counts == counts.max(-1, keepdims=True)).sum(-1) > 1
    return np.where(is_tie, votes[-1], counts.argmax(-1))
