"""Vision models as backbones: CLIP, SigLIP, ViT, DINOv2, ResNet, MobileNetV2. A turn is a few frames of its video.

Each frame becomes one vector, and the frames of a turn are the positions that are pooled.

Letters: W rows (turns), K frames of a row, F frames of all rows, P patches of a frame, H the backbone's width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers  # the Auto classes when they are used: loading them registers what is here
from transformers import BatchFeature

from ..base.devices import moved
from ..base.errors import InputError, short
from ..media.video import load_frames
from .backbone_kind import BackboneKind, Inputs, TurnProcessor, with_output_last

_TRIAL_FRAMES = (5, 2)
_TRIAL_SIDE = 64  # pixels, for a model that takes pictures of any size
_AT_ONCE = 32  # frames whose states are in memory together when no gradient needs them

_TOWERS = ("clip", "siglip")  # models of pictures and text, of which the part that sees is taken
_CLASS_TOKEN = ("clip_vision_model", "dinov2", "dinov2_with_registers", "vit")
_POOLED_OUTPUT = ("clip_vision_model", "siglip_vision_model")


class ImageBackbone(BackboneKind):
    """
    A model of single pictures. The vector of a frame is what the model's authors use:

    - CLIP, ViT and DINOv2: the class token; the output of CLIP is the one after its last norm.
    - SigLIP, which has no class token: the output of its attention pooling, and the mean over patches elsewhere. The
      checkpoints of SigLIP 2 for pictures of one size are of this type, too.
    - ResNet, MobileNetV2 and other convolutional networks: the mean over all places of the last feature map. Their
      other layers have other widths and cannot be chosen.
    - models that are not tested: the mean over patches, special tokens included.
    """

    modality = "visual"
    tested = (
        "clip",
        "clip_vision_model",
        "dinov2",
        "dinov2_with_registers",
        "mobilenet_v2",
        "resnet",
        "siglip",
        "siglip_vision_model",
        "vit",
    )
    takes_others = True
    main_input = "pixel_values"
    inputs = ("pixel_values",)
    parts = ("image_processor",)
    settings = ("num_frames",)
    stored_settings = ("num_frames",)
    unit = "frame"
    unused = rf"{BackboneKind.unused}|embeddings\.mask_token"
    keeps_batch_norm = True
    _targets = {
        "mobilenet_v2": r".*\.(expand_1x1|reduce_1x1)\.convolution",
        "resnet": r".*\.layer\.\d+\.convolution",
    }

    def part(self, config: transformers.PreTrainedConfig) -> transformers.PreTrainedConfig:
        return config.vision_config if config.model_type in _TOWERS else config

    def misfit(self, config: transformers.PreTrainedConfig) -> str | None:
        if config.model_type.startswith("siglip2"):
            return (
                "it takes patches of pictures of any size (NaFlex). The checkpoints of SigLIP 2 for one size, such as "
                "google/siglip2-base-patch16-224, are of the type siglip"
            )
        return None if _is_convolutional(config) and self._takes_pictures(config) else super().misfit(config)

    def _takes_pictures(self, config: transformers.PreTrainedConfig) -> bool:
        model = transformers.MODEL_MAPPING.get(type(config), None)
        return getattr(model, "main_input_name", None) == self.main_input

    def sizes(self, config: transformers.PreTrainedConfig) -> tuple[int, int]:
        if _is_convolutional(config):
            return _width_of_map(config), 0
        return super().sizes(config)

    def check_lora(self, config: transformers.PreTrainedConfig, modules: Sequence[str]):
        if config.model_type == "mobilenet_v2" and config.tf_padding:
            raise InputError(
                "MobileNetV2 reads the strides of its convolutions, which LoRA's layers do not have. Choose tuning "
                "'full' or 'frozen'"
            )

    def _all_real(self, values: torch.Tensor) -> torch.Tensor:
        return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)

    def _states(
        self, backbone: transformers.PreTrainedModel, inputs: Inputs, depth: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        values, mask = inputs["pixel_values"], inputs["attention_mask"].bool()
        if values.dim() != 5 or mask.shape != values.shape[:2]:
            raise InputError(
                "pixel_values must have the shape (turns, frames, 3, height, width) and attention_mask (turns, "
                f"frames), got {tuple(values.shape)} and {tuple(mask.shape)}"
            )
        places = moved(mask.flatten().nonzero().squeeze(1), backbone.device)
        frames = moved(values, backbone.device).flatten(0, 1)[places].to(backbone.dtype)  # padding is not run
        parts = frames.split(len(frames) if torch.is_grad_enabled() else _AT_ONCE)
        found = [_frame_vectors(backbone, part) for part in parts]
        states = []
        for layer in zip(*found, strict=True):
            vectors = torch.cat(layer)
            whole = vectors.new_zeros(mask.numel(), vectors.shape[-1]).index_put((places,), vectors)
            states.append(whole.view(*mask.shape, -1))
        return states, mask

    def trial_lengths(self, config: transformers.PreTrainedConfig) -> tuple[int, int] | None:
        return _TRIAL_FRAMES

    def samples(self, backbone: transformers.PreTrainedModel, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        height, width = _picture_size(backbone.config)
        channels = getattr(backbone.config, "num_channels", 3)
        shape = max(lengths), channels, height, width
        counted = torch.arange(int(np.prod(shape)), device=backbone.device)
        pictures = torch.sin(counted * counted % 1009 * 0.1).view(shape)
        mask = (
            torch.arange(max(lengths), device=backbone.device) < torch.tensor(lengths, device=backbone.device)[:, None]
        )
        return {"pixel_values": pictures.expand(len(lengths), *shape), "attention_mask": mask}

    def prepare(
        self,
        processor: TurnProcessor,
        turns: Sequence[Any],
        random_crop: bool = False,
        generator: torch.Generator | None = None,
    ) -> BatchFeature:
        clips = [_pictures(processor, turn, number) for number, turn in enumerate(turns)]
        check_one_size(clips, f"The image processor of this {processor.backbone_type} backbone")
        longest = max(map(len, clips))
        values = clips[0].new_zeros(len(clips), longest, *clips[0].shape[1:])
        mask = torch.zeros(len(clips), longest, dtype=torch.bool)
        for row, clip in enumerate(clips):
            values[row, : len(clip)] = clip
            mask[row, : len(clip)] = True
        return BatchFeature({"pixel_values": values, "attention_mask": mask})

    def costs(self, processor: TurnProcessor, turns: Sequence[Any]) -> list[float]:
        return [float(processor.num_frames)] * len(turns)


def check_one_size(pictures: Sequence[torch.Tensor], maker: str):
    """Raise an `InputError` that names their maker if pictures (..., h, w) of a batch differ in size."""
    sizes = {tuple(each.shape[-2:]) for each in pictures}
    if len(sizes) > 1:
        raise InputError(
            f"{maker} makes pictures of different sizes ({', '.join(map(str, sorted(sizes)))}), which cannot be in "
            "one batch: set a size of height and width, or do_center_crop, in its preprocessor_config.json"
        )


def _is_convolutional(config: transformers.PreTrainedConfig) -> bool:
    if config.model_type == "mobilenet_v2":
        return True
    widths = getattr(config, "hidden_sizes", None)
    return isinstance(widths, list | tuple) and not hasattr(config, "hidden_size")


def _width_of_map(config: transformers.PreTrainedConfig) -> int:
    """Channels of the last feature map of a convolutional network."""
    if config.model_type != "mobilenet_v2":
        return config.hidden_sizes[-1]
    if config.finegrained_output and config.depth_multiplier < 1:
        return 1280
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import apply_depth_multiplier

    return int(apply_depth_multiplier(config, 1280))  # type: ignore[arg-type]  # a configuration of MobileNetV2


def _picture_size(config: transformers.PreTrainedConfig) -> tuple[int, int]:
    size = getattr(config, "image_size", None)
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return (size, size) if isinstance(size, int) else (_TRIAL_SIDE, _TRIAL_SIDE)


def _frame_vectors(backbone: transformers.PreTrainedModel, frames: torch.Tensor) -> list[torch.Tensor]:
    """Frames (F, 3, height, width) -> a vector (F, H) of each at every layer, the output's last."""
    kind = backbone.config.model_type
    if _is_convolutional(backbone.config):
        return [backbone(pixel_values=frames).last_hidden_state.mean((-2, -1))]
    output = backbone(pixel_values=frames, output_hidden_states=True)
    vectors = [state[:, 0] if kind in _CLASS_TOKEN else state.mean(1) for state in with_output_last(output)]
    if kind in _POOLED_OUTPUT and output.pooler_output is not None:
        vectors[-1] = output.pooler_output
    return vectors


