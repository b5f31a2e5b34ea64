"""Every field of the training arguments: the values it takes, or why it cannot be set.

Most fields come from transformers, which does not check them. Some have no effect here, and some would change what is
scored or stored. So each is listed: supported in a range, or refused with the reason. A field of a newer transformers
that is not listed keeps its default.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from transformers import TrainingArguments

from ..base.errors import InputError, short
from .field_rules import Choice, Kind, Number, Refused, same

_FLAG = Choice((True, False))
_OPTIONAL_FLAG = Choice((True, False, None))
_TEXT = Kind("a word or null", (str, type(None)))
_MAPPING = Kind("a mapping or null", (Mapping, type(None)))
_BATCH = Number(1, 65536, whole=True)
_STEPS = Number(0, 1e9, above=True, share=True)
_COUNT = Number(1, 1e9, whole=True, also=(None,))
_SEED = Number(0, 2**32 - 1, whole=True)
_HALF_EVAL = Refused("it would turn the weights themselves to half precision, those that are scored and stored too")
_UNTRIED = "this package is not tested with it"
_COMPILED = Refused("each length of a dialogue is compiled again, which takes longer than it saves")
_TRACKIO = Refused("this package pushes to the Hub itself, with push_to_hub")
_SHARDED = Refused("checkpoints and losses are those of whole models; several processes train with torchrun alone")

OPTIMIZERS = {  # and what each reads of optim_args; weight_decay is another field
    "adamw_torch": (),
    "adamw_torch_fused": (),
    "adafactor": (),
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
}
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
_LOWER_IS_BETTER = ("loss", "expected_calibration_error", "mae")
_LOG_LEVELS = Choice(("debug", "info", "warning", "error", "critical", "passive", "detail"))

FIELDS: dict[str, Number | Choice | Kind | Refused] = {
    # fields of this package
    "contrastive_weight": Number(0, 1e6),
    "contrastive_temperature": Number(0, 1e6, above=True),
    "consistency_weight": Number(0, 1e6),
    "standardize": _FLAG,
    "reconstruction_weight": Number(0, 1e6),
    "negatives": Choice(("batch", "dialogue")),
    "mask_rate": Number(0, 0.9, above=True),
    "mask_span": Number(1, 1000, whole=True),
    "early_stopping_patience": _COUNT,
    "head_learning_rate": Number(0, above=True, also=(None,)),
    "language_model_learning_rate": Number(0, above=True),
    # the length of a run
    "output_dir": _TEXT,
    "per_device_train_batch_size": _BATCH,
    "num_train_epochs": Number(0, 1e6, above=True),
    "max_steps": Number(1, 1e9, whole=True, also=(-1,)),
    "gradient_accumulation_steps": _BATCH,
    "average_tokens_across_devices": Refused("it stays true, for the loss is normalised over all processes"),
    "auto_find_batch_size": Refused("the run would not have the batch size that its recipe says"),
    # the optimizer
    "learning_rate": Number(0, above=True),
    "lr_scheduler_type": Choice(SCHEDULERS),
    "lr_scheduler_kwargs": _MAPPING,
    "warmup_steps": Number(0, 1e9, share=True),
    "optim": Choice(tuple(OPTIMIZERS)),
    "optim_args": _TEXT,
    "optim_target_modules": Refused("none of the supported optimizers reads it"),
    "weight_decay": Number(0, 1e3),
    "adam_beta1": Number(0, 0.999999999),
    "adam_beta2": Number(0, 0.999999999),
    "adam_epsilon": Number(0, 1),
    "max_grad_norm": Number(0),
    "label_smoothing_factor": Refused("the focal losses have no smoothing"),
    "neftune_noise_alpha": Refused("it adds noise to token embeddings, which these models do not have"),
    # precision and speed
    "bf16": _FLAG,
    "fp16": _FLAG,
    "bf16_full_eval": _HALF_EVAL,
    "fp16_full_eval": _HALF_EVAL,
    "tf32": _OPTIONAL_FLAG,
    "activation_checkpointing": _OPTIONAL_FLAG,
    "activation_checkpointing_kwargs": _MAPPING,
    "gradient_checkpointing": _OPTIONAL_FLAG,
    "gradient_checkpointing_kwargs": _MAPPING,
    "torch_compile": _COMPILED,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "use_liger_kernel": Refused("it has no kernels for these models"),
    "liger_kernel_config": Refused("Liger has no kernels for these models"),
    "use_cache": Refused("these models do not generate"),
    "torch_empty_cache_steps": _COUNT,
    # logs
    "logging_strategy": Choice(("no", "steps", "epoch")),
    "logging_steps": _STEPS,
    "logging_first_step": _FLAG,
    "log_on_each_node": _FLAG,
    "logging_nan_inf_filter": Refused("a loss that is not finite must show"),
    "include_num_input_tokens_seen": Refused("dialogues have turns, not tokens", ("no",)),
    "log_level": _LOG_LEVELS,
    "log_level_replica": _LOG_LEVELS,
    "disable_tqdm": _OPTIONAL_FLAG,
    "report_to": Kind("the name of an experiment tracker, or a list of names", (str, list, tuple, type(None))),
    "run_name": _TEXT,
    "project": _TEXT,
    "trackio_space_id": _TRACKIO,
    "trackio_bucket_id": _TRACKIO,
    "trackio_static_space_id": _TRACKIO,
    # evaluation
    "eval_strategy": Choice(("no", "steps", "epoch")),
    "eval_steps": Number(0, 1e9, above=True, share=True, also=(None,)),
    "eval_delay": Number(0, 1e9),
    "per_device_eval_batch_size": _BATCH,
    "prediction_loss_only": Refused("the best epoch is chosen by scores, which need the predictions"),
    "eval_on_start": _FLAG,
    "eval_do_concat_batches": Refused("scores are those of a whole split"),
    "eval_use_gather_object": Refused("scores are those of tensors"),
    "eval_accumulation_steps": _COUNT,
    "include_for_metrics": Refused("the scores read only predictions and labels", ([],)),
    "batch_eval_metrics": Refused("F1 of a split is not the mean of its batches' F1"),
    # checkpoints
    "save_only_model": Refused("an interrupted run could not resume to the same result"),
    "save_strategy": Choice(("no", "steps", "epoch", "best")),
    "save_steps": _STEPS,
    "save_on_each_node": Refused(_UNTRIED),
    "save_total_limit": _COUNT,
    "enable_jit_checkpoint": Refused("its checkpoints may be incomplete; those of this package never are"),
    "push_to_hub": _FLAG,
    "hub_token": _TEXT,
    "hub_private_repo": _OPTIONAL_FLAG,
    "hub_model_id": _TEXT,
    "hub_strategy": Refused("only the finished run is pushed; checkpoints hold pickles"),
    "hub_always_push": Refused("only the finished run is pushed"),
    "hub_revision": _TEXT,
    "load_best_model_at_end": _FLAG,
    "metric_for_best_model": _TEXT,
    "greater_is_better": _OPTIONAL_FLAG,
    "ignore_data_skip": Refused("a run that resumes would see other data than one that was not interrupted"),
    "restore_callback_states_from_checkpoint": Refused("early stopping must keep counting after a resume"),
    "resume_from_checkpoint": _TEXT,
    # determinism and devices
    "full_determinism": _FLAG,
    "seed": _SEED,
    "data_seed": Number(0, 2**32 - 1, whole=True, also=(None,)),
    "use_cpu": _FLAG,
    "accelerator_config": Refused("it changes which data a process sees, or the batch size"),
    "parallelism_config": _SHARDED,
    "local_rank": Refused("torchrun sets it"),
    # data
    "dataloader_drop_last": Refused("it would leave dialogues out of the scores too"),
    "dataloader_num_workers": Number(0, 1024, whole=True),
    "dataloader_pin_memory": _FLAG,
    "dataloader_persistent_workers": _FLAG,
    "dataloader_prefetch_factor": _COUNT,
    "dataloader_multiprocessing_context": Choice(("fork", "spawn", "forkserver", None)),
    "dataloader_in_order": Refused("batches must come in the same order in each run"),
    "remove_unused_columns": Refused("the collator takes what it needs"),
    "label_names": Refused("the labels of these models are called labels"),
    "train_sampling_strategy": Choice(("group_by_length", "random", "sequential")),
    "length_column_name": Refused("the number of a dialogue's turns is its length"),
    # several processes
    "ddp_find_unused_parameters": _OPTIONAL_FLAG,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_broadcast_buffers": _OPTIONAL_FLAG,
    "ddp_static_graph": Refused("absent modalities change the graph"),
    "ddp_backend": Choice(("gloo", "nccl", None)),
    "ddp_timeout": Number(1, 1e9, whole=True),
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "deepspeed": _SHARDED,
    # the rest
    "debug": Refused(_UNTRIED, ("", [])),
    "skip_memory_metrics": Refused("the peak of a run's memory is reported in any case"),
    "do_train": Refused("the command says what is done"),
    "do_eval": _FLAG,  # transformers sets it from eval_strategy
    "do_predict": Refused("the command says what is done"),
}


def check_field(name: str, value: Any, arguments: type):
    r"""
    Check the value of one field. The fields that a subclass adds are not known here and take any value.

    Args:
        name: name of the field.
        value: its value.
        arguments: class of the training arguments, a dataclass.

    Raises:
        InputError: naming the field, the value, and what the field takes or why it cannot be set.
    """
    if name not in FIELDS and name not in TrainingArguments.__dataclass_fields__:
        return
    rule = FIELDS.get(name) or Refused("this version of transformers has it, but this package does not know it yet")
    field = next(each for each in fields(arguments) if each.name == name)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if same(value, default) or rule.takes(value):
        return
    if isinstance(rule, Refused):
        raise InputError(f"{name} cannot be set to {short(repr(value))}: {rule.reason}; leave it out")
    raise InputError(f"{name} must be {rule}, got {short(repr(value))}")


def check_together(arguments: Any):
    r"""
    Check the fields of training arguments against each other.

    Raises:
        InputError: naming the fields.
    """
    _check_schedule(arguments)
    _check_optimizer(arguments)
    _check_trackers(arguments.report_to)
    if arguments.fp16 and arguments.bf16:
        raise InputError("fp16 and bf16 cannot both be true")
    if not arguments.dataloader_num_workers:
        for name in ("persistent_workers", "prefetch_factor", "multiprocessing_context"):
            if getattr(arguments, f"dataloader_{name}"):
                raise InputError(f"dataloader_{name} needs dataloader_num_workers of at least 1")
    if arguments.eval_strategy == "no":
        for name in ("early_stopping_patience", "load_best_model_at_end"):
            if getattr(arguments, name):
                raise InputError(f"{name} needs evaluation, but eval_strategy is 'no'")
    elif arguments.max_steps < 0 and arguments.eval_delay >= arguments.num_train_epochs:
        raise InputError(
            f"eval_delay ({arguments.eval_delay}) must be less than num_train_epochs ({arguments.num_train_epochs}): "
            "nothing would be evaluated"
        )


def check_launcher(arguments: Any):
    r"""
    Check that the environment of `accelerate launch` agrees with the training arguments.

    Raises:
        InputError: naming the variable.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked != "no" and not getattr(arguments, asked, False):
        raise InputError(
            f"accelerate asks for {asked} (ACCELERATE_MIXED_PRECISION), but the training arguments do not; pass "
            f"--{asked}, or launch with --mixed_precision no"
        )
    for library in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{library}", "false").lower() in ("1", "true", "yes"):
            raise InputError(
                f"accelerate asks for {library} (ACCELERATE_USE_{library}), which is not supported: {_SHARDED.reason}"
            )


