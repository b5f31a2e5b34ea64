"""What is installed, what it runs on, and whether a checkpoint folder is whole: `mister-e doctor`."""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..base.errors import short
from ..base.plain_text import count_of
from ..hub.checkpoint import checkpoint_files
from ..vectors.dialogue_vectors import MODALITIES
from .stored_stages import load_encoder, load_model

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def examine(folder: str | Path | None = None) -> Iterator[tuple[bool, str]]:
    """Findings on the device and, where one is given, a checkpoint folder, each with whether it is as it should be."""
    yield True, f"runs on {_device()}"
    if folder is not None:
        yield from _examine_checkpoint(Path(folder))


def _examine_checkpoint(folder: Path) -> Iterator[tuple[bool, str]]:
    try:
        size = sum(checkpoint_files(folder).values())
        model = load_model(folder)
    except Exception as error:  # whatever it is, it is a finding
        yield False, f"'{folder}': {short(error, 1000)}"
        return
    config = model.config
    parts = f"experts {', '.join(config.experts)}" if hasattr(config, "experts") else config.model_type
    yield True, f"'{folder}': {model.num_parameters():,} parameters, {size:,} bytes with encoders, {parts}"
    yield True, f"labels {', '.join(config.id2label.values())}"
    yield from _try_out(model)
    for modality in MODALITIES:
        if (folder / f"{modality}_encoder").is_dir():
            yield _examine_encoder(folder, modality, getattr(config, f"{modality}_embedding_dim"))
        else:
            yield True, f"no {modality}_encoder/: takes vectors of {modality} alone"
    for name in ("README.md", "training.yaml"):
        if not (folder / name).is_file():
            yield False, f"no {name}; save the folder by mister_e_hf, or write one"
    for path in sorted(path for pattern in _PICKLES for path in folder.glob(pattern)):
        yield False, f"{path.name} may be a pickle, which can run code; nothing here reads it: remove it"


def _try_out(model: PreTrainedModel) -> Iterator[tuple[bool, str]]:
    config = model.config
    with torch.no_grad():
        output = model(torch.randn(1, 3, config.speech_embedding_dim), torch.randn(1, 3, config.text_embedding_dim))
    finite = bool(output.logits.isfinite().all())
    yield (
        finite,
        f"three turns of noise give {'finite logits' if finite else 'NaN or infinity: its weights are broken'}",
    )


def _examine_encoder(folder: Path, modality: str, width: int) -> tuple[bool, str]:
    name = f"{modality}_encoder"
    try:
        encoder, _ = load_encoder(folder, modality, width)
    except Exception as error:
        return False, f"{name}/: {short(error, 1000)}"
    made = encoder.config
    return True, f"{name}/: {made.backbone}, {made.tuning}, vectors of {made.embedding_dim} numbers, as stage 2 takes"


def _device() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        return "Apple's GPU"
    return f"the CPU ({count_of(torch.get_num_threads(), 'thread')})"
