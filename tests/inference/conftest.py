"""A pipeline of a tiny checkpoint with both encoders, and recordings for it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import pipeline

from mister_e_hf import ConversationEmotionPipeline
from support.small_checkpoint import write_checkpoint
from support.small_encoders import tiny_encoder, write_backbone
from support.small_pipeline import TASK, write_recordings


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pipeline") / "run")


@pytest.fixture(scope="session")
def pipe(folder) -> ConversationEmotionPipeline:
    return pipeline(TASK, model=folder)


@pytest.fixture(scope="session")
def causal(tmp_path_factory) -> ConversationEmotionPipeline:
    return pipeline(TASK, model=write_checkpoint(tmp_path_factory.mktemp("causal") / "run", seed=1, causal=True))


@pytest.fixture(scope="session")
def sounds(tmp_path_factory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="session")
def clip(sounds) -> np.ndarray:
    return soundfile.read(sounds / "clip.wav", dtype="float32")[0]


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    backbone = write_backbone(folder / "backbone", "text")
    for part in tiny_encoder(backbone, "text", tuning="full", embedding_dim=4):
        part.save_pretrained(folder / "encoder")
    return folder / "encoder"
