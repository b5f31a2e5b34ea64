"""Training and embedding by two processes at once, in a group as torchrun makes it."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from safetensors.torch import load_file

from mister_e_hf.corpora.store import write_corpus
from mister_e_hf.encoders.embedding import embed_corpus
from mister_e_hf.training.encoder_experiment import load_encoder
from mister_e_hf.training.utterance_trainer import logits_of
from support.distributed_encoders import ODD, SHARD
from support.forks import run_processes
from support.gradient_steps import assert_close
from support.small_encoders import read_lines, tiny_encoder, write_backbone, write_lines
from support.utterance_training import CASES, gradient, items, trainer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the backbones, the encoders, the corpus, and in `two` what two processes made of them."""
    folder = tmp_path_factory.mktemp("processes")
    lines = write_lines(folder / "lines", {"train": 12, "validation": 2, "test": 2})
    write_corpus(read_lines(lines, folder / "cache"), folder / "corpus", embed_audio=True)
    for modality in ("speech", "text"):
        for part in tiny_encoder(write_backbone(folder / f"{modality}-backbone", modality), modality):
            part.save_pretrained(folder / modality)
    (folder / "two").mkdir()
    names = ("two", "text-backbone", "corpus", "speech", "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        run_processes(2, "distributed_encoders.py", *(folder / name for name in names))
    return folder


@pytest.mark.parametrize("case", [*CASES, "computed_twice"])
def test_two_processes_give_the_gradient_of_one(folder, tmp_path, case):
    alone = gradient(folder / "text-backbone", tmp_path, items(CASES.get(case, CASES["some"])))
    assert_close(load_file(folder / "two" / f"{case}.safetensors"), alone)


def test_two_processes_predict_in_order(folder, tmp_path):
    prediction = trainer_of(folder / "text-backbone", tmp_path).predict(items(ODD))
    together = np.load(folder / "two" / "prediction.npz")
    assert together["labels"].tolist() == ODD
    np.testing.assert_allclose(together["logits"], logits_of(prediction.predictions), atol=1e-6)


def test_two_processes_make_the_same_vectors(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    encoders = {modality: load_encoder(folder / modality) for modality in ("speech", "text")}
    one = embed_corpus(folder / "corpus", encoders, tmp_path / "one", shard_turns=SHARD)
    alone, together = (
        {path.name: path.read_bytes() for path in made.iterdir()} for made in (one, folder / "two" / "vectors")
    )
    assert len(alone) > 8
    assert alone == together
