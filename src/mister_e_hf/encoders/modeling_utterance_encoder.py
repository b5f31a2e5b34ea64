"""Utterance encoders, stage 1: the speech, text or video of one turn -> a vector and an emotion.

Dutta, Balaji and Ganapathy 2026, section 3.

Letters: N turns, W rows of the batch (a turn, or a window of a long one), P positions of a row, H the backbone's
width, D embedding width, C classes, S targets of a regression.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.utils import ModelOutput
from transformers.utils.hub import resolve_revision

from ..base.devices import moved
from ..base.errors import InputError
from ..base.losses import focal_loss, regression_loss
from ..base.remote_code import CarriesCode, write_auto_code
from ..base.target_scale import TargetScale
from ..hub.loading import (
    ACCESS_OPTIONS,
    check_weights,
    differences,
    explained,
    finish_loading,
    load_strictly,
    require_config,
)
from .adapters import ADAPTER, add_adapter, fetch_adapter, has_adapter, read_adapter, save_adapter, set_adapter_state
from .backbone_trial import try_backbone
from .backbones import (
    WEIGHT_OPTIONS,
    backbone_state,
    build_backbone,
    hold_batch_norm,
    kind_of,
    load_backbone,
    load_stored_backbone,
    stored_dtype,
    turn_off_augmentation,
    width_and_states,
)
from .configuration_utterance_encoder import UtteranceEncoderConfig
from .encoder_lora import lora_settings
from .fingerprint import encoder_fingerprint
from .layer_mixture import LayerMixture
from .pooling import UtterancePooling

_ACCESS_OPTIONS = (*ACCESS_OPTIONS, "force_download")
_HUB_OPTIONS = (*_ACCESS_OPTIONS, "revision", "subfolder")
ENCODER_INPUTS = (
    *("input_ids", "input_values", "input_features", "pixel_values"),
    *("attention_mask", "feature_attention_mask", "pooling_mask"),
)


@dataclass
class UtteranceEncoderOutput(ModelOutput):
    """
    Args:
        loss: focal or regression loss over the labelled turns, if labels were given.
        logits (`(N, C)`): scores of the classes; of a regression the predicted scores (N, S), in the labels' unit.
        embeddings (`(N, D)`): the vectors that stage 2 takes.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


