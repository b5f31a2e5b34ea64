"""Stage 1: one utterance's speech or text -> a vector, and an emotion (Dutta, Balaji and Ganapathy 2026, section 3).

Letters: N utterances, W rows of the batch (an utterance, or a window of a long one), P positions of a row, L layers, H the backbone's width, D
embedding width, C classes.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.utils import ModelOutput, logging
from transformers.utils.hub import resolve_revision

from ..base.errors import InputError, short
from ..base.losses import focal_loss
from ..base.remote_code import CarriesCode, write_code
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
from .backbones import WEIGHT_OPTIONS, build_backbone, computation, kind_of, load_backbone, load_stored_backbone
from .configuration_utterance_encoder import UtteranceEncoderConfig
from .pooling import UtterancePooling

logger = logging.get_logger(__name__)

_ACCESS_OPTIONS = (*ACCESS_OPTIONS, "force_download")
_HUB_OPTIONS = (*_ACCESS_OPTIONS, "revision", "subfolder")


@dataclass
class UtteranceEncoderOutput(ModelOutput):
    """
    Args:
        loss: focal loss of the labelled utterances, where labels were given.
        logits (`(N, C)`): scores.
        embeddings (`(N, D)`): the vector that stage 2 takes.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


class UtteranceEncoder(CarriesCode, PreTrainedModel):
    r"""
    A pretrained backbone; one of its hidden states, or a learned mixture of them; LayerNorm; pooling over the utterance's own positions;
    a linear layer to the vector; ReLU, dropout, head. Padding, and what a row is batched with, change nothing.
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
            prepared: False leaves the backbone as its own weights fit it, to be frozen and given LoRA once they are loaded.
        """
        super().__init__(config)
        backbone_config = config.require_backbone_config()
        self.kind = kind_of(config.modality, backbone_config.model_type)
        if with_backbone:
            self.backbone = build_backbone(backbone_config, config.modality)
        width, layers = self.kind.sizes(backbone_config)
        states = layers + 1
        if isinstance(config.layer, int) and not -states <= config.layer < states:
            raise InputError(f"layer {config.layer} is none of the backbone's {states} hidden states")
        if config.layer == "weighted_sum":
            self.layer_weights = nn.Parameter(torch.zeros(states))
        self.norm = nn.LayerNorm(width)
        self.pooling = UtterancePooling(config, width)
        self.projection = nn.Linear(self.pooling.output_width, config.embedding_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.embedding_dim, len(config.id2label or {}))
        self.post_init()
        if with_backbone and prepared:
            self._prepare_backbone()

    # Making one

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
        A new encoder around a pretrained model, its pooling and head not trained yet.

        Args:
            backbone: name on the Hub, or folder, of a speech or text model of transformers.
            modality: `"speech"` or `"text"`.
            revision: branch, tag or commit of the backbone; a branch is pinned to its commit.
            backbone_options: for its `from_pretrained`: dtype, device_map, attn_implementation, quantization_config, token, local_files_only,
                cache_dir.
            settings: fields of [`UtteranceEncoderConfig`].
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
        """Freeze what is not trained; LoRA gets its layers; augmentations that a short utterance cannot take are off."""
        for config in {id(config): config for config in (self.backbone.config, self.config.backbone_config)}.values():
            for field, off in (("apply_spec_augment", False), ("layerdrop", 0.0), ("encoder_layerdrop", 0.0)):
                if hasattr(config, field):
                    setattr(config, field, off)
        for module in self.backbone.modules():
            if isinstance(getattr(module, "layerdrop", None), float):
                module.layerdrop = 0.0
        self.backbone.requires_grad_(self.config.tuning == "full")
        for name, parameter in self.backbone.named_parameters():
            if self.kind.is_unused(name):
                parameter.requires_grad_(False)
        if self.config.tuning == "lora" and not has_adapter(self.backbone):
            add_adapter(self.backbone, self.config)
        self.train(self.training)

    @property
    def _depth(self) -> int | None:
        """How many of the backbone's layers are needed; None for all."""
        return self.config.layer if isinstance(self.config.layer, int) and self.config.layer >= 0 else None

    def train(self, mode: bool = True):
        super().train(mode)
        if hasattr(self, "backbone") and self.config.tuning == "frozen":
            self.backbone.eval()
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
        elif module is self and self.config.layer == "weighted_sum":
            initialization.zeros_(module.layer_weights)

    # Running it

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
    ) -> UtteranceEncoderOutput:
        r"""
        What [`MisterEProcessor`] makes.

        Args:
            input_ids (`(W, P)`): tokens of the text, or of a model of speech and language.
            input_values (`(W, S)`): samples at 16 kHz, for models of waveforms.
            input_features (`(W, M, L)`): mel frames, for Whisper and Qwen2-Audio.
            attention_mask: true where `input_ids`, `input_values` or else the mel frames are real.
            feature_attention_mask (`(W, L)`): the same of mel frames beside tokens.
            pooling_mask (`(W, P)` of tokens, `(W, L)` of mel frames): true at the utterance's own, prompt and silence left out; by default what
                `attention_mask` says.
            utterance_index (`(W,)`): which of the N utterances each row is a window of, ascending from 0; by default each its own.
            labels (`(N,)`): class indices, -100 where nothing is to be scored.
            num_items_in_batch: divisor of the loss; by default this batch's labelled utterances.
        """
        frozen = self.config.tuning == "frozen"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            inputs = {
                "input_ids": input_ids,
                "input_values": input_values,
                "input_features": input_features,
                "attention_mask": attention_mask,
                "feature_attention_mask": feature_attention_mask,
                "pooling_mask": pooling_mask,
            }
            states, mask = self.kind.run(self.backbone, inputs, self._depth)
            if self.config.layer != "weighted_sum":
                states = [states[-1 if self.config.layer is None else self.config.layer]]
        if utterance_index is None:
            utterance_index = torch.arange(len(mask), device=mask.device)
        count = int(utterance_index[-1]) + 1
        if (utterance_index.diff() < 0).any() or len(utterance_index.unique()) != count:
            raise InputError(f"utterance_index must ascend from 0 without gaps, got {utterance_index.tolist()}")
        positions = torch.zeros(count, dtype=torch.long, device=mask.device).index_add(
            0, utterance_index, mask.sum(-1)
        )
        if not positions.all():
            raise InputError(
                f"Utterances {(positions == 0).nonzero()[:, 0].tolist()} of the batch have no position to pool"
            )
        mixed = self._mixed([state[mask].to(self.norm.weight.dtype) for state in states])
        utterance = utterance_index[:, None].expand_as(mask)[mask]
        embeddings = self.projection(self.pooling(self.norm(mixed), utterance, count))
        logits = self.head(self.dropout(F.relu(embeddings)))
        loss = None
        if labels is not None:
            self.config.check_labels(labels, (count,))
            weights = self.config.label_weights()
            weights = None if weights is None else logits.new_tensor(weights)
            loss = focal_loss(logits, labels, self.config.focal_gamma, weights, num_items_in_batch)
        return UtteranceEncoderOutput(loss=loss, logits=logits, embeddings=embeddings)

    def _mixed(self, states: list[torch.Tensor]) -> torch.Tensor:
        if self.config.layer != "weighted_sum":
            return states[0]
        weights = self.layer_weights.softmax(0)
        mixed = weights[0] * states[0]
        for weight, state in zip(weights[1:], states[1:], strict=True):
            mixed = mixed + weight * state
        return mixed

    def fingerprint(self) -> str:
        r"""
        A hash of the settings and of every weight that was trained; of a backbone whose weights are kept elsewhere, of its name, revision and
        dtype. No library's version takes part.
        """
        digest = hashlib.blake2b(digest_size=16)
        described = {name: getattr(self.config, name) for name in type(self.config).own_fields()}
        described["id2label"] = self.config.id2label
        described["backbone_config"] = computation(self.config.require_backbone_config())
        if self.config.holds_backbone:
            del described["backbone"], described["backbone_revision"]  # where it once came from
        else:
            described["dtype"] = str(self.backbone.dtype)
        digest.update(json.dumps(described, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if self.config.holds_backbone or not name.startswith("backbone.") or "lora_" in name:
                tensor = tensor.detach().cpu().contiguous()
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    # Saving and loading

    def trained_state(self, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """The weights that `model.safetensors` holds: everything but the backbone, and that too where the checkpoint holds it. LoRA's are elsewhere."""
        state = self.state_dict() if state_dict is None else state_dict
        kept = {}
        for name, tensor in state.items():
            if name.startswith("backbone."):
                if not self.config.holds_backbone or "lora_" in name:
                    continue
                name = name.replace(".base_layer.", ".")  # as it is without LoRA around its module
            kept[name] = tensor
        return kept

    def save_pretrained(self, save_directory, *args, state_dict: dict[str, torch.Tensor] | None = None, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.save_pretrained`], but of the backbone only what was trained, unless `config.save_backbone`: LoRA's weights
        go to `adapter/`, as an ordinary adapter of peft.
        """
        if self.config.tuning == "lora" and kwargs.get("is_main_process", True):
            inner = (
                None
                if state_dict is None
                else {n.removeprefix("backbone."): t for n, t in state_dict.items() if n.startswith("backbone.")}
            )
            save_adapter(save_directory, self.backbone, self.config, inner)
        self.config.require_backbone_config().dtype = self.backbone.dtype
        if kwargs.get("is_main_process", True):
            (name,) = write_code(save_directory, type(self))
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), "AutoModel": name}
        super().save_pretrained(save_directory, *args, state_dict=self.trained_state(state_dict), **kwargs)

    def _get_files_timestamps(self, working_dir):
        # With push_to_hub=True, what stands there before transformers saves is taken for pushed already.
        return {name: time for name, time in super()._get_files_timestamps(working_dir).items() if name != ADAPTER}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.from_pretrained`]; where the checkpoint does not hold the backbone, that is loaded by its name and
        revision. With `ignore_mismatched_sizes=True` and a new `id2label` the head starts anew.

        Raises:
            ValueError: naming the weights that are missing, unexpected or of another shape.
            OSError: if the backbone or the adapter is not there, with the way out.
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
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        if dtype in (None, "auto"):
            dtype = config.backbone_config.dtype  # which need not be that of what was trained on top
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
        if not isinstance(dtype, torch.dtype | None):
            raise InputError(
                f"'{pretrained_model_name_or_path}' gives its backbone the dtype {short(repr(dtype), 80)}"
            )
        backbone = None
        if not config.holds_backbone:
            options = {name: kwargs[name] for name in (*WEIGHT_OPTIONS, *_ACCESS_OPTIONS) if name in kwargs}
            options = {name: value for name, value in options.items() if name != "torch_dtype"} | {"dtype": dtype}
            backbone = load_stored_backbone(pretrained_model_name_or_path, config, options)
            kwargs.pop("quantization_config", None)
        # The backbone comes as it was before LoRA, from here or from its own repository.
        model, info = load_strictly(
            super().from_pretrained,
            pretrained_model_name_or_path,
            *args,
            config=config,
            reinitialized=(lambda weight: weight.startswith("head.")) if other_classes else None,
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
                set_adapter_state(model.backbone, config, fetch_adapter(pretrained_model_name_or_path, hub))
        model.eval()
        finish_loading(model, pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    def load_trained_weights(self, folder: str | os.PathLike):
        """Take the weights of a checkpoint of this very encoder, the backbone staying where it was not trained."""
        if self.config.holds_backbone:
            # By transformers' own loading, which knows shards, and that files have other names for some models' weights.
            state, expected = type(self).from_pretrained(folder).state_dict(), self.state_dict()
        else:
            state, expected = load_file(os.path.join(folder, "model.safetensors")), self.trained_state()
            check_weights(state.items(), f"The weights in '{folder}'")
        if listed := differences(state, expected):
            raise InputError(f"'{folder}' is no checkpoint of this encoder ({listed})")
        self.load_state_dict(state, strict=False)
        if self.config.tuning == "lora" and not self.config.holds_backbone:
            set_adapter_state(self.backbone, self.config, read_adapter(folder))
