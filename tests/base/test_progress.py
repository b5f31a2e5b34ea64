"""What commands show: named lines and one bar on standard error, results on standard output, and nothing else."""

import contextlib
import json
import logging
import warnings

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from mister_e_hf.base import progress
from mister_e_hf.cli.output import Failure, print_result, printing
from mister_e_hf.training.epoch_lines import EpochLines
from support.terminal import Terminal


def training(tmp_path, done=0, **given):
    """A training's callback, fed as the Trainer feeds it: two epochs of three steps, of which some are done."""
    arguments = TrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, metric_for_best_model="weighted_f1", **given
    )
    state, control = TrainerState(max_steps=6, num_train_epochs=2), TrainerControl()
    state.global_step, state.epoch = 3 * done, float(done)
    callback = EpochLines("text encoder")
    callback.on_train_begin(arguments, state, control)
    for epoch in range(1 + done, 3):
        for _ in range(3):
            state.global_step += 1
            callback.on_step_end(arguments, state, control)
        state.epoch = float(epoch)
        callback.on_log(arguments, state, control, logs={"loss": 0.5 / epoch, "learning_rate": 1e-3})
        if arguments.eval_strategy != "no":
            callback.on_evaluate(
                arguments, state, control, metrics={"eval_loss": 1.0, "eval_weighted_f1": 0.4 * epoch}
            )
    callback.on_train_end(arguments, state, control)


def test_a_line_for_each_epoch(tmp_path, capsys):
    training(tmp_path, eval_strategy="epoch")
    assert capsys.readouterr() == (
        "",
        "text encoder, epoch 1 of 2: loss 0.5, validation weighted F1 40.00\n"
        "text encoder, epoch 2 of 2: loss 0.25, validation weighted F1 80.00\n",
    )
    training(tmp_path, done=1, eval_strategy="epoch")
    assert capsys.readouterr().err.startswith("text encoder: resuming from epoch 1\ntext encoder, epoch 2 of 2: ")
    training(tmp_path)
    assert capsys.readouterr().err == "text encoder, epoch 1 of 2: loss 0.5\ntext encoder, epoch 2 of 2: loss 0.25\n"


def test_one_bar_with_a_title_on_a_terminal(tmp_path):
    with contextlib.redirect_stderr(Terminal()) as terminal:
        training(tmp_path, eval_strategy="epoch")
    shown = terminal.getvalue()
    assert "text encoder:" in shown and "| 0/6 " in shown and "%|" not in shown.rpartition("\r")[2]
    with contextlib.redirect_stderr(Terminal()) as terminal:
        training(tmp_path, disable_tqdm=True)
    assert "%|" not in terminal.getvalue() and "epoch 2 of 2" in terminal.getvalue()


def test_quiet_shows_nothing(tmp_path):
    with contextlib.redirect_stderr(Terminal()) as terminal:
        with progress.quiet():
            training(tmp_path, eval_strategy="epoch")
            with progress.bar("vectors", 3, "turns") as bar:
                bar.update(3)
        assert terminal.getvalue() == "" and progress.shows_bars()


def test_error_begins_on_a_new_line():
    with contextlib.redirect_stderr(Terminal()) as terminal:
        bar = progress.bar("vectors", 3, "turns")
        bar.update(1)
        progress.close_bars()
    assert terminal.getvalue().rpartition("\r")[2] == "" and bar.disable


def test_json_is_one_object_and_quiet_keeps_the_result(capsys):
    with printing(as_json=True):
        print_result("the mean is 3", mean=3)
        print_result("in x", folder="x")
    assert json.loads(capsys.readouterr().out) == {"mean": 3, "folder": "x"}
    with printing(quiet=True):
        print_result("the mean is 3", mean=3)
        progress.line("a step")
    assert capsys.readouterr() == ("the mean is 3\n", "")
    with pytest.raises(ValueError), printing(as_json=True):
        print_result("no score", score=float("nan"))
    assert capsys.readouterr().out == ""


def test_failed_result_is_printed_as_json(capsys):
    with pytest.raises(Failure), printing(as_json=True):
        print_result("one is bad", findings=[False])
        raise Failure("1 of 1 is bad")
    assert capsys.readouterr().out == '{"findings": [false]}\n'


def test_one_bar_at_a_time_with_messages_above():
    with contextlib.redirect_stderr(Terminal()) as terminal, printing():
        with progress.bar("vectors", 3, "turns"), progress.bar("another", 2, "runs") as inner:
            inner.update()
            logging.getLogger("mister_e_hf.corpora").warning("a file is odd\x1b[2J")
            warnings.warn("a library's own", UserWarning, stacklevel=1)
    shown = terminal.getvalue()
    assert "another" not in shown and "a library" not in shown
    assert "\rwarning: a file is odd\\u001b[2J\n" in shown.replace(" ", " ").replace("\x1b[K", "")


def test_long_steps_are_reported_in_a_log_file_without_bars(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar("vectors", 100, "turns") as bar:
        for _ in range(100):
            now[0] += 1.0
            bar.update()
    with progress.quiet(), progress.bar("vectors", 1, "turns") as bar:
        now[0] += 100
        bar.update()
    with progress.bar("predicting", None, "vectors") as bar:  # how many there are is not known
        now[0] += 10.0
        bar.update(8)
    notes = [f"vectors: {done} of 100 turns" for done in (10, 30, 70)]
    assert capsys.readouterr().err.splitlines() == [*notes, "predicting: 8 vectors"]


def test_processes_of_one_launch_report_once(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with printing():
        progress.line("a step")
    assert capsys.readouterr().err == ""
