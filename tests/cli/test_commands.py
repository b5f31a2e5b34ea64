import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import mister_e_hf
from mister_e_hf import cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.cli import commands, train
from mister_e_hf.corpora import summary
from mister_e_hf.corpora.schema import LABELS as LABEL_SETS
from mister_e_hf.corpora.schema import SPLITS
from mister_e_hf.corpora.summary import format_summary, summarize
from support.forks import fork
from support.loopback_hub import loopback_hub
from support.new_process import run_python
from support.small_corpora import CALLS, LABELS, noise, read_calls, write_calls, write_iemocap, write_meld, write_mosi

SCRIPT = Path(sys.executable).with_name("mister-e")


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> Path:
    return write_calls(tmp_path_factory.mktemp("calls") / "source")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a command in this process; returns its status, its stdout, and its stderr without progress bars."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        status = cli.main([*map(str, words), "--cache_dir", str(tmp_path / "cache")])
        printed = capsys.readouterr()
        return status, printed.out, re.sub(r"[^\n]*\r[^\n]*\n?", "", printed.err)

    return run


def environment(home: Path, **more: str) -> dict[str, str]:
    return os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"} | more


def load(folder: Path, tmp_path: Path) -> datasets.DatasetDict:
    return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "loaded"))


def emotions(corpus: datasets.DatasetDict) -> dict[str, list[str | None]]:
    """By dialogue."""
    names = corpus["train"].features["utterances"].feature["emotion"].names
    return {
        row["dialogue_id"]: [None if turn["emotion"] is None else names[turn["emotion"]] for turn in row["utterances"]]
        for data in corpus.values()
        for row in data
    }


def only_notes(error: str) -> bool:
    """Whether nothing but what is too little in so small a corpus was written."""
    return all(re.match("(warning: )?(train|validation|test) has ", line) for line in error.splitlines())


# Without a corpus

