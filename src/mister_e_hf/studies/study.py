"""What an ablation study is: systems, their predictions of the same turns in the same order, and what failed.

Letters: S seeds, N turns, C classes, E heads of a model beside its main one, D repetitions.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.metrics import scored_turns

KNEW_LABELS = (
    "Label leakage: the encoders that made these vectors were trained on the labels of train, which include those of held-out turns, so "
    "scores on folds are inflated. Scores on test are not affected."
)

FULL, MAJORITY = "full", "majority_vote"
ROBUST = (FULL, "without_modality_dropout")  # whose answers to damaged input are there, too
# A fold that scores cannot choose the epoch, too: the last one counts, and nothing has to be kept on the way.
LAST_EPOCH = {
    "training.save_strategy": "no",
    "training.load_best_model_at_end": False,
    "training.early_stopping_patience": None,
    "training.disable_tqdm": True,
}


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
        head_probabilities: by head beside the main one, (S, N, C).
        gate_weights (`(S, N, E)`): of these heads; None without a gate over at least two of them.
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
    head_probabilities: dict[str, np.ndarray] = field(default_factory=dict)
    gate_weights: np.ndarray | None = None
    temperatures: np.ndarray | None = None
    results: list[list[dict[str, Any]]] = field(default_factory=list)
    robustness: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)
    robustness_seeds: list[int] = field(default_factory=list)

    @property
    def head_noun(self) -> str:
        """What a head is called: an expert where a gate weighs it."""
        return "head" if self.gate_weights is None else "expert"


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


def derived_systems(full: System) -> dict[str, System]:
    r"""
    Systems read from the full model's own heads: each head by itself and, with at least three, their majority vote, which is the last head's class where
    no class has the most votes. Empty for a model with fewer than two heads.
    """
    heads, noun = list(full.head_probabilities), full.head_noun
    if len(heads) < 2:
        return {}
    votes = [full.head_probabilities[name].argmax(-1) for name in heads]  # [S, N] each
    systems = [
        System(
            f"{name}_{noun}_of_full",
            "derived",
            f"the {name} {noun}'s own logits within the full model",
            full.seeds,
            vote,
            full.head_probabilities[name],
        )
        for name, vote in zip(heads, votes, strict=True)
    ]
    if len(heads) > 2:
        about = f"what most of the full model's {noun}s say, the {heads[-1]} {noun} where all differ"
        systems.append(System(MAJORITY, "derived", about, full.seeds, _majority(votes)))
    return {system.name: system for system in systems}


def _majority(votes: list[np.ndarray]) -> np.ndarray:
    """The class with the most votes, the last vote where several classes have as many; class indices (S, N)."""
    counts = sum(np.eye(1 + max(vote.max() for vote in votes), dtype=np.int64)[vote] for vote in votes)  # [S, N, C]
    is_tie = (counts == counts.max(-1, keepdims=True)).sum(-1) > 1
    return np.where(is_tie, votes[-1], counts.argmax(-1))
