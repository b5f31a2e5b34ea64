"""Predictions under missing modalities or capsules, noise and truncated context.

Letters: T turns of a dialogue, N turns of a split.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch

from ..base.errors import InputError
from ..base.modalities import MODALITIES
from ..evaluation.predictions import predict
from ..models.emo_caps.modeling_emo_caps import EmoCapsModel
from ..models.modeling_conversation import ConversationPreTrainedModel
from ..training.dialogue_trainer import DialogueTrainer
from ..vectors.dialogue_vectors import DialogueVectors
from .prediction_files import CUT

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NOISE_LEVELS = (0.0, 0.5, 1.0, 2.0, 4.0)
CUT_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)
WITHOUT_CAPSULES = "without the "  # how the names of rows of removed capsules begin
CUT_OFF = -1  # in place of a predicted class; predicted scores are null there

Item = dict[str, Any]  # a dialogue: fields with one entry per turn
Damage = Callable[[Item, torch.Generator], Item]


def robustness_table(trainer: DialogueTrainer, data: DialogueVectors, draws: int = 5, seed: int = 0) -> pa.Table:
    r"""
    Predictions of a split under damage, one row per curve, level and draw. The damage of a draw is the same for every
    model.

    The curves are, for every subset of the modalities that the model reads, `speech removed`, `speech and text
    removed`, ... (from a share of the turns, with the transcripts if the model reads them); `noise` in all vectors
    and, for a model of several modalities, `noise in speech`, ... (Gaussian, on each dimension; the level is its
    standard deviation, in standard deviations of the training vectors); and `start cut` (a share of each dialogue's
    first turns is cut off). Of a model with capsules there are also rows of [`capsule_groups`], such as `without the
    capsule speech+text`, of level 1.

    Args:
        trainer: trainer with the trained model.
        data: the split.
        draws: number of draws of random damage at each level.
        seed: seed of the first draw.

    Returns:
        table with `curve`, `level`, `draw` and `predictions`: a class index per turn of the split, -1 where it was cut
        off; or, of a regression, a list with the score of each target per turn, null where it was cut off.
    """
    rows, unchanged = [], None
    model = trainer.own_model
    modalities = [name for name in data.vectors if name in model.config.modalities]
    for curve, level, damage in _damages(model, modalities):
        if level == 0:
            if unchanged is None:
                unchanged = _predictions(trainer, data, np.ones(data.num_turns, dtype=bool))
            rows.append({"curve": curve, "level": level, "draw": 0, "predictions": unchanged})
            continue
        for draw in range(1 if curve == CUT else draws):
            damaged = _Damaged(data, damage, torch.Generator().manual_seed(seed + draw))
            predictions = _predictions(trainer, cast(DialogueVectors, damaged), damaged.kept)
            rows.append({"curve": curve, "level": level, "draw": draw, "predictions": predictions})
    for group, names in capsule_groups(model.config.capsules).items():
        with cast(EmoCapsModel, model).without_capsules(names):
            predictions = _predictions(trainer, data, np.ones(data.num_turns, dtype=bool))
        rows.append({"curve": WITHOUT_CAPSULES + group, "level": 1.0, "draw": 0, "predictions": predictions})
    return pa.Table.from_pylist(rows)


def _predictions(trainer: DialogueTrainer, data: DialogueVectors, kept: np.ndarray) -> list[Any]:
    """Class indices or lists of scores of the turns of a split (its items alone are used), of which some are kept."""
    predicted = predict(trainer, data)["mixture"]
    if not np.isfinite(predicted).all():
        raise InputError(
            "The model's predictions are not finite (NaN or infinity): its weights are damaged, or its input is too "
            "large"
        )
    if trainer.own_model.config.task == "regression":
        scores = iter(predicted.tolist())
        return [next(scores) if is_kept else None for is_kept in kept]
    found = np.full(len(kept), CUT_OFF)
    found[kept] = predicted.argmax(-1)
    return found.tolist()


def capsule_groups(capsules: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """
    The capsules whose removal is measured, by what they are called: each alone, all that read a modality, all of one
    and all of several modalities. No two groups are equal, and none has every capsule.
    """
    members = {name: name.split("+") for name in capsules}
    found: dict[str, tuple[str, ...]] = {f"capsule {name}": (name,) for name in capsules}
    for modality in dict.fromkeys(modality for each in members.values() for modality in each):
        found[f"capsules with {modality}"] = tuple(name for name in capsules if modality in members[name])
    found["capsules of one modality"] = tuple(name for name in capsules if len(members[name]) == 1)
    found["capsules of several modalities"] = tuple(name for name in capsules if len(members[name]) > 1)
    names: dict[tuple[str, ...], str] = {}
    for group, chosen in found.items():
        if 0 < len(chosen) < len(capsules):
            names.setdefault(chosen, group)
    return {group: chosen for chosen, group in names.items()}


def removal_curve(modalities: tuple[str, ...], of: int) -> str:
    """Name of the curve on which these modalities, out of so many that the model reads, are removed."""
    if 1 < len(modalities) == of:
        return "both removed" if of == 2 else "all removed"
    return f"{' and '.join(modalities)} removed"


def _damages(model: ConversationPreTrainedModel, modalities: list[str]) -> Iterator[tuple[str, float, Damage]]:
    """Yield the name of each curve, its levels, and the damage to a dialogue."""
    for count in range(1, len(modalities) + 1):
        for removed in combinations(modalities, count):
            for share in SHARES:
                yield removal_curve(removed, len(modalities)), share, _removal(removed, share)
    inputs = {name: model.input_of(name) for name in modalities}
    deviations = {name: each.std.cpu() for name, each in inputs.items() if each is not None}
    noisy = {"noise": deviations}
    if len(modalities) > 1:
        noisy |= {f"noise in {name}": {name: deviation} for name, deviation in deviations.items()}
    for curve, of in noisy.items():
        for level in NOISE_LEVELS:
            yield curve, level, _noise(of, level)
    for share in CUT_SHARES:
        yield CUT, share, _cut(share)


def _removal(modalities: tuple[str, ...], share: float) -> Damage:
    masks = [MODALITIES[name].mask for name in modalities]

    def remove(item: Item, generator: torch.Generator) -> Item:
        kept = torch.rand(len(item["labels"]), generator=generator) >= share
        return item | {mask: item[mask] & kept for mask in masks if mask in item}

    return remove


def _noise(deviations: dict[str, torch.Tensor], level: float) -> Damage:
    def add_noise(item: Item, generator: torch.Generator) -> Item:
        noisy = {}
        for modality, deviation in deviations.items():
            if (name := MODALITIES[modality].embeddings) in item:
                noise = torch.randn(item[name].shape, generator=generator)
                noisy[name] = item[name].float() + level * deviation * noise
        return item | noisy

    return add_noise


def _cut(share: float) -> Damage:
    return lambda item, generator: {name: values[int(share * len(values)) :] for name, values in item.items()}


class _Damaged(torch.utils.data.Dataset):
    """A split with every dialogue damaged once, and which of its turns are `kept` (N,)."""

    def __init__(self, data: DialogueVectors, damage: Damage, generator: torch.Generator):
        self.items = [damage(data[number], generator) for number in range(len(data))]
        self.lengths = np.array([len(item["labels"]) for item in self.items])
        self.kept = np.concatenate(
            [np.arange(full) >= full - left for full, left in zip(data.lengths, self.lengths, strict=True)]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Item:
        return self.items[number]
