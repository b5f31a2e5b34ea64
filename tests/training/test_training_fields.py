import copy
import dataclasses
import itertools
import math
import warnings

import pytest
import torch
from transformers import TrainingArguments

from mister_e_hf import MisterETrainer, MisterETrainingArguments, Recipe
from mister_e_hf.base.errors import InputError
from mister_e_hf.training.pretraining_trainer import PretrainingArguments
from mister_e_hf.training.training_fields import (
    FIELDS,
    OPTIMIZERS,
    SCHEDULERS,
    Choice,
    Kind,
    Number,
    Refused,
    check_field,
)
from mister_e_hf.training.utterance_trainer import UtteranceTrainingArguments
from support.dialogue_training import tiny_corpus, tiny_model

CLASSES = (MisterETrainingArguments, UtteranceTrainingArguments)


def arguments(folder, cls=MisterETrainingArguments, **settings):
    return cls(str(folder), use_cpu=True, disable_tqdm=True, **settings)


def test_every_field_is_known():
    """One that a newer transformers brings is refused where it is set, and named here."""
    ours = {field.name for cls in CLASSES for field in dataclasses.fields(cls)}
    if new := sorted(ours - set(FIELDS)):
        warnings.warn(f"transformers has fields that training_fields.py does not list: {new}", stacklevel=1)
    assert ours - {field.name for field in dataclasses.fields(TrainingArguments)} <= set(FIELDS)


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_are_accepted(tmp_path, cls):
    made = arguments(tmp_path, cls)
    assert dataclasses.replace(made) == made and copy.deepcopy(made) == made
    for field in dataclasses.fields(cls):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        check_field(field.name, default, cls)


def test_a_field_of_a_newer_version_keeps_its_default(monkeypatch):
    monkeypatch.delitem(FIELDS, "logging_steps")  # as if transformers had added it
    with pytest.raises(InputError, match="logging_steps cannot be set to 4: .*does not know it yet; leave it out"):
        check_field("logging_steps", 4, TrainingArguments)
    check_field("logging_steps", 500, TrainingArguments)


def test_a_subclass_may_add_fields(tmp_path):
    @dataclasses.dataclass
    class Own(MisterETrainingArguments):
        mine: int = 3

    assert arguments(tmp_path, Own, mine=4).mine == 4


def beyond(rule) -> list:
    """Values that the rule must not take."""
    if isinstance(rule, Number):
        values = [math.nan, math.inf, -math.inf, -5, rule.low - 1, "3", [1], True, rule.high * 2 + 1]
        return values + [rule.low] * rule.above + [1.5] * (rule.whole or rule.share) + [None] * (None not in rule.also)
    return ["bogus", 1, 0.5] if isinstance(rule, Choice) else [3.5, {1}]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_invalid_values_raise(name):
    rule = FIELDS[name]
    classes = (MisterETrainingArguments, UtteranceTrainingArguments, PretrainingArguments)
    cls = next((each for each in classes if name in each.__dataclass_fields__), None)
    if cls is None:
        pytest.skip("not a field of this version")
    if isinstance(rule, Refused):
        with pytest.raises(InputError, match=f"^{name} cannot be set to .*; leave it out$"):
            check_field(name, "something else", cls)
        return
    for value in beyond(rule):
        with pytest.raises(InputError, match=f"^{name} must be ") as error:
            check_field(name, value, cls)
        assert str(error.value).endswith(f"got {value!r}")


GIVEN = {
    "learning_rate": [".inf", "-1", "0", "nan"],
    "weight_decay": ["-5.0", "1e300"],
    "num_train_epochs": ["0", "-1", ".inf", "1e30"],
    "max_steps": ["0", "-2"],
    "gradient_accumulation_steps": ["-2", "0"],
    "per_device_train_batch_size": ["0", "1000000000000", "010"],
    "max_grad_norm": [".nan", "-1"],
    "contrastive_weight": [".inf", "-1"],
    "warmup_steps": [".nan", "1.5", "-1"],
    "early_stopping_patience": ["-1", "0"],
    "save_total_limit": ["-1", "0"],
    "eval_accumulation_steps": ["0"],
    "data_seed": ["-1", "4294967296"],
    "train_sampling_strategy": ["bogus", "batch_rebalance"],
    "optim": ["adam", "adamw_bnb_8bit"],
    "label_smoothing_factor": ["0.1"],
    "dataloader_drop_last": ["true"],
    "bf16_full_eval": ["true"],
    "fp16_full_eval": ["true"],
    "prediction_loss_only": ["true"],
    "accelerator_config": ["/etc/hostname", "{split_batches: true}"],
    "deepspeed": ["ds.json"],
    "fsdp": ["full_shard"],
    "gradient_checkpointing": ["maybe"],
    "resume_from_checkpoint": ["runs/x/checkpoint-1"],
}


@pytest.mark.parametrize(("name", "words"), GIVEN.items(), ids=GIVEN)
def test_a_recipe_names_section_field_and_value(name, words):
    for word in words:
        with pytest.raises(InputError, match=rf"training.*{name}"):
            made = Recipe({})
            made.override([f"--training.{name}", word])


