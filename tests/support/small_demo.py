"""A checkpoint with every stage, from few recordings and an epoch each: seconds."""

import shutil
from pathlib import Path

import pytest

from mister_e_hf.corpora import demo_recordings
from mister_e_hf.training.demo import run_demo
from support.run_folder import made_once

RECIPE = Path(__file__).parents[2] / "hub_configs" / "demo-recordings.yaml"
VIDEO_RECIPE = RECIPE.with_name("demo-video.yaml")


def _short(*sections: str) -> list[str]:
    return [word for name in sections for word in (f"--{name}num_train_epochs", "1", f"--{name}disable_tqdm")]


SHORT = _short("", "speech_encoder.training.", "text_encoder.training.")


def run_small_demo(folder: Path, video: bool = False) -> Path:
    """Its run is the folder; its recordings, corpus and backbones lie in `demo/`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_recordings, "SPLIT_SIZES", {"train": 8, "validation": 3, "test": 3})
        patch.setenv("HF_HOME", str(Path(folder).absolute().parent / "home"))
        options = [*SHORT, *_short("visual_encoder.training.")] if video else SHORT
        run_demo(folder, VIDEO_RECIPE if video else RECIPE, tuple(options))
    return folder


def small_demo() -> Path:
    """One run for all tests that change nothing in it."""
    return made_once("small-demo", lambda folder: run_small_demo(folder / "run")) / "run"


def copy_small_demo(folder: Path) -> Path:
    """A run of the test's own; its corpus and backbones remain those of `small_demo`."""
    return shutil.copytree(small_demo(), folder)
