"""Vectors of dialogues whose ids name a session, as IEMOCAP's do."""

import numpy as np
import pyarrow as pa
import torch

from mister_e_hf import DialogueVectors
from mister_e_hf.vectors.dialogue_vectors import VectorColumn

LENGTHS = {"train": (3, 1, 4, 2, 6), "validation": (2, 5), "test": (3,)}
SESSIONS = {"train": (1, 1, 2, 2, 3), "validation": (1, 3), "test": (5,)}


def split(name: str, *, scores: bool = False, modalities: tuple[str, ...] = ("speech", "text")) -> DialogueVectors:
    generator, lengths = np.random.default_rng(len(name)), LENGTHS[name]
    turns = sum(lengths)
    ids = [f"Ses0{session}_{name}{number}" for number, session in enumerate(SESSIONS[name])]
    edges = np.cumsum((0, *lengths))

    def cut(values) -> list[list]:
        return [list(values[start:stop]) for start, stop in zip(edges[:-1], edges[1:], strict=True)]

    columns = {
        "dialogue_id": ids,
        "utterance_ids": cut([f"{name}-{number}" for number in range(turns)]),
        "labels": cut(generator.integers(3, size=turns).tolist()),
        "has_audio": cut((generator.random(turns) < 0.7).tolist()),
    }
    if scores:
        columns["sentiment"] = cut(generator.normal(size=turns).tolist())
    return DialogueVectors(
        pa.table(columns),
        {"anger": 0, "joy": 1, "neutral": 2},
        score_column="sentiment" if scores else None,
        vectors={
            modality: VectorColumn([torch.from_numpy(generator.normal(size=(turns, 4)).astype("float32"))])
            for modality in modalities
        },
        name=name,
    )