TOGETHER = {
    "fp16 on a CPU": ({"fp16": True}, "fp16 has no effect on a CPU"),
    "both halves": ({"fp16": True, "bf16": True}, "fp16 and bf16"),
    "no evaluation, but a best epoch": ({"eval_strategy": "no"}, "load_best_model_at_end needs evaluation"),
    "no evaluation, but patience": (
        {"eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": 2},
        "early_stopping_patience needs evaluation",
    ),
    "evaluation after the end": ({"eval_delay": 5, "num_train_epochs": 5}, "eval_delay .* must be less"),
    "the worst epoch by loss": (
        {"metric_for_best_model": "loss", "greater_is_better": True},
        "worst epoch by 'loss' would be kept",
    ),
    "workers that are not there": ({"dataloader_persistent_workers": True}, "needs dataloader_num_workers"),
    "what their start needs": ({"dataloader_multiprocessing_context": "spawn"}, "needs dataloader_num_workers"),
    "warm-up of a constant rate": (
        {"lr_scheduler_type": "constant", "warmup_steps": 0.1},
        "warmup_steps has no effect",
    ),
    "settings of a constant rate": (
        {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"power": 2}},
        "lr_scheduler_kwargs has no effect",
    ),
    "another schedule's setting": ({"lr_scheduler_kwargs": {"power": 2}}, "do not fit lr_scheduler_type 'linear'"),
    "a schedule that needs a setting": ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs"),
    "a plateau of the wrong side": (
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"mode": "min"}},
        "mode must be 'max'",
    ),
    "arguments of no optimizer": ({"optim_args": "a=b=c"}, "optim_args 'a=b=c': optim 'adamw_torch_fused' takes none"),
    "arguments of another": (
        {"optim": "sgd", "optim_args": "eps=1"},
        "takes momentum, dampening, nesterov, got 'eps'",
    ),
    "an argument without a number": ({"optim": "sgd", "optim_args": "momentum=x"}, "must be like 'momentum=0.9'"),
    "Adam's settings for another": ({"optim": "sgd", "adam_beta1": 0.5}, "adam_beta1 has no effect"),
    "a tracker that is not there": ({"report_to": ["bogus"]}, "report_to 'bogus' is not installed"),
    "gradient checkpointing of stage 2": ({"gradient_checkpointing": True}, "for encoders only"),
}


@pytest.mark.parametrize(("settings", "message"), TOGETHER.values(), ids=TOGETHER)
def test_contradicting_fields_raise(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        arguments(tmp_path, **settings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ACCELERATE_MIXED_PRECISION", "bf16"), ("ACCELERATE_USE_DEEPSPEED", "true"), ("ACCELERATE_USE_FSDP", "1")],
)
def test_launcher_settings_that_contradict_the_arguments_raise(tmp_path, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=variable):
        arguments(tmp_path)


BETTER = {
    "weighted_f1": True,
    "eval_macro_f1": True,
    "speech_weighted_f1": True,
    "loss": False,
    "eval_loss": False,
    "expected_calibration_error": False,
}


@pytest.mark.parametrize(("metric", "better"), BETTER.items(), ids=BETTER)
def test_direction_follows_the_metric(tmp_path, metric, better):
    made = arguments(tmp_path, metric_for_best_model=metric, lr_scheduler_type="reduce_lr_on_plateau")
    assert made.greater_is_better is better
    assert made.lr_scheduler_kwargs == {"mode": "max" if better else "min"}


def test_keeping_the_worst_epoch_warns(tmp_path, caplog):
    assert arguments(tmp_path).greater_is_better and not caplog.records
    assert not arguments(tmp_path, greater_is_better=False).greater_is_better
    assert "the worst epoch by 'weighted_f1' would be kept" in caplog.text


def test_metric_must_be_one_of_the_scores(tmp_path):
    def trainer(**settings):
        data = tiny_corpus()["validation"]
        made = arguments(tmp_path, **settings)
        return MisterETrainer(tiny_model(), made, train_dataset=data, eval_dataset=data)

    for name in ("f1", "eval_f1", "num_utterances", "runtime", "weighted_f1 "):
        with pytest.raises(InputError, match="metric_for_best_model must be one of weighted_f1, .*loss, got"):
            trainer(metric_for_best_model=name)
    for name in ("macro_f1", "eval_accuracy", "fusion_weighted_f1", None):
        trainer(metric_for_best_model=name)


SETTINGS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 2},
}
ALONE = {
    f"{schedule}, {optimizer}": {
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": SETTINGS.get(schedule),
        "optim": optimizer,
    }
    for schedule, optimizer in zip(SCHEDULERS, itertools.cycle(OPTIMIZERS))
}
ALONE |= {
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
    "bf16": {"bf16": True},
    "by loss": {"metric_for_best_model": "loss"},
    "steps": {name: "steps" for name in ("eval_strategy", "save_strategy", "logging_strategy")}
    | {name: 1 for name in ("eval_steps", "save_steps", "logging_steps")},
    "the best alone": {"save_strategy": "best"},
    "the last epoch": {"eval_strategy": "no", "load_best_model_at_end": False},
    "accumulation": {"gradient_accumulation_steps": 2, "eval_accumulation_steps": 1},
    "in order": {"train_sampling_strategy": "sequential", "dataloader_num_workers": 0},
}


@pytest.mark.parametrize("settings", ALONE.values(), ids=ALONE)
def test_supported_values_train(tmp_path, settings):
    data, model = tiny_corpus()["validation"], tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = arguments(
        tmp_path, num_train_epochs=2, per_device_train_batch_size=2, learning_rate=1e-3, report_to="none", **settings
    )
    trainer = MisterETrainer(model, made, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(value.isfinite().all() for value in model.parameters())
    best = trainer.state.best_metric
    if best is not None:
        name = (made.metric_for_best_model or "loss").removeprefix("eval_")
        scores = [entry[f"eval_{name}"] for entry in trainer.state.log_history if f"eval_{name}" in entry]
        assert best == (max if made.greater_is_better else min)(scores)


def test_rules_describe_their_values():
    assert str(FIELDS["max_steps"]) == "a whole number of at least 1 and at most 1,000,000,000, or -1"
    assert str(FIELDS["eval_strategy"]) == "one of no, steps, epoch"
    assert isinstance(FIELDS["run_name"], Kind)