def _pictures(processor: TurnProcessor, turn: Any, number: int) -> torch.Tensor:
    """A turn -> its frames as the backbone takes them, (K, 3, height, width)."""
    frames = turn if hasattr(turn, "shape") else _decoded(turn, processor.num_frames, number)
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise InputError(
            f"Turn {number} of the batch must be a video, or frames of shape (frames, height, width, 3) in uint8, got "
            f"{frames.dtype} of shape {frames.shape}"
        )
    # The layout is named, since a picture of three pixels' height has two axes of three.
    pictures = processor.image_processor(list(frames), input_data_format="channels_last", return_tensors="pt")
    values = pictures.get("pixel_values")
    if not isinstance(values, torch.Tensor) or values.dim() != 4 or len(values) != len(frames):
        raise InputError(
            f"{type(processor.image_processor).__name__} does not make one picture of each frame, so a "
            f"{processor.backbone_type} backbone cannot take them"
        )
    return values


def _decoded(turn: Any, num_frames: int, number: int) -> np.ndarray:
    """The frames of a video, of which a dictionary may say `start` and `end` beside its path or bytes."""
    start = end = None
    if isinstance(turn, Mapping):
        start, end = turn.get("start"), turn.get("end")
        turn = {name: value for name, value in turn.items() if name not in ("start", "end")}
    if turn is None:
        raise InputError(f"Turn {number} of the batch has no video: {short(ascii(turn))}")
    return load_frames(turn, start, end, num_frames, name=f"turn {number} of the batch")
