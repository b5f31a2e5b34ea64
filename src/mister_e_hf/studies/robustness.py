"""What is left of a trained model's answers when a dialogue's input is damaged: turns without speech or text, noise, a start that is missing."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch

from ..evaluation.predictions import predict
from ..training.dialogue_trainer import MisterETrainer
from ..vectors.dialogue_vectors import MODALITIES, DialogueVectors

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NOISE_LEVELS = (0.0, 0.5, 1.0, 2.0, 4.0)
CUT_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)
NOT_THERE = -1

Item = dict[str, torch.Tensor]


def robustness_table(trainer: MisterETrainer, data: DialogueVectors, draws: int = 5, seed: int = 0) -> pa.Table:
    r"""
    Predictions of a split under damage, a row for each curve, level and draw. The damage of a draw is the same for every model.

    Args:
        trainer: with the trained model.
        data: the split.
        draws: how often damage that is random is drawn at each level.

    Returns:
        `curve`, `level`, `draw` and `predictions`, a class index per turn of the split (-1 where the turn was cut off). Curves: `speech removed`, `text
        removed` and `both removed` from a share of the turns; `noise`, standard deviations of Gaussian noise on every dimension of the vectors, in
        those of the training vectors; `start cut`, the share of each dialogue's first turns that is not there.
    """
    rows = []
    for curve, level, damage in _damages(trainer.model):
        for draw in range(1 if level == 0 or curve == "start cut" else draws):
            generator = torch.Generator().manual_seed(seed + draw)
            damaged = _Damaged(data, lambda item, d=damage, g=generator: d(item, g))
            predictions = np.full(data.num_turns, NOT_THERE)
            predictions[damaged.there] = predict(trainer, damaged)["mixture"].argmax(-1)
            rows.append({"curve": curve, "level": level, "draw": draw, "predictions": predictions.tolist()})
    return pa.Table.from_pylist(rows)


def _damages(model) -> Iterator[tuple[str, float, Callable[[Item, torch.Generator], Item]]]:
    for name in (*MODALITIES, "both"):
        modalities = MODALITIES if name == "both" else (name,)
        for share in SHARES:
            yield f"{name} removed", share, lambda item, g, s=share, m=modalities: _without(item, m, s, g)
    deviations = {
        name: getattr(model, f"{name}_input").std.cpu() for name in MODALITIES if hasattr(model, f"{name}_input")
    }
    for level in NOISE_LEVELS:
        yield "noise", level, lambda item, g, x=level: _with_noise(item, deviations, x, g)
    for share in CUT_SHARES:
        yield "start cut", share, lambda item, g, s=share: {name: v[int(s * len(v)) :] for name, v in item.items()}


def _without(item: Item, modalities: tuple[str, ...], share: float, generator: torch.Generator) -> Item:
    kept = torch.rand(len(next(iter(item.values()))), generator=generator) >= share
    return item | {f"{name}_mask": item[f"{name}_mask"] & kept for name in modalities if f"{name}_mask" in item}


def _with_noise(item: Item, deviations: dict[str, torch.Tensor], level: float, generator: torch.Generator) -> Item:
    noisy = {}
    for modality, deviation in deviations.items():
        if (name := f"{modality}_embeddings") in item:
            noise = torch.randn(item[name].shape, generator=generator)
            noisy[name] = item[name].float() + level * deviation * noise
    return item | noisy


class _Damaged(torch.utils.data.Dataset):
    """A split with every dialogue damaged once, and which of its turns are still `there` (N,)."""

    def __init__(self, data: DialogueVectors, damage: Callable[[Item], Item]):
        self.items = [damage(data[number]) for number in range(len(data))]
        self.lengths = np.array([len(item["labels"]) for item in self.items])
        self.there = np.concatenate(
            [np.arange(full) >= full - left for full, left in zip(data.lengths, self.lengths, strict=True)]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Item:
        return self.items[number]