HEAVY = """
import json, sys, time
from mister_e_hf import cli
try:
    status = cli.main(sys.argv[1:])
except SystemExit as error:
    status = error.code
heavy = {"torch", "transformers", "datasets", "numpy", "pyarrow", "soundfile", "soxr", "huggingface_hub", "yaml"}
print("\\n" + json.dumps([status, sorted(heavy & set(sys.modules))]))
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--help"],
            [
                "corpus",
                "train",
                "embed",
                "evaluate",
                "report",
                "predict",
                "plot",
                "serve",
                "push",
                "convert",
                "doctor",
                "--version",
            ],
        ),
        (["train", "--help"], ["--seeds", "--output_dir", "--field VALUE", "--debug"]),
        (["predict", "--help"], ["--segments", "--model", "--transcriber"]),
        (["corpus", "--help"], ["iemocap", "meld", "mosi", "folder"]),
        (["corpus", "folder", "--help"], ["--columns", "--split_shares", "--bad_audio", "--push_to_hub", "--debug"]),
        (["--version"], [f"mister-e {mister_e_hf.__version__}"]),
        ([], ["usage: mister-e", "predict", "--version"]),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(tmp_path, words, expected):
    call = subprocess.run(
        [sys.executable, "-c", HEAVY, *words], env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    *printed, report = call.stdout.splitlines()
    assert json.loads(report) == [0, []]
    assert [word for word in expected if word not in "\n".join(printed)] == []
    shown = subprocess.run([SCRIPT, *words], env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and shown.stderr == "" and shown.stdout.strip() == "\n".join(printed).strip()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["corpus"], "arguments are required: CORPUS"),
        (["copus"], "invalid choice: 'copus'; did you mean 'corpus'?"),
        (["predit", "call.wav"], "invalid choice: 'predit'; did you mean 'predict'?"),
        (["corpus", "ravdess"], "invalid choice: 'ravdess'"),
        (["doctor", "--folder", "x"], "unrecognized arguments: --folder"),
        (["corpus", "folder"], "arguments are required: --data_dir"),
        (["corpus", "folder", "--data_dir", "x", "--bad_audio", "skip"], "invalid choice: 'skip'"),
        (["corpus", "folder", "--data_dir", "x", "--config", "6way"], "unrecognized arguments: --config"),
        (["corpus", "meld", "--seed", "1"], "unrecognized arguments: --seed"),
        (["corpus", "iemocap", "--labels", "all"], "invalid choice: 'all'"),
        (["corpus", "folder", "--data_dir", "x", "--split_shares", "0.5", "0.5"], "expected 3 arguments"),
    ],
    ids=" ".join,
)
def test_invalid_command_line_prints_the_usage_and_returns_2(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("usage: mister-e") and message in printed.err


@pytest.mark.parametrize("module", ["mister_e_hf", "mister_e_hf.cli"])
def test_package_runs_as_a_module(tmp_path, module):
    for words, status in ((["--version"], 0), (["predit"], 2)):
        command = [sys.executable, "-m", module, *words]
        call = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
        assert call.returncode == status, call.stderr
        assert status or call.stdout == f"mister-e {mister_e_hf.__version__}\n"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


# Beginnings of a fragment; help says what an option is or does, in a noun or a verb.
FRAGMENTS = {"even", "for", "how", "in", "its", "of", "several", "such", "the", "where", "which", "with", "your"}


def test_every_help_line_begins_with_a_noun_or_a_verb_and_options_have_underscores():
    found = list(parsers(commands._parser()))
    assert len(found) > 15
    for action in (action for parser in found for action in parser._actions):
        lines = [choice.help for choice in getattr(action, "_choices_actions", ())] or [action.help]
        for line in lines:
            if not isinstance(action, argparse._SubParsersAction) or line is not None:
                assert line and line[0].isalnum() and line.split()[0].lower() not in FRAGMENTS, (action, line)
                assert not line.endswith("."), line
        assert not any("-" in option.lstrip("-") for option in action.option_strings), action


def test_earlier_spellings_are_accepted(capsys, monkeypatch):
    for words in (["train-encoder"], ["train_encoder"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, "--help"])
        assert stop.value.code == 0
        assert "usage: mister-e train_encoder" in capsys.readouterr().out
    given = []
    monkeypatch.setattr(train, "_train", given.append)
    for words in (
        ["--dry-run", "--output-dir=a-b", "--model.hidden-size", "4-5"],
        ["--dry_run", "--output_dir", "a-b"],
    ):
        assert cli.main(["train", "x-y.yaml", *words]) == 0
    for arguments in given:
        assert (arguments.recipe, arguments.dry_run, arguments.output_dir) == ("x-y.yaml", True, "a-b")
    assert given[0].overrides == ["--model.hidden_size", "4-5"]


# A corpus from its files to a folder


def test_own_folder_with_the_installed_command(calls, tmp_path):
    words = ["corpus", "folder", "--data_dir", calls, "--labels", *LABELS, "--out", tmp_path / "out"]
    call = subprocess.run(
        [SCRIPT, *words], env=environment(tmp_path / "home"), capture_output=True, text=True, timeout=100
    )
    assert call.returncode == 0 and only_notes(call.stderr)
    corpus = read_calls(calls, tmp_path / "cache")
    assert call.stdout == f"{format_summary(summarize(corpus))}\nin {tmp_path / 'out'}\n"
    loaded = load(tmp_path / "out", tmp_path)
    for split in SPLITS:
        assert loaded[split].features == corpus[split].features and loaded[split].to_list() == corpus[split].to_list()
    assert list((tmp_path / "home" / "datasets" / "dialogue_folder").iterdir())


def test_without_out_only_the_counts_are_printed(calls, tmp_path, run, caplog):
    before = sorted(calls.rglob("*"))
    status, out, error = run("corpus", "folder", "--data_dir", calls, "--labels", *LABELS)
    assert status == 0 and only_notes(error) and only_notes("\n".join(caplog.messages))
    assert "test has no turn of sad, anger" in caplog.text and "validation has 1 labelled turn:" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["cache"] and sorted(calls.rglob("*")) == before
    assert list((tmp_path / "cache" / "dialogue_folder").rglob("*.arrow"))
    assert out == format_summary(summarize(read_calls(calls, tmp_path / "other"))) + "\n"


def test_embed_audio(calls, tmp_path, run):
    assert run("corpus", "folder", "--data_dir", calls, "--out", tmp_path / "out", "--embed_audio")[0] == 0
    turns = [turn for data in load(tmp_path / "out", tmp_path).values() for row in data for turn in row["utterances"]]
    assert sum(turn["audio"] is not None for turn in turns) == 6
    assert all(turn["audio"]["bytes"].startswith(b"fLaC") for turn in turns if turn["audio"])


def test_columns_seed_shares_and_labels_of_an_own_folder(tmp_path, run):
    (tmp_path / "source").mkdir()
    lines = ["call,nr,words,mood"]
    lines += [f"c{call},{nr},Hm.,{'calm' if nr else 'upset'}" for call in range(20) for nr in range(2)]
    (tmp_path / "source" / "turns.csv").write_text("\n".join(lines))
    table = ["corpus", "folder", "--data_dir", tmp_path / "source"]
    table += ["--columns", "dialogue_id=call", "order=nr", "text=words", "emotion=mood"]
    splits = {}
    for seed in ("0", "1"):
        words = ["--seed", seed, "--split_shares", "0.5", "0.2", "0.3", "--labels", "upset", "calm", "bored"]
        assert run(*table, *words, "--out", tmp_path / seed)[0] == 0
        corpus = load(tmp_path / seed, tmp_path)
        assert [len(corpus[split]) for split in SPLITS] == [10, 4, 6]
        assert corpus["train"].features["utterances"].feature["emotion"].names == ["upset", "calm", "bored"]
        assert set(map(tuple, emotions(corpus).values())) == {("upset", "calm")}
        splits[seed] = [set(corpus[split]["dialogue_id"]) for split in SPLITS]
    assert splits["0"] != splits["1"]
    assert run(*table, "--out", tmp_path / "default")[0] == 0
    corpus = load(tmp_path / "default", tmp_path)
    assert [len(corpus[split]) for split in SPLITS] == [16, 2, 2]
    assert corpus["train"].features["utterances"].feature["emotion"].names == ["calm", "upset"]


def test_bad_audio_and_max_seconds(calls, tmp_path, run):
    table = ["corpus", "folder", "--data_dir", calls, "--labels", *LABELS]
    status, out, error = run(*table, "--max_seconds", "0.9")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: Dialogue folder, turn a_0: .*a\.wav' lasts 1\.0 s, .*bad_audio.*\n", error)
    status, out, error = run(*table, "--max_seconds", "0.9", "--bad_audio", "missing", "--out", tmp_path / "out")
    assert status == 0 and re.search(r"turns without audio +2 +0 +1\n", out)
    turns = load(tmp_path / "out", tmp_path)["train"][0]["utterances"]
    assert [turn["duration"] for turn in turns] == [None, 0.75, 0.5]


def test_several_processes_read_the_same_corpus(calls, tmp_path, run):
    table = ["corpus", "folder", "--data_dir", calls, "--labels", *LABELS]
    status, out, error = run(*table, "--num_proc", "2")
    assert status == 0 and out == format_summary(summarize(read_calls(calls, tmp_path / "other"))) + "\n"
    assert len(list((tmp_path / "cache").rglob("*-train-*-of-00002.arrow"))) == 2
    # Of an error in another process only the text comes back.
    status, out, error = run(*table, "--num_proc", "2", "--max_seconds", "0.9")
    assert status == 2 and "a.wav' lasts 1.0 s" in error
    assert error.splitlines()[0] == "reading train: 2 dialogues with 2 processes" and error.count("\n") == 2


def test_iemocap(tmp_path, run):
    iemocap = ["corpus", "iemocap", "--data_dir", write_iemocap(tmp_path / "source")]
    plain = {
        "Ses02F_impro02": ["neutral", "excited", "frustrated"],
        "Ses01F_impro03": ["neutral", "excited", "happy", "frustrated"],
        "Ses05F_impro01": ["neutral", "excited", "frustrated"],
    }
    changes = {
        (): (plain, LABEL_SETS["iemocap-6way"]),
        ("--config", "6way", "--labels", "community", "--validation", "session 1", "--other_labels", "drop"): (
            plain,
            LABEL_SETS["iemocap-6way"],
        ),
        ("--config", "4way"): (
            {
                name: ["happy" if label == "excited" else label for label in labels if label != "frustrated"]
                for name, labels in plain.items()
            },
            LABEL_SETS["iemocap-4way"],
        ),
        ("--labels", "official"): (
            plain | {"Ses01F_impro03": ["neutral", "excited", "frustrated"]},
            LABEL_SETS["iemocap-6way"],
        ),
        ("--other_labels", "context"): (
            {
                "Ses02F_impro02": ["neutral", "excited", None, None, "frustrated"],
                "Ses01F_impro03": ["neutral", "excited", None, "happy", "frustrated"],
                "Ses05F_impro01": ["neutral", "excited", None, None, "frustrated"],
            },
            LABEL_SETS["iemocap-6way"],
        ),
        ("--validation", "conv-emotion"): (plain, LABEL_SETS["iemocap-6way"]),
    }
    for words, (expected, labels) in changes.items():
        status, out, error = run(*iemocap, *words, "--out", tmp_path / "out")
        assert status == 0 and out.splitlines()[-1].startswith(f"in {tmp_path / 'out'}")
        corpus = load(tmp_path / "out", tmp_path)
        assert corpus["train"].features["utterances"].feature["emotion"].names == labels
        assert emotions(corpus) == expected
        moved = "--validation" in words and "conv-emotion" in words
        assert corpus["validation"]["dialogue_id"] == ["Ses02F_impro02" if moved else "Ses01F_impro03"]
        assert corpus["test"]["dialogue_id"] == ["Ses05F_impro01"]
        assert re.search(r"turns without audio +0 +0 +0\n", out)


def test_meld(tmp_path, run):
    status, out, _ = run("corpus", "meld", "--data_dir", write_meld(tmp_path / "source"), "--out", tmp_path / "out")
    assert status == 0 and re.search(r"turns without audio +0 +1 +0\n", out)
    assert emotions(load(tmp_path / "out", tmp_path)) == {
        f"{split}_dia0": ["sadness", "joy"] for split in ("train", "dev", "test")
    }
    status, out, error = run("corpus", "meld", "--data_dir", tmp_path / "source", "--bad_audio", "error")
    assert (status, out) == (2, "") and "dev_dia0_utt1" in error and error.count("\n") == 1


def test_mosi(tmp_path, run):
    status, out, _ = run("corpus", "mosi", "--data_dir", write_mosi(tmp_path / "source"), "--out", tmp_path / "out")
    assert status == 0 and re.search(r"without label +0 +1 +1\n", out)
    assert emotions(load(tmp_path / "out", tmp_path)) == {
        "v1": ["negative", "non-negative"],
        "v2": ["negative", None],
        "v3": ["negative", None],
    }


# Errors


def test_error_is_one_line_and_with_debug_a_traceback(tmp_path, run):
    words = ["corpus", "folder", "--data_dir", tmp_path / "nowhere"]
    status, out, error = run(*words)
    assert (status, out) == (2, "")
    assert error == f"error: Dialogue folder: '{tmp_path / 'nowhere'}' does not exist\n"
    status, out, error = run(*words, "--debug")
    assert (status, out) == (2, "")
    assert error.startswith("Traceback") and f"Dialogue folder: '{tmp_path / 'nowhere'}' does not exist" in error


def test_error_of_many_lines_is_printed_as_one(tmp_path, run):
    (tmp_path / "turns.csv").write_text('dialogue_id,order,text,"two\nlines"\nd,0\n')
    status, out, error = run("corpus", "folder", "--data_dir", tmp_path)
    assert (status, out) == (2, "") and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["iemocap"], "IEMOCAP is not downloaded"),
        (["mosi"], "CMU-MOSI is not downloaded"),
        (["iemocap", "--data_dir", "."], "is not an IEMOCAP_full_release"),
        (["mosi", "--data_dir", "."], "is not CMU-MOSI"),
        (["meld", "--data_dir", "."], "No 'train_sent_emo.csv'"),
        (["folder", "--data_dir", ".", "--columns", "emotion"], "--columns expects FIELD=NAME, got ['emotion']"),
        (["folder", "--data_dir", ".", "--columns", "mood=emotion"], "mood"),
        (["folder", "--data_dir", "."], "holds no table of turns"),
    ],
    ids=" ".join,
)
def test_invalid_input_is_one_line(tmp_path, monkeypatch, run, words, message):
    monkeypatch.chdir(tmp_path)
    status, out, error = run("corpus", *words)
    assert (status, out) == (2, "")
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (KeyError("b"), 1, "error: KeyError: 'b' (--debug shows where)"),
        (RuntimeError(), 1, "error: RuntimeError: RuntimeError (--debug shows where)"),
        (MemoryError("no\n  memory"), 1, "error: MemoryError: no memory (--debug shows where)"),
        (InputError("a\n  b"), 2, "error: a b"),
        (ValueError("b"), 1, "error: ValueError: b (--debug shows where)"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: [Errno 32] Broken pipe"),  # of no output of ours
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_status_and_message_of_an_exception(calls, monkeypatch, run, raised, status, line):
    def fail(*_):
        raise raised

    monkeypatch.setattr(summary, "summarize", fail)
    found, out, error = run("corpus", "folder", "--data_dir", calls)
    assert (found, out, error) == (status, "", f"{line}\n")


def test_cause_of_an_unexpected_error_is_printed(calls, monkeypatch, run):
    def fail(*_):
        raise RuntimeError("It broke") from OSError("disk full")

    monkeypatch.setattr(summary, "summarize", fail)
    printed = run("corpus", "folder", "--data_dir", calls)[2]
    assert printed == "error: RuntimeError: It broke (OSError: disk full) (--debug shows where)\n"


def test_other_files_in_out_raise_before_the_corpus_is_read(tmp_path, run):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    words = ["corpus", "folder", "--data_dir", tmp_path / "nowhere", "--out", tmp_path / "out"]
    status, out, error = run(*words)
    assert (status, out) == (2, "") and "holds something other than a corpus" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_corpus_in_out_is_replaced(calls, tmp_path, run):
    for labels in (LABELS, ["anger", "joy"]):
        assert run("corpus", "folder", "--data_dir", calls, "--labels", *labels, "--out", tmp_path / "out")[0] == 0
        features = load(tmp_path / "out", tmp_path)["train"].features
        assert features["utterances"].feature["emotion"].names == labels


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda sent: sent.name)
def test_interrupted_command_returns_130_and_leaves_no_files(tmp_path, sent):
    (tmp_path / "source").mkdir()
    soundfile.write(tmp_path / "source" / "long.wav", noise(60), 16_000)
    lines = ["dialogue_id,order,file_name,split"]
    lines += [f"d{dialogue},{turn},long.wav,train" for dialogue in range(20) for turn in range(3)]
    (tmp_path / "source" / "metadata.csv").write_text("\n".join(lines))
    words = ["corpus", "folder", "--data_dir", "source", "--embed_audio", "--out", "out", "--cache_dir", "cache"]

    def command():
        os.chdir(tmp_path)
        sys.exit(cli.main(words))

    log = tmp_path / "log.txt"
    log.touch()
    process, end = fork(command, log), time.monotonic() + 90
    # Once the counts are there, the folder is being written, for seconds.
    while not re.search(r"without video +60\n", log.read_text()):
        assert os.waitpid(process, os.WNOHANG)[0] == 0 and time.monotonic() < end, log.read_text()
        time.sleep(0.01)
    os.kill(process, sent)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    assert log.read_text().endswith("interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "log.txt", "source"]


def test_interrupt_while_audio_is_read_is_not_lost(calls, monkeypatch, run):
    class Interrupted(io.BytesIO):
        """A callback from C, in which exceptions are dropped, reads it."""

        def readinto(self, buffer):
            raise KeyboardInterrupt

    def read(*_):
        with pytest.raises(soundfile.LibsndfileError):
            soundfile.read(Interrupted(b"RIFF"))
        for _ in range(600):
            time.sleep(0.1)
        raise AssertionError("no interrupt came")

    hook = sys.unraisablehook
    monkeypatch.setattr(summary, "summarize", read)
    assert run("corpus", "folder", "--data_dir", calls) == (130, "", "interrupted\n")
    assert sys.unraisablehook is hook


def test_interrupt_while_audio_is_written_is_not_an_error(calls, monkeypatch, run):
    class Interrupted(io.BytesIO):
        """A callback from C, in which exceptions are dropped, writes it."""

        def write(self, buffer):
            raise KeyboardInterrupt

    def write(*_):
        soundfile.write(Interrupted(), np.zeros(100_000), 16_000, format="FLAC")

    monkeypatch.setattr(summary, "summarize", write)
    assert run("corpus", "folder", "--data_dir", calls) == (130, "", "interrupted\n")
    time.sleep(0.2)  # in which nothing may interrupt the test itself


@pytest.mark.parametrize("buffered", [True, False])
def test_closed_pipe_is_ignored_and_the_work_is_finished(calls, tmp_path, buffered):
    reading, writing = os.pipe()
    os.close(reading)  # as of `| true`
    words = ["corpus", "folder", "--data_dir", calls, "--out", tmp_path / "out"]
    more = {"PYTHONUNBUFFERED": "" if buffered else "1"}
    try:
        call = subprocess.run(
            [SCRIPT, *words],
            env=environment(tmp_path / "home", **more),
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=100,
        )
    finally:
        os.close(writing)
    assert call.returncode == 0 and only_notes(call.stderr.decode())
    assert pq.read_metadata(tmp_path / "out" / "train.parquet").num_rows == len(CALLS["train"])


# To the Hub


@pytest.mark.parametrize("name", ["iemocap", "meld", "mosi"])
def test_licensed_corpus_is_neither_pushed_nor_read(tmp_path, monkeypatch, run, name):
    monkeypatch.setenv("HF_TOKEN", "none")
    words = ["--data_dir", tmp_path / "nowhere", "--out", tmp_path / "out", "--push_to_hub", "org/name"]
    status, out, error = run("corpus", name, *words)
    assert (status, out) == (2, "")
    assert "is not pushed" in error and ("licence" in error or "belong" in error or "not redistribute" in error)
    assert not (tmp_path / "out").exists()


def test_impossible_push_raises_before_the_corpus_is_read(tmp_path, monkeypatch, run):
    words = ["corpus", "folder", "--data_dir", tmp_path / "nowhere", "--push_to_hub"]
    monkeypatch.setenv("HF_TOKEN", "none")
    status, out, error = run(*words, "a/b/c")
    assert (status, out) == (2, "") and "a/b/c" in error and error.count("\n") == 1
    monkeypatch.delenv("HF_TOKEN")
    env = {name: value for name, value in environment(tmp_path / "home").items() if "TOKEN" not in name}
    call = run_python(SCRIPT, *words, "org/name", env=env)
    assert (call.returncode, call.stdout) == (2, "")
    assert re.fullmatch(r"error: A token is needed to push to 'org/name'\. .*HF_TOKEN.*\n", call.stderr)


def test_push_with_and_without_a_folder(calls, tmp_path):
    words = [SCRIPT, "corpus", "folder", "--data_dir", calls, "--labels", *LABELS, "--push_to_hub"]
    with loopback_hub() as hub:
        env = hub.env(tmp_path / "home") | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TMPDIR": str(tmp_path)}
        pushed = {
            "org/public": ["--out", tmp_path / "out"],
            "org/secret": ["--private"],
        }
        for name, more in pushed.items():
            call = run_python(*words, name, *more, env=env)
            assert call.returncode == 0 and only_notes(call.stderr)
            where = [f"in {tmp_path / 'out'}"] if "--out" in more else []
            assert call.stdout.splitlines()[-1 - len(where) :] == [*where, f"pushed to {name}"]
        files = {
            name: {path: hub.read(name, path, "dataset") for path in hub.files(name, "dataset")} for name in pushed
        }
        private = {name: hub.is_private(name, "dataset") for name in pushed}
    assert private == {"org/public": False, "org/secret": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]
    for split in SPLITS:
        table = (tmp_path / "out" / f"{split}.parquet").read_bytes()
        assert [content[f"{split}.parquet"] == table for content in files.values()] == [True, True]
    turn = load(tmp_path / "out", tmp_path)["train"][0]["utterances"][0]
    assert turn["audio"]["bytes"].startswith(b"fLaC")
    np.testing.assert_array_equal(mister_e_hf.load_audio(turn["audio"]) * 32768, noise(1.0))
