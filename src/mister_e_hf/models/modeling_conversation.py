"""Base class of all conversation models: checks of inputs, initial weights, checkpoint folder, common view of outputs.

Letters: B dialogues, T turns, N real turns of the batch (as flat rows, see `turns.py`), C classes, E heads beside the
main one.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.utils import ModelOutput, logging
from transformers.utils.hub import resolve_revision

from ..base.errors import InputError, MissingLibraryError
from ..base.fitted_statistics import FittedStatistics
from ..base.losses import focal_loss, regression_loss
from ..base.modalities import IGNORE_INDEX, MODALITIES, TASK
from ..base.remote_code import CarriesCode, write_auto_code, write_code
from ..base.target_scale import TargetScale
from ..hub.loading import ACCESS_OPTIONS, finish_loading, load_strictly, require_config
from ..hub.pretrained import holds_pretraining, take_pretrained, without_report
from .configuration_conversation import ConversationConfig
from .turn_layers import ModalityInput, ModalityTurns, TurnAttention, TurnConvolution
from .turns import DialogueCache, RealTurns, TurnLayout

logger = logging.get_logger(__name__)

_PIPELINE = "ConversationEmotionPipeline"
# In the package, or in the flat code of a checkpoint.
_PIPELINE_FILES = [
    folder / "pipeline_conversation_emotion.py"
    for folder in (Path(__file__).parents[1] / "inference", Path(__file__).parent)
]


@dataclass
class ConversationOutput(ModelOutput):
    """
    The common view of a conversation model's output, read by name from its own; see
    [`ConversationPreTrainedModel.view`].

    Args:
        loss (`()`, when labels are given): the model's own loss.
        logits (`(B, T, C)`):
            scores of the main head before the softmax; of a regression model the predicted scores (B, T, S), in the
            labels' unit, and so are `head_logits`.
        head_logits (`dict[str, (B, T, C)]`): scores of each further head, in the order of `config.heads`; None without
            any.
        gate_weights (`(B, T, E)`): weights of the heads, in the order of `config.heads`; None without a gate.
        capsule_weights (`(B, T, Kp)`):
            share of each primary capsule in the prediction, in the order of `config.capsules`; they sum to one, or are
            all 0 where a turn has no modality. None without capsules.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    head_logits: dict[str, torch.Tensor] | None = None
    gate_weights: torch.Tensor | None = None
    capsule_weights: torch.Tensor | None = None


