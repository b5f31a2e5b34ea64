from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The process that only hands out tests to others loads nothing heavy.
if TYPE_CHECKING:
    import torch

    from mister_e_hf import MisterEConfig, MisterEModel

pytest.register_assert_rewrite("support")

SHARED = Path(__file__).parents[2] / "shared"

# Tiny models: more threads only wait for one another, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config: pytest.Config):
    from support import run_folder

    if not hasattr(config, "workerinput"):  # of pytest-xdist
        run_folder.begin()
        config.add_cleanup(run_folder.end)


def pytest_collection_finish():
    """What was imported stays, so that nothing looks for garbage in it: each training looks several times."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]):
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason="needs the folder ../shared, which is not part of the project"))


@pytest.fixture
def shared_dir() -> Path:
    """The folder beside the repository with real corpora and reference outputs; for tests marked `shared`."""
    return SHARED


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Keep the cache of `datasets` with the files of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def tiny_config() -> Callable[..., MisterEConfig]:
    from mister_e_hf import MisterEConfig

    def make(**changes) -> MisterEConfig:
        settings = {
            "speech_embedding_dim": 5,
            "text_embedding_dim": 4,
            "hidden_size": 8,
            "context_num_layers": 2,
            "fusion_num_layers": 2,
            "attention_dim": 6,
            "num_attention_heads": 3,
            "gate_hidden_size": 4,
            "id2label": {0: "anger", 1: "joy", 2: "neutral"},
        }
        return MisterEConfig(**{**settings, **changes})

    return make


@pytest.fixture
def tiny_model(tiny_config) -> Callable[..., MisterEModel]:
    import torch

    from mister_e_hf import MisterEModel

    def make(dtype: torch.dtype = torch.float64, seed: int = 0, **changes) -> MisterEModel:
        """In evaluation mode, with no parameter and no buffer at its neutral value."""
        torch.manual_seed(seed)
        model = MisterEModel(tiny_config(**changes))
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if hasattr(module, "set_statistics"):
                module.set_statistics(0.3 * torch.randn_like(module.mean), 0.5 + torch.rand_like(module.std))
        return model.to(dtype).eval()

    return make


@pytest.fixture
def make_batch() -> Callable[..., dict[str, torch.Tensor]]:
    import torch

    def make(
        lengths: Sequence[int],
        config: MisterEConfig,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        absent: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """Dialogues padded at the end; each modality of a turn is absent with probability `absent`."""
        generator = torch.Generator().manual_seed(seed)
        shape = len(lengths), max(lengths)
        real = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
        return {
            "speech_embeddings": torch.randn(*shape, config.speech_embedding_dim, generator=generator).to(dtype),
            "text_embeddings": torch.randn(*shape, config.text_embedding_dim, generator=generator).to(dtype),
            "attention_mask": real,
            "speech_mask": real & (torch.rand(shape, generator=generator) >= absent),
            "text_mask": real & (torch.rand(shape, generator=generator) >= absent),
            "labels": torch.randint(config.num_labels, shape, generator=generator).masked_fill(~real, -100),
        }

    return make
