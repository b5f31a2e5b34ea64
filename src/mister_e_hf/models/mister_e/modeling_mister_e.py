"""The stage-2 conversation model: speech, text and fusion experts over a dialogue's turns, mixed by a gate per turn.

Dutta, Balaji and Ganapathy, "A Mixture-of-Experts Model for Multimodal Emotion Recognition in Conversations", Computer Speech &
Language 100, 2026, 101965 (arXiv 2602.23300).

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), Ds and Dt embedding widths,
H hidden, A attention width, C classes, E experts in the order speech, text, fusion.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.utils import ModelOutput, logging
from transformers.utils.hub import resolve_revision

from ...base.errors import InputError, MissingLibraryError
from ...base.losses import IGNORE_INDEX, focal_terms
from ...base.remote_code import CarriesCode, write_code
from ...hub.loading import ACCESS_OPTIONS, explained, refuse_misfits, require_config, settle
from ..turns import DialogueCache, TurnLayout
from .configuration_mister_e import TASK, MisterEConfig

logger = logging.get_logger(__name__)

_PIPELINE = "ConversationEmotionPipeline"
# In the package, or among the code of a checkpoint, all of whose files are beside each other.
_PIPELINE_FILES = [
    folder / "pipeline_conversation_emotion.py"
    for folder in (Path(__file__).parents[2] / "inference", Path(__file__).parent)
]


@dataclass
class MisterEOutput(ModelOutput):
    """
    Output of [`MisterEModel`]; zero at padding.

    Args:
        loss (`()`, when labels are given): focal loss of the mixture and of each expert, added up.
        logits (`(B, T, C)`): the mixture's scores before the softmax.
        expert_logits (`(B, T, E, C)`): each expert's scores.
        gate_weights (`(B, T, E)`): the gate's weights; they sum to one, and an absent modality's expert has exactly 0.
        speech_states, text_states (`(B, T, H)`): final states of the fusion expert, None where there is no such expert.
        speech_mask, text_mask (`(B, T)`, bool): where the modality counted as present, after modality dropout.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    expert_logits: torch.Tensor | None = None
    gate_weights: torch.Tensor | None = None
    speech_states: torch.Tensor | None = None
    text_states: torch.Tensor | None = None
    speech_mask: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None


class ModalityTurns(NamedTuple):
    """
    One modality's vectors at the real turns, standardised (N, D), zero where `absent` (N, 1); `null` (D,) stands there.
    `absent` is None where no turn lacks the modality.
    """

    vectors: torch.Tensor
    absent: torch.Tensor | None
    null: torch.Tensor


class ModalityInput(nn.Module):
    """Standardises one modality's vectors and learns the vector that stands for an absent one."""

    def __init__(self, embedding_dim: int, feature_clip: float | None):
        super().__init__()
        self.feature_clip = feature_clip
        self.register_buffer("mean", torch.zeros(embedding_dim))
        self.register_buffer("std", torch.ones(embedding_dim))
        self.null_embedding = nn.Parameter(torch.zeros(embedding_dim))

    @torch.no_grad()
    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor):
        """mean, std (D,) of the training vectors. A dimension that does not vary is only centred."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0))

    def forward(self, embeddings: torch.Tensor, present: torch.Tensor) -> ModalityTurns:
        """embeddings (N, D), present (N,)"""
        vectors = (embeddings.to(self.mean) - self.mean) / self.std
        if self.feature_clip is not None:
            vectors = vectors.clamp(-self.feature_clip, self.feature_clip)
        if present.all():
            return ModalityTurns(vectors, None, self.null_embedding)
        absent = ~present[:, None]
        return ModalityTurns(vectors.masked_fill(absent, 0.0), absent.to(vectors), self.null_embedding)


def project(turns: ModalityTurns, weight: torch.Tensor) -> torch.Tensor:
    # Equal to a linear map of the vectors with the null vector put in, but no gradient of the (N, D) input is needed.
    rows = F.linear(turns.vectors, weight)
    return rows if turns.absent is None else rows + turns.absent * F.linear(turns.null, weight)


class TurnLinear(nn.Linear):
    """Linear map of one modality's vectors, absent ones included: [`ModalityTurns`] -> (N, H)."""

    def forward(self, turns: ModalityTurns) -> torch.Tensor:
        # 0 * null: a parameter without a gradient would hold up the other processes
        return project(turns, self.weight) + (self.bias + 0.0 * turns.null.sum())