class ConversationPreTrainedModel(CarriesCode, PreTrainedModel):
    r"""
    Base class of conversation models: an emotion, or scores, for every turn of a dialogue from the vectors of its
    modalities, without using who speaks.

    A subclass takes `<modality>_embeddings` and `<modality>_mask` of each of its modalities, `attention_mask`,
    `labels` and `num_items_in_batch` in its `forward`, by these names, and keeps a [`ModalityInput`] as
    `<modality>_input`, or overrides `input_of`. With `config.reads_transcripts` it also takes `transcripts`, for each
    dialogue a list of strings, None at padding and where a turn has no transcript.

    With `config.task == "regression"` there is a [`TargetScale`] `target_scale`. What a head computes becomes scores
    by `in_label_unit`, and `label_loss` is the loss of both tasks.

    Attributes:
        title: name of the method, for reports (`"MiSTER-E"`).
        method: the same in a sentence of the model card, with a link to the paper.
        citation: BibTeX entry of the paper for the model card; empty to leave it out.
        tags: tags of the model card.
        checkpoint_files: glob patterns of what its checkpoint folder holds beside configuration, weights, code and
            encoders.
        loss_term_weights: by the name of each loss term beside the output's `loss`, the field of the training
            arguments that is its weight.
    """

    config: ConversationConfig
    config_class = ConversationConfig
    base_model_prefix = ""
    main_input_name = "speech_embeddings"
    accepts_loss_kwargs = True
    _supports_sdpa = True

    title: str
    method: str
    citation: str = ""
    tags: tuple[str, ...] = ()
    checkpoint_files: tuple[str, ...] = ()
    loss_term_weights: Mapping[str, str] = {}
    pretrains = False  # whether it is a pre-training model
    begins_from_pretraining = False  # whether its weights, and the inputs' statistics, are those of pre-training

    def __init__(self, config: Any, *arguments, **kwargs):
        super().__init__(config, *arguments, **kwargs)
        if config.task == "regression":
            self.target_scale = TargetScale(config.num_labels)

    def view(self, output: Any) -> ConversationOutput:
        """The common view of this model's own output; a model with an output class of its own overrides it."""
        return output

    def loss_parts(self, output: Any) -> dict[str, torch.Tensor]:
        """By name, the parts that the output's `loss` is the sum of, for the log; empty where it has one."""
        return {}

    def loss_terms(
        self, output: Any, labels: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> dict[str, torch.Tensor]:
        """
        Loss terms beside the output's `loss`, by the names in `loss_term_weights`: sums over the turns divided by
        `num_items`. The Trainer multiplies each with its weight and adds it.
        """
        return {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise each layer as torch does, which is what the published code trains from."""
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
        elif isinstance(module, FittedStatistics):
            initialization.zeros_(module.mean)
            initialization.ones_(module.std)
            if isinstance(module, ModalityInput):
                initialization.zeros_(module.null_embedding)

    def class_weights(self, like: torch.Tensor) -> torch.Tensor | None:
        """The configured class weights (C,), or None."""
        weights = self.config.label_weights()
        return None if weights is None else like.new_tensor(weights)

    def in_label_unit(self, rows: torch.Tensor) -> torch.Tensor:
        """What a head computes, (..., C) or (..., S): unchanged for classes, for scores in the labels' unit."""
        return self.target_scale(rows) if self.config.task == "regression" else rows

    def label_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None, gamma: float = 0.0
    ) -> torch.Tensor:
        """
        Loss of a head's logits (N, C) or scores (N, S), from the labels of [`scored_labels`] as rows: a sum over what
        is scored, divided by `num_items`. For classes it is the focal loss, with gamma 0 the cross-entropy.
        """
        if self.config.task == "regression":
            return regression_loss(logits, labels, self.config.regression_loss, self.config.huber_delta, num_items)
        return focal_loss(logits, labels, gamma, self.class_weights(logits), num_items)

    def real_turns(
        self,
        embeddings: Mapping[str, torch.Tensor | None],
        attention_mask: torch.Tensor | None,
        masks: Mapping[str, torch.Tensor | None],
        layout: Callable[[torch.Tensor], TurnLayout] = TurnLayout,
    ) -> RealTurns:
        """The real turns of a batch, after `check_inputs`, in a layout of their mask (B, T)."""
        real, present = self.check_inputs(embeddings, attention_mask, masks)
        weight = real.any()
        places = layout(real if weight else torch.ones_like(real))
        return RealTurns(real, weight, places, {name: places.flatten(mask) for name, mask in present.items()})

    def layout_after(self, real: torch.Tensor, past: DialogueCache | None) -> TurnLayout:
        r"""
        The layout of the real turns (B, T) that follow those of a cache, if one is given.

        Raises:
            InputError: if the model does not stream.
        """
        if past is None:
            return TurnLayout(real)
        if not self.config.streams:
            raise InputError(
                "Only a causal model can take turns one by one: this one (config.causal is false) was trained to use "
                "a dialogue's later turns, too. Train with --model.causal true, or give it whole dialogues"
            )
        return past.layout(real)

    def check_inputs(
        self,
        embeddings: Mapping[str, torch.Tensor | None],
        attention_mask: torch.Tensor | None,
        masks: Mapping[str, torch.Tensor | None],
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        r"""
        Check the inputs of `forward`.

        Args:
            embeddings, masks: by modality, in the order of [`MODALITIES`]: (B, T, D) and (B, T).

        Returns:
            Masks as (B, T) booleans: the real turns, and by modality that the model has a width for the turns that
            have it.

        Raises:
            InputError: if no embeddings are given, or of a modality that the model does not take, or shapes disagree
                with one another or with the configuration.
        """
        given = {name: vectors for name, vectors in embeddings.items() if vectors is not None}
        widths = self.config.widths
        if not given:
            names = ", ".join(MODALITIES[name].embeddings for name in widths)
            raise InputError(f"{type(self).__name__} needs at least one of {names}")
        for name, vectors in given.items():
            modality = MODALITIES[name]
            if name not in widths and name not in self.config.takes():
                raise InputError(f"{modality.embeddings} are given, but {self.config.does_not_take(name)}")
            width = widths[name] if name in widths else self.config.width(name)
            if vectors.dim() != 3 or vectors.shape[-1] != width:
                raise InputError(
                    f"{modality.embeddings} must have shape (B, T, {width}) as config.{modality.width} says, "
                    f"got {tuple(vectors.shape)}"
                )
        shapes = {MODALITIES[name].embeddings: tuple(vectors.shape) for name, vectors in given.items()}
        batch_shape = next(iter(shapes.values()))[:2]
        if any(shape[:2] != batch_shape for shape in shapes.values()) or 0 in batch_shape:
            raise InputError(f"embeddings must agree in B and T, both at least 1; got {shapes}")
        for name, mask in {
            "attention_mask": attention_mask,
            **{MODALITIES[n].mask: m for n, m in masks.items()},
        }.items():
            if mask is not None and tuple(mask.shape) != batch_shape:
                raise InputError(f"{name} must have shape (B, T) = {batch_shape}, got {tuple(mask.shape)}")
        everywhere = torch.ones(batch_shape, dtype=torch.bool, device=next(iter(given.values())).device)
        real = everywhere if attention_mask is None else attention_mask.bool()
        present = {}
        for name, mask in masks.items():
            if name in given:
                present[name] = real if mask is None else real & mask.bool()
            elif mask is not None and (mask.bool() & real).any():
                raise InputError(
                    f"{MODALITIES[name].mask} is true at some turns, but {MODALITIES[name].embeddings} is None"
                )
            elif name in widths:
                present[name] = ~everywhere
        return real, present

    def input_of(self, modality: str) -> ModalityInput | None:
        """The layer that standardises the vectors of a modality; None if the model does not read it."""
        return getattr(self, f"{modality}_input", None)

    def modality_turns(
        self, embeddings: Mapping[str, torch.Tensor | None], present: Mapping[str, torch.Tensor], layout: TurnLayout
    ) -> dict[str, ModalityTurns]:
        """The turns of each modality that the model reads, from vectors (B, T, D) and where they are present (N,)."""
        turns = {}
        for name, vectors in embeddings.items():
            module = self.input_of(name)
            if module is not None:
                rows = module.mean.expand(layout.count, -1) if vectors is None else layout.flatten(vectors)
                turns[name] = module(rows, present[name])
        return turns

    def scored_labels(self, labels: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Labels, -100 (B, T) or NaN (B, T, S) at padding whatever it holds, and checked."""
        if self.config.task == "regression":
            if labels.shape[:2] == real.shape and labels.dim() == 3 and labels.is_floating_point():
                labels = labels.masked_fill(~real[..., None], math.nan)
        elif labels.shape == real.shape:
            labels = labels.masked_fill(~real, IGNORE_INDEX)
        self.config.check_labels(labels, real.shape)
        return labels

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.from_pretrained`], but weights that are missing, unexpected or of another
        shape raise.

        With `ignore_mismatched_sizes=True` and a new `id2label` or `problem_type`, for fine-tuning to classes or
        targets of your own, the heads, the gate and the scale of targets are initialized again, and one warning lists
        them. So it is with those that a folder of the model's pre-training ([`PretrainingModel`]) lacks.

        Raises:
            InputError: naming the weights that do not fit.
            OSError: naming the file that is damaged, or if no weights are stored in safetensors.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        other_classes = kwargs.pop("ignore_mismatched_sizes", False)
        hub_options = {name: kwargs[name] for name in ACCESS_OPTIONS if kwargs.get(name) is not None}
        if kwargs.get("config") is None:  # otherwise AutoModel has read it
            require_config(pretrained_model_name_or_path, kwargs, cls.config_class.check_type)
        # Whatever is pushed meanwhile, the encoders are loaded from the same commit.
        revision = resolve_revision(pretrained_model_name_or_path, kwargs.get("revision"), **hub_options)
        if revision is not None:
            kwargs["revision"], hub_options["revision"] = revision, getattr(revision, "resolved", revision)
        plain: Callable[..., Any] = super().from_pretrained
        pretrained = not cls.pretrains and holds_pretraining(pretrained_model_name_or_path, kwargs)
        other_classes = other_classes and not pretrained
        stored = None

        def load(*args, **kwargs):
            nonlocal stored
            with without_report() if pretrained else contextlib.nullcontext():
                model, info = plain(*args, **kwargs)
            if pretrained:
                take_pretrained(pretrained_model_name_or_path, info, cls.is_pretrained)
            if other_classes:
                stored = cls._stored_labels(pretrained_model_name_or_path, kwargs)
                if stored[1] != model.config.task:  # of the two tasks, only regression has a scale of targets
                    for kind in ("missing_keys", "unexpected_keys"):
                        info[kind] = {key for key in info[kind] if not key.startswith("target_scale.")}
            return model, info

        model, info = load_strictly(
            load,
            pretrained_model_name_or_path,
            *args,
            reinitialized=cls._depends_on_classes if other_classes else None,
            **kwargs,
        )
        if other_classes and (info["mismatched_keys"] or (model.config.id2label, model.config.task) != stored):
            names = [name for name in model.state_dict() if cls._depends_on_classes(name)]
            model._initialize_again(names)
            logger.warning(
                f"'{pretrained_model_name_or_path}' was trained for other classes or targets. Train these weights "
                f"before use, they are initialized again: {', '.join(names)}."
            )
        model.hub_options = hub_options
        model.begins_from_pretraining = pretrained
        finish_loading(model, pretrained_model_name_or_path)
        for name, buffer in model.named_buffers():
            if name.endswith(".std") and not (buffer > 0).all():
                raise InputError(
                    f"'{pretrained_model_name_or_path}': the standard deviations in '{name}' must be positive"
                )
        return (model, info) if wants_info else model

    @classmethod
    def is_pretrained(cls, name: str) -> bool:
        """Whether the model that pre-trains this one has a weight of this name, too."""
        return not cls._depends_on_classes(name)

    @staticmethod
    def _depends_on_classes(name: str) -> bool:
        """Whether a weight is part of a head, of the gate or of the scale of targets."""
        return name.startswith(("gate.", "target_scale.")) or ".head." in f".{name}"

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.save_pretrained`], with the code of the model and of the pipeline:
        `pipeline("conversation-emotion-recognition", model=folder, trust_remote_code=True)` needs no more.
        """
        if kwargs.get("is_main_process", True):
            vars(self.config).pop("auto_map", None)  # it may be that of the pre-training model
            self._write_code(save_directory)
        hub = {
            name: kwargs.pop(name) for name in ("repo_id", "commit_message", "private", "revision") if name in kwargs
        }
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            vars(self.config).pop("custom_pipelines", None)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"), **hub)

    def _write_code(self, folder):
        write_auto_code(folder, type(self), "AutoModel", self.config)
        for file in write_code(folder, *(path for path in _PIPELINE_FILES if path.is_file())):
            self.config.custom_pipelines = {TASK: {"impl": f"{file}.{_PIPELINE}", "pt": ["AutoModel"]}}

    def push_to_hub(  # type: ignore[override]  # no option that would push other files than the listed ones
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> str:
        """
        Push the checkpoint folder: this model, and the card, recipe and encoders of the folder it was loaded from.
        Returns the repository's id.

        Raises:
            ImportError: for a model loaded with the code of its checkpoint where this package is not installed.
        """
        try:
            from mister_e_hf.hub.checkpoint import push_model
        except ImportError as error:
            raise MissingLibraryError("Pushing a model needs the package: pip install mister-e-hf") from error

        return push_model(self, repo_id, commit_message, token, private, revision)

    @classmethod
    def _stored_labels(cls, pretrained_model_name_or_path, kwargs: dict) -> tuple[dict[int, str], str]:
        """The names of the stored model's classes or targets, and its task."""
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        stored, _ = cls.config_class.get_config_dict(
            pretrained_model_name_or_path, **{name: kwargs[name] for name in names if name in kwargs}
        )
        config = cls.config_class(**stored)
        return config.id2label, config.task

    def _initialize_again(self, names: list[str]):
        for name in names:
            module = self.get_submodule(name.rpartition(".")[0])
            for tensor in (*module.parameters(), *module.buffers()):
                vars(tensor)["_is_hf_initialized"] = False
            self._init_weights(module)