def _check_schedule(arguments: Any):
    kind, given = (
        str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)),
        arguments.lr_scheduler_kwargs,
    )
    if kind in ("constant", "reduce_lr_on_plateau") and arguments.warmup_steps:
        raise InputError(f"warmup_steps has no effect with lr_scheduler_type '{kind}'; leave it out")
    if kind in ("constant", "constant_with_warmup") and given:
        raise InputError(f"lr_scheduler_kwargs has no effect with lr_scheduler_type '{kind}'; leave it out")
    if kind == "reduce_lr_on_plateau" and arguments.eval_strategy == "no":
        raise InputError("lr_scheduler_type 'reduce_lr_on_plateau' needs evaluation, but eval_strategy is 'no'")
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:  # the schedules know their own settings
        get_scheduler(kind, optimizer, 1, 10, scheduler_specific_kwargs=dict(given or {}))
    except Exception as error:
        raise InputError(
            f"lr_scheduler_kwargs {short(given)} do not fit lr_scheduler_type '{kind}': {short(error)}"
        ) from error


def _check_optimizer(arguments: Any):
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    if not optimizer.startswith("adamw"):
        for name, default in (("adam_beta1", 0.9), ("adam_beta2", 0.999), ("adam_epsilon", 1e-8)):
            if getattr(arguments, name) != default:
                raise InputError(f"{name} has no effect with optim '{optimizer}'; leave it out")
    known = OPTIMIZERS[optimizer]
    for pair in (arguments.optim_args or "").replace(" ", "").split(",") if arguments.optim_args else ():
        name, equals, value = pair.partition("=")
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise InputError(f"optim_args '{short(arguments.optim_args)}': optim '{optimizer}' {takes}, got '{name}'")
        if not _is_setting(name, value):
            raise InputError(f"optim_args '{short(arguments.optim_args)}' must be like 'momentum=0.9', got '{pair}'")


def _is_setting(name: str, value: str) -> bool:
    if name in ("nesterov", "centered"):
        return value in ("true", "false", "True", "False")
    try:
        return 0 <= float(value) < math.inf
    except ValueError:
        return False


def _check_trackers(given: Any):
    names = [given] if isinstance(given, str) else list(given or [])
    if set(names) <= {"all", "none", "tensorboard"} and "tensorboard" not in names:
        return
    from transformers.integrations import get_available_reporting_integrations

    there = get_available_reporting_integrations()
    for name in names:
        if name not in ("all", "none", *there):
            raise InputError(
                f"report_to '{short(name)}' is not installed here, or not a tracker that transformers knows; "
                f"installed: {', '.join(there) or 'none'}"
            )


def greater_is_better(metric: str | None) -> bool:
    """Whether a larger value of a metric is better."""
    return metric is None or not metric.removeprefix("eval_").endswith(_LOWER_IS_BETTER)