class TurnConvolution(nn.Module):
    """1-D convolution over a dialogue's turns: one matrix product for all taps, then sums over neighbouring rows."""

    def __init__(self, embedding_dim: int, hidden_size: int, kernel_size: int, causal: bool):
        super().__init__()
        first = 1 - kernel_size if causal else -(kernel_size // 2)
        self.offsets = range(first, first + kernel_size)
        self.weight = nn.Parameter(torch.empty(kernel_size, hidden_size, embedding_dim))
        self.bias = nn.Parameter(torch.empty(hidden_size))

    def forward(self, turns: ModalityTurns, layout: TurnLayout) -> torch.Tensor:
        taps = project(turns, self.weight.flatten(0, 1)).unflatten(1, (len(self.offsets), -1))  # [N, k, H]
        total = self.bias
        for rows, offset in zip(taps.unbind(1), self.offsets, strict=True):
            total = total + layout.neighbours(rows, offset, self)
        return total


class ContextExpert(nn.Module):
    """One modality in its context: parallel convolutions, a GRU, a linear skip from the input and a head."""

    def __init__(self, config: MisterEConfig, embedding_dim: int):
        super().__init__()
        hidden = config.hidden_size
        self.skip = TurnLinear(embedding_dim, hidden)
        self.dropout = nn.Dropout(config.context_dropout)
        self.head = nn.Linear(hidden, config.num_labels)
        self.has_context = config.context_layer
        if self.has_context:
            self.convolutions = nn.ModuleList(
                TurnConvolution(embedding_dim, hidden, size, config.causal) for size in config.context_kernel_sizes
            )
            self.gru = nn.GRU(
                hidden,
                hidden if config.causal else hidden // 2,
                num_layers=config.context_num_layers,
                bidirectional=not config.causal,
                batch_first=True,
                dropout=config.context_dropout if config.context_num_layers > 1 else 0.0,
            )

    def forward(self, turns: ModalityTurns, layout: TurnLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, C) and the states (N, H) that they are read off."""
        states = self.skip(turns)
        if self.has_context:
            local = sum(F.relu(convolution(turns, layout)) for convolution in self.convolutions)
            states = states + layout.recur(self.gru, self.dropout(local))
        return self.head(self.dropout(states)), states


class TurnAttention(nn.Module):
    """Multi-head attention from the turns of one stream to those of another within each dialogue: (N, H) -> (N, H)."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.causal = config.causal
        self.query = nn.Linear(config.hidden_size, config.attention_dim)
        self.key = nn.Linear(config.hidden_size, config.attention_dim)
        self.value = nn.Linear(config.hidden_size, config.attention_dim)
        self.output = nn.Linear(config.attention_dim, config.hidden_size)
        self.log_slopes = nn.Parameter(torch.empty(config.num_attention_heads)) if config.attention_decay else None

    def forward(self, stream: torch.Tensor, other: torch.Tensor, layout: TurnLayout) -> torch.Tensor:
        attended = layout.attend(
            self.query(stream),
            self.key(other),
            self.value(other),
            self.num_heads,
            self.causal,
            self.dropout if self.training else 0.0,
            self,
            None if self.log_slopes is None else self.log_slopes.exp(),
        )
        return self.output(attended)


class CoAttentionLayer(nn.Module):
    """Text attends to speech and speech to text, then each stream to itself; residual and LayerNorm after either."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        self.speech_to_text = TurnAttention(config)
        self.text_to_speech = TurnAttention(config)
        self.speech_to_speech = TurnAttention(config)
        self.text_to_text = TurnAttention(config)
        self.speech_cross_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.text_cross_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.speech_self_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.text_self_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, speech: torch.Tensor, text: torch.Tensor, layout: TurnLayout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """speech, text (N, H) -> (N, H) each"""
        speech, text = (
            self.speech_cross_norm(speech + self.speech_to_text(speech, text, layout)),
            self.text_cross_norm(text + self.text_to_speech(text, speech, layout)),
        )
        speech = self.speech_self_norm(speech + self.speech_to_speech(speech, speech, layout))
        text = self.text_self_norm(text + self.text_to_text(text, text, layout))
        return speech, text


class FusionExpert(nn.Module):
    """Both modalities together: co-attention, or concatenation of one projection each."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        hidden = config.hidden_size
        co_attention = config.fusion == "co_attention"
        self.speech_projection = TurnLinear(config.speech_embedding_dim, hidden)
        self.text_projection = TurnLinear(config.text_embedding_dim, hidden)
        self.dropout = nn.Dropout(config.projection_dropout)
        self.layers = nn.ModuleList(CoAttentionLayer(config) for _ in range(config.fusion_num_layers * co_attention))
        self.speech_skip = TurnLinear(config.speech_embedding_dim, hidden) if co_attention else None
        self.text_skip = TurnLinear(config.text_embedding_dim, hidden) if co_attention else None
        self.norm = nn.LayerNorm(2 * hidden, eps=config.layer_norm_eps)
        self.dense = nn.Linear(2 * hidden, hidden)
        self.head = nn.Linear(hidden, config.num_labels)

    def forward(
        self, speech: ModalityTurns, text: ModalityTurns, context: Mapping[str, torch.Tensor], layout: TurnLayout
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`context`: states (N, H) by modality to begin with beside the vectors. Logits (N, C), final speech and text states (N, H)."""
        speech_states = self.dropout(self.speech_projection(speech) + context.get("speech", 0.0))
        text_states = self.dropout(self.text_projection(text) + context.get("text", 0.0))
        for layer in self.layers:
            speech_states, text_states = layer(speech_states, text_states, layout)
        if self.layers:
            speech_states = speech_states + self.speech_skip(speech)
            text_states = text_states + self.text_skip(text)
        fused = self.norm(torch.cat([text_states, speech_states], dim=-1))
        return self.head(F.relu(self.dense(fused))), speech_states, text_states


class ExpertGate(nn.Module):
    """Weights of the experts at each turn from their logits; an expert that is not available gets exactly 0."""

    def __init__(self, config: MisterEConfig):
        super().__init__()
        num_experts = len(config.experts)
        self.learned = config.gate == "learned" and num_experts > 1
        self.temperature = config.gate_temperature
        if self.learned:
            self.dense = nn.Linear(num_experts * config.num_labels, config.gate_hidden_size)
            self.output = nn.Linear(config.gate_hidden_size, num_experts)

    def forward(self, expert_logits: torch.Tensor, available: torch.Tensor) -> torch.Tensor:
        """expert_logits (N, E, C), available (N, E) with at least one true in each row -> (N, E)"""
        if not self.learned:
            return available.to(expert_logits) / available.sum(1, keepdim=True)
        seen = expert_logits.masked_fill(~available[..., None], 0.0)
        scores = self.output(F.relu(self.dense(seen.flatten(1)))) / self.temperature
        return scores.masked_fill(~available, -torch.inf).softmax(-1)


class MisterEPreTrainedModel(CarriesCode, PreTrainedModel):
    """Any model of a dialogue's speech and text vectors: its first weights, the checks of its inputs, and its checkpoint folder."""

    config_class = MisterEConfig
    base_model_prefix = ""
    main_input_name = "speech_embeddings"
    accepts_loss_kwargs = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As torch initialises each layer; the published code trains from there."""
        if isinstance(module, (nn.Linear, TurnConvolution)):
            fan_in = module.weight.shape[-1] * (module.weight.shape[0] if isinstance(module, TurnConvolution) else 1)
            initialization.uniform_(module.weight, -(fan_in**-0.5), fan_in**-0.5)
            if module.bias is not None:
                initialization.uniform_(module.bias, -(fan_in**-0.5), fan_in**-0.5)
        elif isinstance(module, TurnAttention) and module.log_slopes is not None:
            heads = torch.arange(1, module.num_heads + 1, device=module.log_slopes.device)
            initialization.copy_(module.log_slopes, -heads * math.log(2.0))
        elif isinstance(module, (nn.GRU, nn.GRUCell)):
            for parameter in module.parameters():
                initialization.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, nn.LayerNorm):
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)
        elif isinstance(module, ModalityInput):
            initialization.zeros_(module.mean)
            initialization.ones_(module.std)
            initialization.zeros_(module.null_embedding)

    def class_weights(self, like: torch.Tensor) -> torch.Tensor | None:
        """The configured class weights (C,), or None."""
        weights = self.config.label_weights()
        return None if weights is None else like.new_tensor(weights)

    def _check_inputs(self, speech_embeddings, text_embeddings, attention_mask, speech_mask, text_mask):
        """Masks as (B, T) booleans: the real turns, and per modality the turns where it is present."""
        given = {"speech": speech_embeddings, "text": text_embeddings}
        shapes = {f"{name}_embeddings": tuple(v.shape) for name, v in given.items() if v is not None}
        if not shapes:
            raise InputError(f"{type(self).__name__} needs speech_embeddings, text_embeddings or both; got neither")
        for name, embeddings in given.items():
            width = getattr(self.config, f"{name}_embedding_dim")
            if embeddings is not None and (embeddings.dim() != 3 or embeddings.shape[-1] != width):
                raise InputError(
                    f"{name}_embeddings must have shape (B, T, {width}) as config.{name}_embedding_dim says, "
                    f"got {tuple(embeddings.shape)}"
                )
        batch_shape = next(iter(shapes.values()))[:2]
        if any(shape[:2] != batch_shape for shape in shapes.values()) or 0 in batch_shape:
            raise InputError(f"embeddings must agree in B and T, both at least 1; got {shapes}")
        masks = {"attention_mask": attention_mask, "speech_mask": speech_mask, "text_mask": text_mask}
        for name, mask in masks.items():
            if mask is not None and tuple(mask.shape) != batch_shape:
                raise InputError(f"{name} must have shape (B, T) = {batch_shape}, got {tuple(mask.shape)}")
        device = next(v.device for v in given.values() if v is not None)
        everywhere = torch.ones(batch_shape, dtype=torch.bool, device=device)
        real = everywhere if attention_mask is None else attention_mask.bool()
        present = {}
        for name, embeddings in given.items():
            mask = masks[f"{name}_mask"]
            if embeddings is None:
                if mask is not None and (mask.bool() & real).any():
                    raise InputError(f"{name}_mask is true at some turns, but {name}_embeddings is None")
                present[name] = ~everywhere
            else:
                present[name] = real if mask is None else real & mask.bool()
        return real, present

    def _labels(self, labels: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Labels (B, T), -100 at padding whatever it holds, and checked."""
        if labels.shape == real.shape:
            labels = labels.masked_fill(~real, IGNORE_INDEX)
        self.config.check_labels(labels, real.shape)
        return labels

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.from_pretrained`], but weights that are missing, unexpected or of another shape
        raise.

        With `ignore_mismatched_sizes=True` and a new `id2label` the heads and the gate start anew, and one warning lists
        them: fine-tuning to one's own classes.

        Raises:
            ValueError: naming the weights that do not fit.
            OSError: naming the file that is damaged, or if there is none in safetensors.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        other_classes = kwargs.pop("ignore_mismatched_sizes", False)
        # another shape is let through here, to be refused below by name
        # What else lies there, such as the encoders, is had from the same commit, whatever is pushed meanwhile.
        hub_options = {name: kwargs[name] for name in ACCESS_OPTIONS if kwargs.get(name) is not None}
        if kwargs.get("config") is None:  # else the caller knows better, and AutoModel has read it
            require_config(pretrained_model_name_or_path, kwargs, cls.config_class.check_type)
        revision = resolve_revision(pretrained_model_name_or_path, kwargs.get("revision"), **hub_options)
        if revision is not None:
            kwargs["revision"], hub_options["revision"] = revision, getattr(revision, "resolved", revision)
        with explained(pretrained_model_name_or_path, kwargs):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **{"use_safetensors": True, **kwargs},
            )
        anew = [name for name, _ in model.named_parameters() if name.startswith("gate.") or ".head." in f".{name}"]
        refuse_misfits(pretrained_model_name_or_path, info, anew if other_classes else ())
        if other_classes and (
            info["mismatched_keys"]
            or model.config.id2label != cls._stored_labels(pretrained_model_name_or_path, kwargs)
        ):
            model._start_anew(anew)
            logger.warning(
                f"'{pretrained_model_name_or_path}' was trained for other classes. Starting anew, to be trained before "
                f"use: {', '.join(anew)}."
            )
        model.hub_options = hub_options
        settle(model, pretrained_model_name_or_path)
        for name, buffer in model.named_buffers():
            if name.endswith(".std") and not (buffer > 0).all():
                raise InputError(
                    f"'{pretrained_model_name_or_path}': the standard deviations in '{name}' must be positive"
                )
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.save_pretrained`], with the code of the model and of the pipeline:
        `pipeline("conversation-emotion-recognition", model=folder, trust_remote_code=True)` needs no more.
        """
        if kwargs.get("is_main_process", True):
            name, *pipeline = write_code(save_directory, type(self), *(p for p in _PIPELINE_FILES if p.is_file()))
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), "AutoModel": name}
            for file in pipeline:
                self.config.custom_pipelines = {TASK: {"impl": f"{file}.{_PIPELINE}", "pt": ["AutoModel"]}}
        hub = {
            name: kwargs.pop(name) for name in ("repo_id", "commit_message", "private", "revision") if name in kwargs
        }
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            vars(self.config).pop("custom_pipelines", None)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"), **hub)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> str:
        """
        Push the checkpoint folder: this model, and the card, recipe and encoders of the folder it was loaded from; returns the repository's id.

        Raises:
            ImportError: for a model loaded with the code of its checkpoint where this package is not installed.
        """
        try:
            from mister_e_hf.hub.checkpoint import push_model
        except ImportError as error:
            raise MissingLibraryError("Pushing a model needs the package: pip install mister-e-hf") from error

        return push_model(self, repo_id, commit_message, token, private, revision)

    @classmethod
    def _stored_labels(cls, pretrained_model_name_or_path, kwargs: dict) -> dict[int, str]:
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        stored, _ = cls.config_class.get_config_dict(
            pretrained_model_name_or_path, **{name: kwargs[name] for name in names if name in kwargs}
        )
        return cls.config_class(**stored).id2label

    def _start_anew(self, names: list[str]):
        for name in names:
            module = self.get_submodule(name.rpartition(".")[0])
            for parameter in module.parameters():
                parameter._is_hf_initialized = False
            self._init_weights(module)


class MisterEModel(MisterEPreTrainedModel):
    r"""
    MiSTER-E, stage 2: an emotion for every turn of a dialogue from its speech and text vectors, without using who speaks.

    Padding and absent modalities are ignored whatever they hold, NaN included. At a turn where no existing expert's
    modality is present (both absent and no fusion expert), all experts count: they still see the neighbouring turns.
    """

    def __init__(self, config: MisterEConfig):
        super().__init__(config)
        has_fusion = "fusion" in config.experts
        clip = config.feature_clip
        if has_fusion or "speech" in config.experts:
            self.speech_input = ModalityInput(config.speech_embedding_dim, clip)
        if has_fusion or "text" in config.experts:
            self.text_input = ModalityInput(config.text_embedding_dim, clip)
        if "speech" in config.experts:
            self.speech_expert = ContextExpert(config, config.speech_embedding_dim)
        if "text" in config.experts:
            self.text_expert = ContextExpert(config, config.text_embedding_dim)
        if has_fusion:
            self.fusion_expert = FusionExpert(config)
        self.gate = ExpertGate(config)
        self.post_init()

    def forward(
        self,
        speech_embeddings: torch.Tensor | None = None,
        text_embeddings: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        speech_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        past: DialogueCache | None = None,
    ) -> MisterEOutput:
        r"""
        Args:
            speech_embeddings (`(B, T, Ds)`), text_embeddings (`(B, T, Dt)`):
                one vector per turn. One of the two may be None: it is then absent at every turn.
            attention_mask (`(B, T)`): true (or 1) where the turn is real; by default everywhere. Padding may stand anywhere.
            speech_mask, text_mask (`(B, T)`): true where the modality was given; by default at every real turn.
            labels (`(B, T)`): class indices, -100 where nothing is to be scored.
            num_items_in_batch: scored turns of the whole optimizer step, the divisor of the loss; by default this batch's.
            past: of a causal model, the past of one dialogue (B = 1), whose next turns these are. What it knows is not computed again,
                and it knows these turns afterwards.

        Raises:
            ValueError: if no embeddings are given, or their shapes, the masks' and the configuration's disagree.
        """
        real, masks = self._check_inputs(speech_embeddings, text_embeddings, attention_mask, speech_mask, text_mask)
        # A batch of nothing but padding still has to take part in a distributed step: one stand-in turn, weighing nothing.
        weight = real.any()
        layout = self._layout(real if weight else torch.ones_like(real), past)
        modalities, present = {}, {}
        for name, embeddings in (("speech", speech_embeddings), ("text", text_embeddings)):
            present[name] = layout.flatten(masks[name])
            if self.training and self.config.modality_dropout:
                kept = torch.rand(layout.count, device=real.device) >= self.config.modality_dropout
                present[name] = present[name] & kept
            if hasattr(self, f"{name}_input"):
                module = getattr(self, f"{name}_input")
                vectors = module.mean.expand(layout.count, -1) if embeddings is None else layout.flatten(embeddings)
                modalities[name] = module(vectors, present[name])

        expert_logits, context, speech_states, text_states = [], {}, None, None
        for name in ("speech", "text"):
            if name in self.config.experts:
                logits, context[name] = getattr(self, f"{name}_expert")(modalities[name], layout)
                expert_logits.append(logits)
        if "fusion" in self.config.experts:
            logits, speech_states, text_states = self.fusion_expert(
                modalities["speech"], modalities["text"], context if self.config.fusion_context else {}, layout
            )
            expert_logits.append(logits)
        expert_logits = torch.stack(expert_logits, dim=1)  # [N, E, C]
        available = expert_availability(self.config.experts, present["speech"], present["text"])
        available_to_gate = available | ~available.any(1, keepdim=True)
        gate_weights = self.gate(expert_logits, available_to_gate)
        logits = (gate_weights[..., None] * expert_logits).sum(1)

        loss = None
        if labels is not None:
            scored = layout.flatten(self._labels(labels, real))
            loss = sum(
                focal_terms(
                    logits,
                    expert_logits,
                    available,
                    scored,
                    self.config.focal_gamma,
                    self.class_weights(logits),
                    num_items_in_batch,
                )
            )

        if past is not None:
            past.add(layout)

        def padded(rows: torch.Tensor | None) -> torch.Tensor | None:
            return None if rows is None else layout.unflatten(rows * weight.to(rows.dtype))

        return MisterEOutput(
            loss=loss,
            logits=padded(logits),
            expert_logits=padded(expert_logits),
            gate_weights=padded(gate_weights),
            speech_states=padded(speech_states),
            text_states=padded(text_states),
            speech_mask=padded(present["speech"]),
            text_mask=padded(present["text"]),
        )

    def _layout(self, real: torch.Tensor, past: DialogueCache | None) -> TurnLayout:
        if past is None:
            return TurnLayout(real)
        if not self.config.causal:
            raise InputError(
                "Turns can be taken one by one by a causal model alone: this one (config.causal is false) was trained to hear a dialogue's "
                "later turns, too. Train with --model.causal true, or give it whole dialogues"
            )
        return past.layout(real)


def expert_availability(
    experts: list[str] | tuple[str, ...], speech_mask: torch.Tensor, text_mask: torch.Tensor
) -> torch.Tensor:
    """Which experts have their modality at each turn: masks (...) -> (..., E). The fusion expert always counts."""
    masks = {"speech": speech_mask, "text": text_mask, "fusion": torch.ones_like(speech_mask)}
    return torch.stack([masks[name] for name in experts], dim=-1)
