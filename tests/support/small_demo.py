"""A checkpoint with every stage, from few recordings and an epoch each: seconds."""

from pathlib import Path

import pytest

from mister_e_hf.corpora import demo_recordings
from mister_e_hf.training.demo import run_demo

RECIPE = Path(__file__).parents[2] / "hub_configs" / "demo-recordings.yaml"
_SECTIONS = ("", "speech_encoder.training.", "text_encoder.training.")
SHORT = [word for name in _SECTIONS for word in (f"--{name}num_train_epochs", "1", f"--{name}disable_tqdm")]


def run_small_demo(folder: Path) -> Path:
    """Its run is the folder; its recordings, corpus and backbones lie in `demo/`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_recordings, "SPLIT_SIZES", {"train": 8, "validation": 3, "test": 3})
        patch.setenv("HF_HOME", str(Path(folder).absolute().parent / "home"))
        run_demo(folder, RECIPE, tuple(SHORT))
    return folder
