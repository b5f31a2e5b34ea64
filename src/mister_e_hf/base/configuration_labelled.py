"""What all configurations share: names of classes or targets, class weights, and errors for unknown fields."""

import contextlib
import difflib
import inspect
import math
import os
from dataclasses import field
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from .errors import InputError, reading, short
from .modalities import IGNORE_INDEX
from .remote_code import CarriesCode, write_auto_code

# Keys that transformers passes to a config beside its fields. Any other key that is not a field is a misspelling.
_TRANSFORMERS_KEYS = {
    "_attn_implementation",
    "_commit_hash",
    "_experts_implementation",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
    "use_cache",
}
DTYPES = ("float64", "float32", "float16", "bfloat16")


class LabelledConfig(CarriesCode, PreTrainedConfig):
    """
    Configuration with `id2label` and `class_weights` that checks its fields; subclasses are strict dataclasses.

    With `problem_type="regression"` the model predicts scores, and `id2label` names its S targets; without one it
    predicts classes.
    """

    if TYPE_CHECKING:  # always set, and narrower than in transformers
        id2label: dict[int, str] = field(default_factory=dict)
        label2id: dict[str, int] = field(default_factory=dict)

        @property
        def num_labels(self) -> int: ...

        @num_labels.setter
        def num_labels(self, value: int): ...

    @property
    def task(self) -> str:
        """`"regression"` if the model predicts scores, else `"classification"`."""
        return "regression" if self.problem_type == "regression" else "classification"

    @classmethod
    def own_fields(cls) -> dict[str, Any]:
        """Name and type of each field that neither transformers nor the labels define."""
        ours = [kind for kind in reversed(cls.__mro__) if issubclass(kind, LabelledConfig)]
        return {name: hint for kind in ours for name, hint in inspect.get_annotations(kind).items()}

    def __post_init__(self, **kwargs):
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)  # remote code for what this package registers itself
        fields = {*self.own_fields(), "id2label", "label2id"}
        for name, value in kwargs.items():
            if name not in _TRANSFORMERS_KEYS and name not in vars(PreTrainedConfig()):
                nearest = difflib.get_close_matches(name, fields, n=1)
                hint = f" Did you mean '{nearest[0]}'?" if nearest else f" It has: {', '.join(sorted(fields))}."
                raise InputError(f"{type(self).__name__} has no field '{name}' (given: {value!r}).{hint}")
        for name, given in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            plain = isinstance(
                given, str | int | float | list | dict
            )  # not a torch.dtype, since torch is not imported
            if plain and (not isinstance(given, str) or given.removeprefix("torch.") not in DTYPES):
                raise InputError(f"{name} must be one of {', '.join(DTYPES)}, got {short(repr(given), 80)}")
        if isinstance(kwargs.get("quantization_config"), str | int | float | list):
            raise InputError(
                f"quantization_config must be a mapping, got {short(repr(kwargs['quantization_config']), 80)}"
            )
        try:
            if self.label2id is not None:
                self.label2id = {label: int(index) for label, index in self.label2id.items()}
                if self.id2label is None:
                    self.id2label = {index: label for label, index in self.label2id.items()}
            if self.id2label is not None:
                self.id2label = {int(index): label for index, label in self.id2label.items()}
        except (AttributeError, TypeError, ValueError):
            raise InputError(
                "id2label must map indices to names and label2id names to indices, "
                f"got id2label={self.id2label!r}, label2id={self.label2id!r}"
            ) from None
        if self.id2label is not None and kwargs.get("num_labels") not in (None, len(self.id2label)):
            raise InputError(f"num_labels is {kwargs['num_labels']}, but the labels are {self.id2label}")
        super().__post_init__(**kwargs)
        if self.label2id is None:
            self.label2id = {label: index for index, label in self.id2label.items()}

    def check_sizes(self, *names: str):
        """Check that sizes are at least 1 and not larger than any machine could hold."""
        for name in names:
            largest = 128 if name.endswith("num_layers") else 2**20 if name.endswith("embedding_dim") else 2**14
            size = getattr(self, name)
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
            if size > largest:
                raise InputError(f"{name} must be at most {largest:,}, got {short(size, 40)}")

    def check_temperature(self, name: str):
        """Check a temperature, which divides logits: near 0 they overflow, and near infinity they vanish."""
        if not 1e-4 <= getattr(self, name) <= 1e4:
            raise InputError(f"{name} must be positive and finite, from 0.0001 to 10,000, got {getattr(self, name)}")

    def validate_task(self):
        if self.problem_type not in (None, "regression"):
            raise InputError(
                f"problem_type must be null for classes or 'regression' for scores, got '{self.problem_type}'"
            )
        if self.task == "regression" and self.class_weights is not None:
            raise InputError(
                f"class_weights are for classes, and problem_type is 'regression'; leave them out, got "
                f"{self.class_weights}"
            )
        delta = getattr(self, "huber_delta", 1.0)
        if not 0 < delta < math.inf:
            raise InputError(f"huber_delta must be positive and finite, got {delta}")

    def validate_labels(self):
        """Check labels and class weights; called by the strict dataclass."""
        if not self.id2label or not all(isinstance(label, str) for label in self.id2label.values()):
            raise InputError(f"id2label must hold at least one label, each of them a string, got {self.id2label}")
        if not all(label.strip() for label in self.id2label.values()):
            raise InputError(f"id2label must give every label a name, got {self.id2label}")
        if len(set(self.id2label.values())) != len(self.id2label):
            raise InputError(f"id2label must not give two indices the same label, got {self.id2label}")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise InputError(f"id2label must number its labels 0, 1, 2, ..., got {self.id2label}")
        if self.label2id != {label: index for index, label in self.id2label.items()}:
            raise InputError(f"id2label {self.id2label} and label2id {self.label2id} disagree")
        for label, weight in (self.class_weights or {}).items():
            if label not in self.label2id:
                raise InputError(
                    f"class_weights names '{label}', which is not one of the labels {list(self.label2id)}"
                )
            if not 0 <= weight < math.inf:
                raise InputError(f"class_weights['{label}'] must be finite and not negative, got {weight}")

    def label_weights(self) -> list[float] | None:
        """`class_weights` in the order of the class indices, 1 by default; None if the config has none."""
        if self.class_weights is None:
            return None
        return [self.class_weights.get(self.id2label[index], 1.0) for index in range(len(self.id2label))]

    def check_labels(self, labels: Any, shape: tuple[int, ...]):
        r"""
        Check a tensor of labels.

        Args:
            labels: class indices of this shape, or scores with one dimension more for the S targets.
            shape: the shape of the turns.

        Raises:
            InputError: if it has another shape, or holds numbers that are neither a class index nor -100, or infinite
                scores.
        """
        if self.task == "regression":
            self._check_scores(labels, (*shape, len(self.id2label)))
            return
        if tuple(labels.shape) != tuple(shape) or labels.is_floating_point():
            raise InputError(
                f"labels must be whole numbers of shape {tuple(shape)}, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        num_labels = len(self.id2label)
        wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= num_labels))
        if wrong.any():
            raise InputError(
                f"labels hold {int(labels[wrong][0])}; the model has {num_labels} classes, 0 to {num_labels - 1}, and "
                f"{IGNORE_INDEX} for turns that are not scored"
            )

    def _check_scores(self, labels: Any, shape: tuple[int, ...]):
        if tuple(labels.shape) != shape or not labels.is_floating_point():
            raise InputError(
                f"labels must be floating-point numbers of shape {shape}, a score for each of "
                f"{', '.join(self.id2label.values())}, NaN where one is missing; got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        if labels.isinf().any():
            raise InputError("labels hold an infinite score; expected finite numbers, NaN where a score is missing")

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Like [`~transformers.PreTrainedConfig.save_pretrained`], with the code that `AutoConfig` loads it from."""
        write_auto_code(save_directory, type(self), "AutoConfig", self)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any):
        """
        Like [`~transformers.PreTrainedConfig.from_pretrained`].

        Raises:
            InputError: naming the file and the field that is not valid.
        """
        where = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "", "config.json")
        with reading(where, "a configuration"):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """
        Like [`~transformers.PreTrainedConfig.from_dict`], but checks `config_dict` and the given fields together.

        New labels replace the old ones together with their class weights; another task also resets the calibration.
        """
        name = kwargs.get("name_or_path")
        with reading(os.path.join(name, "config.json"), "a configuration") if name else contextlib.nullcontext():
            return cls._from_dict(config_dict, **kwargs)

    @classmethod
    def check_type(cls, config_dict: dict[str, Any]):
        """Raise an `InputError` if this is the configuration of another model."""
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING

            other = CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else None
            ours = isinstance(other, type) and issubclass(other, LabelledConfig)
            hint = ": load it with AutoModel" if ours else ", which is not a model of this package"
            raise InputError(f"model_type is '{short(kind, 80)}', not '{cls.model_type}'{hint}")

    @classmethod
    def _from_dict(cls, config_dict: dict[str, Any], **kwargs):
        cls.check_type(config_dict)
        labels: dict[str, Any] = {name: kwargs.pop(name) for name in ("id2label", "label2id") if name in kwargs}
        fields = (*cls.own_fields(), "problem_type")
        given: dict[str, Any] = {name: kwargs.pop(name) for name in fields if name in kwargs}
        config_dict = dict(config_dict)
        if (task := config_dict.get("problem_type")) != given.get("problem_type", task):
            for name in ("class_weights", "calibration_temperature"):
                config_dict.pop(name, None)
        stored = cls(**{name: config_dict[name] for name in ("id2label", "label2id") if name in config_dict}).id2label
        count = kwargs.get("num_labels") or len(stored)
        if cls(**labels).id2label != stored if labels else count != len(stored):
            for name in ("id2label", "label2id", "class_weights"):
                config_dict.pop(name, None)
        return super().from_dict({**config_dict, **labels, **given}, **kwargs)