class UtteranceEncoder(CarriesCode, PreTrainedModel):
    r"""
    A pretrained backbone; one of its hidden states, or a learned mixture of them; LayerNorm; pooling over the turn's
    own positions; a linear layer to the vector; ReLU, dropout, head. Padding and the other turns of a batch change
    nothing.
    """

    config_class = UtteranceEncoderConfig
    base_model_prefix = ""
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    config: UtteranceEncoderConfig
    backbone: PreTrainedModel

    def __init__(self, config: UtteranceEncoderConfig, with_backbone: bool = True, prepared: bool = True):
        r"""
        Args:
            config: with a `backbone_config`.
            with_backbone: False leaves the backbone out, for [`from_backbone`] and [`from_pretrained`] to put in.
            prepared: False leaves the backbone as its own weights fit it, to be frozen and given LoRA once they are
                loaded.
        """
        super().__init__(config)
        backbone_config = config.require_backbone_config()
        self.kind = kind_of(config.modality, backbone_config.model_type)
        if with_backbone:
            self.backbone = build_backbone(backbone_config, config.modality)
        width, states = width_and_states(config)
        if config.layer == "weighted_sum":
            self.layer_weights = nn.Parameter(torch.zeros(states))
        self.norm = nn.LayerNorm(width)
        self.pooling = UtterancePooling(config, width)
        self.projection = nn.Linear(self.pooling.output_width, config.embedding_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.embedding_dim, len(config.id2label or {}))
        if config.task == "regression":
            self.target_scale = TargetScale(config.num_labels)
        self.post_init()
        if with_backbone and prepared:
            self._prepare_backbone()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike,
        modality: str,
        revision: str | None = None,
        backbone_options: dict[str, Any] | None = None,
        **settings,
    ) -> "UtteranceEncoder":
        r"""
        Create an encoder around a pretrained model. Its pooling and head are not trained yet.

        Args:
            backbone: name on the Hub, or folder, of a speech, text or vision model of transformers.
            modality: `"speech"`, `"text"` or `"visual"`.
            revision: branch, tag or commit of the backbone; a branch is pinned to its commit.
            backbone_options: arguments of its `from_pretrained`: dtype, device_map, attn_implementation,
                quantization_config, token, local_files_only, cache_dir.
            settings: fields of [`UtteranceEncoderConfig`].

        Raises:
            InputError: if the model cannot encode the modality, or a setting is wrong.
        """
        options = {name: value for name, value in (backbone_options or {}).items() if value is not None}
        if unknown := set(options) - {*WEIGHT_OPTIONS, *_ACCESS_OPTIONS}:
            raise InputError(
                f"backbone_options has {sorted(unknown)}; known are {sorted({*WEIGHT_OPTIONS, *_ACCESS_OPTIONS})}"
            )
        where = {name: options[name] for name in ("token", "cache_dir", "local_files_only") if name in options}
        revision = resolve_revision(backbone, revision, **where)
        with explained(backbone, where | {"revision": revision}, or_pickle=True):
            model = load_backbone(str(backbone), revision, options, modality)
        config = cls.config_class(
            modality=modality,
            backbone=str(backbone),
            backbone_revision=getattr(revision, "resolved", revision),
            backbone_config=model.config,
            **settings,
        )
        encoder = cls(config, with_backbone=False)
        encoder.backbone = model
        encoder._prepare_backbone()
        try_backbone(encoder.backbone, modality)
        return encoder.eval()

    def _prepare_backbone(self):
        """Freeze what is not trained, add LoRA's layers, and turn off augmentations that fail on short turns."""
        turn_off_augmentation(self.backbone, self.backbone.config, self.config.require_backbone_config())
        self.backbone.requires_grad_(self.config.tuning == "full")
        for name, parameter in self.backbone.named_parameters():
            if self.kind.is_unused(name):
                parameter.requires_grad_(False)
        if self.config.tuning == "lora" and not has_adapter(self.backbone):
            add_adapter(self.backbone, lora_settings(self.config))
        self.train(self.training)

    @property
    def _depth(self) -> int | None:
        """How many of the backbone's layers are needed; None for all."""
        return self.config.layer if isinstance(self.config.layer, int) and self.config.layer >= 0 else None

    def train(self, mode: bool = True):
        super().train(mode)
        if hasattr(self, "backbone") and self.config.tuning == "frozen":
            self.backbone.eval()
        elif hasattr(self, "backbone") and self.kind.keeps_batch_norm:
            hold_batch_norm(self.backbone)
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            bound = module.weight.shape[1] ** -0.5
            initialization.uniform_(module.weight, -bound, bound)
            initialization.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)
        elif isinstance(module, TargetScale):
            initialization.zeros_(module.mean)
            initialization.ones_(module.std)
        elif module is self and self.config.layer == "weighted_sum":
            initialization.zeros_(module.layer_weights)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        pooling_mask: torch.Tensor | None = None,
        utterance_index: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> UtteranceEncoderOutput:
        r"""
        The inputs are what [`MisterEProcessor`] returns; which of them are needed depends on the kind of backbone.
        They may be on the host, where they are checked without waiting for the device.

        Args:
            input_ids (`(W, P)`): tokens of the text, or of the prompt of an audio language model.
            input_values (`(W, S)`): samples at 16 kHz, for models of waveforms.
            input_features (`(W, M, L)`): mel frames, for Whisper and Qwen2-Audio.
            attention_mask: true where `input_ids`, `input_values` or, without those, mel frames or the frames of a
                video are real.
            feature_attention_mask (`(W, L)`): true where mel frames beside tokens are real.
            pooling_mask (`(W, P)` for tokens, `(W, L)` for mel frames): true at the turn's own positions, without
                prompt and silence; by default `attention_mask`.
            utterance_index (`(W,)`): index of the turn that each row is a window of, ascending from 0; by default each
                row is a turn.
            labels (`(N,)`): class indices, -100 for a turn that is not scored; or scores (N, S), NaN where one is
                missing.
            num_items_in_batch: divisor of the loss; by default the number of labelled turns, or of scores, in this
                batch.
            pixel_values (`(W, K, 3, height, width)`): frames of each turn's video, for models of pictures.
        """
        frozen = self.config.tuning == "frozen"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            media = (input_ids, input_values, input_features, pixel_values)
            masks = (attention_mask, feature_attention_mask, pooling_mask)
            inputs = dict(zip(ENCODER_INPUTS, (*media, *masks), strict=True))
            states, mask = self.kind.run(self.backbone, inputs, self._depth)
            if self.config.layer != "weighted_sum":
                states = [states[-1 if self.config.layer is None else self.config.layer]]
        if utterance_index is None:
            utterance_index = torch.arange(len(mask), device=mask.device)
        utterance_index = utterance_index.to(mask.device)
        count = int(utterance_index[-1]) + 1
        steps = utterance_index.diff(prepend=utterance_index.new_tensor([-1]))
        if steps[0] != 1 or ((steps != 0) & (steps != 1)).any():
            raise InputError(f"utterance_index must ascend from 0 without gaps, got {utterance_index.tolist()}")
        positions = utterance_index.new_zeros(count).index_add(0, utterance_index, mask.sum(-1))
        if not positions.all():
            unheard = (positions == 0).nonzero()[:, 0].tolist()
            raise InputError(f"Turns {unheard} of the batch have no position to pool")
        places = mask.flatten().nonzero().squeeze(1)
        owners = utterance_index[:, None].expand_as(mask).flatten()[places]
        places, owners = moved(torch.stack([places, owners]), states[0].device).unbind()
        embeddings = self.projection(self.pooling(self.norm(self._pooled_states(states, places)), owners, count))
        logits = self.head(self.dropout(F.relu(embeddings)))
        if self.config.task == "regression":
            logits = self.target_scale(logits)
        loss = None if labels is None else self._loss(logits, labels, num_items_in_batch)
        return UtteranceEncoderOutput(loss=loss, logits=logits, embeddings=embeddings)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
        self.config.check_labels(labels, (len(logits),))
        labels = moved(labels, logits.device)
        if self.config.task == "regression":
            return regression_loss(logits, labels, self.config.regression_loss, self.config.huber_delta, num_items)
        given = self.config.label_weights()
        weights = None if given is None else logits.new_tensor(given)
        return focal_loss(logits, labels, self.config.focal_gamma, weights, num_items)

    def _pooled_states(self, states: list[torch.Tensor], places: torch.Tensor) -> torch.Tensor:
        """States (W, P, H) at R places among the W * P, mixed if there are several: (R, H)."""
        dtype = self.norm.weight.dtype
        if self.config.layer != "weighted_sum":
            return states[0].flatten(0, 1)[places].to(dtype)
        return LayerMixture.apply(self.layer_weights.softmax(0), places, dtype, *states)

    def fingerprint(self) -> str:
        """Hash of the settings and trained weights, see [`encoder_fingerprint`]."""
        return encoder_fingerprint(self)

    def trained_state(self, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """
        The weights in `model.safetensors`: without the backbone's, unless the checkpoint holds it; LoRA's are
        elsewhere.
        """
        state = self.state_dict() if state_dict is None else state_dict
        kept = {}
        for name, tensor in state.items():
            if name.startswith("backbone."):
                if not self.config.holds_backbone or "lora_" in name:
                    continue
                name = name.replace(".base_layer.", ".")  # as it is without LoRA around its module
            kept[name] = tensor
        return kept

    def save_pretrained(  # type: ignore[override]  # the other arguments are passed on by name
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ):
        r"""
        As [`~transformers.PreTrainedModel.save_pretrained`], but of the backbone only what was trained is saved,
        unless `config.save_backbone` is set. LoRA's weights are saved to `adapter/`, as an ordinary adapter of peft.
        """
        if self.config.tuning == "lora" and is_main_process:
            given = None if state_dict is None else backbone_state(state_dict)
            save_adapter(save_directory, self.backbone, lora_settings(self.config), given)
        self.config.require_backbone_config().dtype = self.backbone.dtype
        if is_main_process:
            write_auto_code(save_directory, type(self), "AutoModel", self.config)
        super().save_pretrained(
            save_directory, is_main_process=is_main_process, state_dict=self.trained_state(state_dict), **kwargs
        )

    def _get_files_timestamps(self, working_dir):
        # With push_to_hub=True, files that exist before transformers saves count as pushed already.
        return {name: time for name, time in super()._get_files_timestamps(working_dir).items() if name != ADAPTER}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.from_pretrained`]. A backbone that the checkpoint does not hold is loaded by
        its name and revision. With `ignore_mismatched_sizes=True` and a new `id2label`, the head is initialized again.

        Raises:
            InputError: naming the weights that are missing, unexpected or of another shape.
            OSError: if the backbone or adapter is missing; the message says how to supply it.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        other_classes = kwargs.pop("ignore_mismatched_sizes", False)
        hub = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        if config is None or isinstance(config, (str, os.PathLike)):
            source = pretrained_model_name_or_path if config is None else config
            require_config(source, hub, cls.config_class.check_type)
            fields = {*cls.config_class.__annotations__, "id2label", "label2id", "num_labels"} & set(kwargs)
            config = cls.config_class.from_pretrained(
                source,
                **hub,
                **{name: kwargs.pop(name) for name in fields},
            )
        if config.backbone_config is None:
            raise InputError(f"The configuration in '{pretrained_model_name_or_path}' has no backbone_config")
        dtype = stored_dtype(pretrained_model_name_or_path, config, kwargs.get("dtype", kwargs.get("torch_dtype")))
        backbone = None
        if not config.holds_backbone:
            options = {name: kwargs[name] for name in (*WEIGHT_OPTIONS, *_ACCESS_OPTIONS) if name in kwargs}
            options = {name: value for name, value in options.items() if name != "torch_dtype"} | {"dtype": dtype}
            place = "/".join(map(str, filter(None, (pretrained_model_name_or_path, kwargs.get("subfolder")))))
            backbone = load_stored_backbone(place, config, options)
            kwargs.pop("quantization_config", None)
        # The backbone's own weights are those before LoRA, whether they are in this checkpoint or not.
        model: UtteranceEncoder
        model, info = load_strictly(
            super().from_pretrained,  # type: ignore[arg-type]  # with output_loading_info, it returns a pair
            pretrained_model_name_or_path,
            *args,
            config=config,
            reinitialized=(lambda weight: weight.startswith(("head.", "target_scale."))) if other_classes else None,
            with_backbone=backbone is None,
            prepared=False,
            **kwargs,
        )
        if backbone is None and dtype is not None:
            for parameter in model.backbone.parameters():
                parameter.data = parameter.data.to(dtype)
        if backbone is not None:
            model.backbone = backbone
        model._prepare_backbone()
        if config.tuning == "lora":
            with explained(pretrained_model_name_or_path, kwargs):
                adapter = fetch_adapter(pretrained_model_name_or_path, hub)
                set_adapter_state(model.backbone, lora_settings(config), adapter)
        model.eval()
        finish_loading(model, pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    def load_trained_weights(self, folder: str | os.PathLike):
        """Load the weights of a checkpoint of this encoder. A backbone that was not trained is left as it is."""
        if self.config.holds_backbone:
            # With transformers' own loading, which handles shards and weights whose names in files differ.
            state, expected = type(self).from_pretrained(folder).state_dict(), self.state_dict()
        else:
            state, expected = load_file(os.path.join(folder, "model.safetensors")), self.trained_state()
            check_weights(state.items(), f"The weights in '{folder}'")
        if listed := differences(state, expected):
            raise InputError(f"'{folder}' is not a checkpoint of this encoder ({listed})")
        self.load_state_dict(state, strict=False)
        if self.config.tuning == "lora" and not self.config.holds_backbone:
            set_adapter_state(self.backbone, lora_settings(self.config), read_adapter(folder))
