"""Check the device and a checkpoint folder: `mister-e doctor`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..base.errors import short
from ..base.installation import version_of
from ..base.modalities import MODALITIES, Modality
from ..base.plain_text import count_of
from ..hub.checkpoint import checkpoint_files
from ..hub.language_models import FIELD, licence_of
from .stored_stages import load_any_model, load_encoder

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def examine(folder: str | Path | None = None) -> Iterator[tuple[bool, str]]:
    """Yield findings on the device and on a checkpoint folder, each with whether it is as expected."""
    yield True, f"runs on {_device()}"
    if folder is not None:
        yield from _examine_checkpoint(Path(folder))


def _examine_checkpoint(folder: Path) -> Iterator[tuple[bool, str]]:
    try:
        size = sum(checkpoint_files(folder).values())
        model = load_any_model(folder)
    except Exception as error:  # any error is a finding
        yield False, f"'{folder}': {short(error, 1000)}"
        return
    config: Any = model.config
    heads = f", heads {', '.join(config.heads)}" if config.heads and not model.pretrains else ""
    encoders = any((folder / modality.encoder).is_dir() for modality in MODALITIES.values())
    held = "with encoders" if encoders else "without encoders"
    kind = ", pre-trained" if model.pretrains else ""
    yield True, f"'{folder}': {model.title}{kind}{heads}; {model.num_parameters():,} parameters, {size:,} bytes {held}"
    if model.pretrains:
        yield True, "predicts nothing until it is fine-tuned: mister-e train RECIPE --pretrained FOLDER"
    else:
        predicted = "scores of" if config.task == "regression" else "labels"
        yield True, f"{predicted} {', '.join(config.id2label.values())}"
    if getattr(config, FIELD, None) is not None:
        yield True, _language_model(model)
    yield from _try_out(model)
    for modality in MODALITIES.values():
        if (folder / modality.encoder).is_dir():
            yield _examine_encoder(folder, modality, getattr(config, modality.width, None))
        elif modality.name in config.modalities:
            yield True, f"no {modality.encoder}/: takes {modality.name} as vectors"
    for name in ("README.md", "training.yaml"):
        if not (folder / name).is_file():
            yield False, f"no {name}; save the folder with mister_e_hf, or write one"
    for path in sorted(path for pattern in _PICKLES for path in folder.glob(pattern)):
        yield (
            False,
            f"{path.name} may be a pickle, which can execute code; mister_e_hf never reads it; consider removing it",
        )


def _try_out(model: Any) -> Iterator[tuple[bool, str]]:
    config = model.config
    read = [MODALITIES[name] for name in config.modalities]
    inputs: dict[str, Any] = {each.embeddings: torch.randn(1, 3, getattr(config, each.width)) for each in read}
    if config.reads_transcripts:
        inputs["transcripts"] = [["hello", None, "bye"]]
    if model.pretrains:
        inputs |= {each.masked: torch.tensor([[False, True, False]]) for each in read}
    with torch.no_grad():
        output = model(**inputs)
    what, found = ("errors", output.loss) if model.pretrains else ("logits", model.view(output).logits)
    finite = bool(found.isfinite().all())
    yield (
        finite,
        f"{what} of three random turns are {'finite' if finite else 'NaN or infinite: its weights are broken'}",
    )


def _language_model(model: Any) -> str:
    """The language model that was loaded with a model: its kind, size, memory, place and licence."""
    config, own = model.config, list(model.language_model.parameters())
    size, memory = sum(each.numel() for each in own), sum(each.numel() * each.element_size() for each in own)
    held = config.holds_language_model
    name = config.language_model
    where = "held by the checkpoint" if held else f"found where the checkpoint names it, '{name}'"
    licence = licence_of(name, revision=config.language_model_revision) or "not stated"
    return (
        f"language model of type {model.language_model.config.model_type}: {size:,} parameters, {memory / 2**20:,.0f} "
        f"MiB of memory in {str(model.language_model.dtype).removeprefix('torch.')}; {where}; licence {licence}"
    )


def _examine_encoder(folder: Path, modality: Modality, width: int | None) -> tuple[bool, str]:
    name = modality.encoder
    if width is None:
        return False, f"{name}/: the model does not read {modality.name}"
    try:
        encoder, _ = load_encoder(folder, modality.name, width)
    except Exception as error:
        return False, f"{name}/: {short(error, 1000)}"
    if modality.content == "video" and version_of("av") is None:
        return False, f"{name}/: video cannot be read without PyAV: pip install av"
    made = encoder.config
    return True, f"{name}/: {made.backbone}, {made.tuning}, vectors of {made.embedding_dim} numbers, as stage 2 reads"


def _device() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        return "Apple's GPU"
    return f"the CPU ({count_of(torch.get_num_threads(), 'thread')})"
