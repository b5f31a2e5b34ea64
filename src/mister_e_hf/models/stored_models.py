"""Conversation models as checkpoint folders: strict loading, also from pre-training, and code beside the weights."""

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import resolve_revision

from ..base.errors import InputError, MissingLibraryError
from ..base.modalities import TASK
from ..base.remote_code import CarriesCode, write_auto_code, write_code
from ..hub.loading import ACCESS_OPTIONS, finish_loading, load_strictly, require_config
from ..hub.pretrained import holds_pretraining, take_pretrained, without_report
from .configuration_conversation import ConversationConfig

logger = logging.get_logger(__name__)

_PIPELINE = "ConversationEmotionPipeline"
# In the package, or in the flat code of a checkpoint.
_PIPELINE_FILES = [
    folder / "pipeline_conversation_emotion.py"
    for folder in (Path(__file__).parents[1] / "inference", Path(__file__).parent)
]


class StoredModel(CarriesCode, PreTrainedModel):
    """
    Base class of models whose weights are loaded strictly and stored with their code.

    Attributes:
        pretrains: whether it is a pre-training model.
        begins_from_pretraining: whether its weights, and the statistics of its inputs, are those of pre-training.
    """

    config_class: type[ConversationConfig] = ConversationConfig
    pretrains = False
    begins_from_pretraining = False

    @classmethod
    def begin(cls, config):
        """
        A new model of a configuration, to be trained: its own weights are random, and those of parts that the
        configuration names, such as a language model, are pretrained.
        """
        return cls._from_config(config)

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
                take_pretrained(model, pretrained_model_name_or_path, info)
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

    def left_out_parts(self) -> Collection[str]:
        """Names of the parts, with dots, that other configurations have, and this one leaves out."""
        return ()

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
