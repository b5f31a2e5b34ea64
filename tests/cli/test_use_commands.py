"""`mister-e predict`, `evaluate`, `push`, `convert` and `doctor` on a checkpoint with every stage."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import pipeline

from mister_e_hf import MisterEConfig, MisterEModel, cli, read_corpus
from mister_e_hf.hub.checkpoint import checkpoint_files, save_checkpoint
from support.loopback_hub import loopback_hub
from support.new_process import run_python
from support.small_demo import copy_small_demo

SUBTITLES = """1
00:00:00,100 --> 00:00:00,800
Really, you said?

2
00:00:00,900 --> 00:00:01,400
Never.
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return copy_small_demo(tmp_path_factory.mktemp("use") / "run")


@pytest.fixture
def command(capsys):
    """Runs a command in this process; returns its status, its stdout, and its stderr without progress bars."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        printed = capsys.readouterr()
        return status, printed.out, re.sub(r"[^\n]*\r[^\n]*\n?", "", printed.err)

    return run


@pytest.fixture
def call(tmp_path) -> tuple[Path, Path]:
    """A recording and its subtitles."""
    samples = 0.2 * np.sin(2 * np.pi * 180 * np.arange(24_000) / 16_000)
    soundfile.write(tmp_path / "call.wav", samples, 16_000)
    (tmp_path / "call.srt").write_text(SUBTITLES)
    return tmp_path / "call.wav", tmp_path / "call.srt"


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# predict


def test_predict_writes_a_line_per_turn(run, command, call, tmp_path):
    recording, subtitles = call
    words = ("predict", recording, "--segments", subtitles, "--model", run)
    status, printed, _ = command(*words)
    first, second = lines_of(printed)
    assert status == 0
    assert {name: first[name] for name in ("dialogue", "turn", "start", "end", "text")} == {
        "dialogue": "call.wav",
        "turn": 0,
        "start": 0.1,
        "end": 0.8,
        "text": "Really, you said?",
    }
    erc = pipeline("conversation-emotion-recognition", model=str(run))
    expected = erc({"audio": str(recording), "segments": str(subtitles)})
    assert [{name: line[name] for name in expected[0]} for line in (first, second)] == expected
    status, printed, _ = command(*words, "--out", tmp_path / "call.jsonl", "--top_k", "2")
    assert status == 0 and printed == f"2 turns in {tmp_path / 'call.jsonl'}\n"
    written = lines_of((tmp_path / "call.jsonl").read_text())
    assert [len(line["scores"]) for line in written] == [2, 2]
    assert [line["label"] for line in written] == [first["label"], second["label"]]


def test_predict_keeps_the_order_of_dialogues_in_a_folder(run, command):
    recordings = run / "demo" / "recordings" / "test"
    status, printed, _ = command("predict", recordings, "--model", run)
    found = lines_of(printed)
    corpus = read_corpus(run / "vectors")["test"]
    assert status == 0
    assert [(line["dialogue"], line["turn"]) for line in found] == [
        (name, turn)
        for name, ids in zip(corpus.dialogue_ids, corpus.utterance_ids, strict=True)
        for turn in range(len(ids))
    ]
    stored = [
        row["prediction"] for row in pq.read_table(run / "predictions.parquet").to_pylist() if row["split"] == "test"
    ]
    assert [line["label"] for line in found] == stored


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere.wav", "--segments", "{srt}"), "'nowhere.wav' not found; expected a recording, folder or table"),
        (("{wav}", "--segments", "{srt}", "--model", "{folder}"), "call' is not a checkpoint: it has no config.json"),
        (("{wav}", "--segments", "nowhere.srt"), "No subtitles at 'nowhere.srt'"),
        (("{wav}", "--segments", "{srt}", "--top_k", "0"), "top_k must be a positive number"),
        (("{wav}", "--segments", "{srt}", "--columns", "emotion"), "--columns expects FIELD=NAME"),
    ],
)
def test_predict_reports_invalid_input(run, command, call, words, message):
    empty = call[0].with_suffix("")
    empty.mkdir()
    given = [word.format(wav=call[0], srt=call[1], folder=empty) for word in words]
    status, printed, error = command("predict", "--model", run, *given)
    assert (status, printed) == (2, "") and message in error and len(error.splitlines()) == 1


def test_failed_prediction_leaves_no_file(run, command, call, tmp_path):
    (tmp_path / "call.srt").write_text(SUBTITLES.replace("00:00:01,400", "00:01:01,400"))
    status, _, error = command("predict", call[0], "--segments", call[1], "--model", run, "--out", tmp_path / "out")
    assert status == 2 and "turn 1" in error and "call.wav" in error
    assert not (tmp_path / "out").exists()


# evaluate


def test_evaluate_reproduces_the_stored_scores(run, command, tmp_path):
    status, printed, _ = command("evaluate", run, "--out", tmp_path / "scores.json", "--use_cpu")
    assert status == 0 and "equal to what results.json holds" in printed and "NOT" not in printed
    stored, found = (
        json.loads((run / "results.json").read_text())["test"],
        json.loads((tmp_path / "scores.json").read_text()),
    )
    for name, block in stored.items():
        for metric in ("weighted_f1", "macro_f1", "accuracy", "num_utterances", "f1_per_class"):
            assert found[name][metric] == block[metric]
    status, printed, _ = command("evaluate", run, "--split", "validation", "--use_cpu")
    assert status == 0 and printed.startswith("validation ") and "\nequal to" in printed


def test_evaluate_on_dialogues_gives_the_same_scores(run, command, tmp_path):
    words = ("--corpus", run / "demo" / "corpus", "--use_cpu", "--out", tmp_path / "scores.json")
    status, printed, _ = command("evaluate", run, *words, "--vectors", tmp_path / "vectors")
    stored = json.loads((run / "results.json").read_text())["test"]
    assert status == 0
    assert (
        json.loads((tmp_path / "scores.json").read_text())["mixture"]["weighted_f1"]
        == stored["mixture"]["weighted_f1"]
    )
    assert (tmp_path / "vectors" / "embedding.json").is_file()


def test_evaluate_reports_invalid_input(run, command, tmp_path):
    status, _, error = command("evaluate", tmp_path)
    assert status == 2 and f"'{tmp_path}' is not a checkpoint: it has no config.json" in error
    alone = shutil.copytree(
        run, tmp_path / "alone", ignore=shutil.ignore_patterns("*_encoder", "encoders", "demo", "vectors")
    )
    status, _, error = command("evaluate", alone, "--corpus", run / "demo" / "corpus")
    assert status == 2 and "holds no encoders (speech_encoder/ or text_encoder/)" in error
    status, _, error = command("evaluate", run, "--split", "dev")
    assert status == 2 and "dev" in error


def test_unknown_labels_raise_before_anything_is_embedded(run, command, tmp_path):
    table = (
        "dialogue_id,order,text,emotion,split\na,0,Well.,bored,train\nb,0,So.,bored,validation\nc,0,No.,bored,test\n"
    )
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "metadata.csv").write_text(table)
    out, vectors = tmp_path / "corpus", tmp_path / "vectors"
    assert command("corpus", "folder", "--data_dir", tmp_path / "calls", "--out", out)[0] == 0
    status, _, error = command("evaluate", run, "--corpus", out, "--vectors", vectors)
    assert status == 2 and "the label 'bored', which is none of the model's labels" in error
    assert not vectors.exists()


# push


def test_dry_run_lists_the_files_of_a_push(run, command, tmp_path):
    status, printed, _ = command("push", run, "org/name", "--dry-run")
    printed, _, claims = printed.partition("the card says:\n")
    assert "model name: MiSTER-E" in claims and "license: apache-2.0" in claims
    assert re.search(r"weighted_f1 0\.\d{4} on .* \(test\)", claims)
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in printed.splitlines()}
    assert status == 0 and listed == checkpoint_files(run)
    assert {"config.json", "pipeline_conversation_emotion.py", "speech_encoder/processor_config.json"} <= set(listed)
    assert not [
        name
        for name in listed
        if name.endswith((".parquet", ".pt", ".bin")) or name.startswith(("checkpoint", "encoders"))
    ]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    with loopback_hub() as hub:
        words = ("-m", "mister_e_hf.cli", "push", run, "org/name", "--private")
        done = run_python(*words, env=environment | hub.env(tmp_path / "home"))
        assert done.returncode == 0 and done.stdout == "pushed to org/name\n", done.stderr
        assert set(hub.files("org/name")) - {".gitattributes"} == set(listed)


def test_folder_that_is_not_a_checkpoint_is_not_pushed(command, tmp_path):
    status, _, error = command("push", tmp_path, "org/name")
    assert status == 2 and "is not a checkpoint folder: it has no config.json" in error


PUSH_ON = """
import sys
from mister_e_hf import MisterEModel
print(MisterEModel.from_pretrained(sys.argv[1]).push_to_hub("org/model"))
print(MisterEModel.from_pretrained("org/model").push_to_hub("org/again"))
"""


def test_model_pushes_the_folder_it_was_loaded_from(run, tmp_path):
    with loopback_hub() as hub:
        environment = os.environ | hub.env(tmp_path / "home")
        done = run_python("-c", PUSH_ON, run, env=environment)
        assert done.returncode == 0, done.stderr
        for name in ("org/model", "org/again"):
            assert set(hub.files(name)) - {".gitattributes"} == set(checkpoint_files(run))
            assert "Weighted F1" in hub.read(name, "README.md").decode()
            weights = "text_encoder/model.safetensors"
            assert hub.read(name, weights) == (run / weights).read_bytes()


def test_pipeline_saves_its_encoders(run, tmp_path):
    turns = [{"text": "You did what?"}, {"text": "Never."}]
    erc = pipeline("conversation-emotion-recognition", model=str(run))
    erc.save_pretrained(tmp_path / "saved")
    again = pipeline("conversation-emotion-recognition", model=str(tmp_path / "saved"))
    assert again(turns) == erc(turns)
    assert (tmp_path / "saved" / "speech_encoder" / "config.json").is_file()


# doctor


def test_doctor_accepts_a_complete_folder(run, command):
    status, printed, _ = command("doctor", run)
    assert status == 0 and "BAD" not in printed
    for expected in (
        "torch 2.",
        "speech_encoder/:",
        "vectors of 32 numbers",
        "logits of three random turns are finite",
    ):
        assert expected in printed
    assert command("doctor")[0] == 0


def broken_weights(folder: Path):
    state = load_file(folder / "model.safetensors")
    state["speech_expert.head.weight"][0, 0] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN = {
    "NaN": (broken_weights, "NaN.*speech_expert.head.weight"),
    "cut off": (
        lambda folder: os.truncate(folder / "model.safetensors", 1000),
        "model.safetensors|header|incomplete|deserializ",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "encoder without its weights": (
        lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(),
        "text_encoder/",
    ),
    "pickle": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin may be a pickle"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "no README.md"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_doctor_reports_a_damaged_folder(run, command, tmp_path, spoil, message):
    folder = shutil.copytree(
        run, tmp_path / "run", ignore=shutil.ignore_patterns("demo", "encoders", "vectors", "checkpoint*")
    )
    spoil(folder)
    status, printed, error = command("doctor", folder)
    assert status == 2 and re.fullmatch(r"error: [1-9] findings? of \d+ marked BAD above\n", error)
    assert re.search(message, "\n".join(line for line in printed.splitlines() if line.startswith("BAD")))


# convert


def test_convert_reports_missing_weights(command, tmp_path):
    status, _, error = command("convert", tmp_path / "moe_model.pth", tmp_path / "out", "--labels", "a", "b")
    assert status == 2 and "No checkpoint at" in error and not (tmp_path / "out").exists()


# The folder is the same whoever writes it


def test_model_without_a_recipe_has_no_training_yaml(tmp_path):
    sizes = {
        "speech_embedding_dim": 3,
        "text_embedding_dim": 2,
        "hidden_size": 8,
        "attention_dim": 6,
        "fusion_num_layers": 1,
    }
    folder = save_checkpoint(tmp_path / "out", MisterEModel(MisterEConfig(**sizes)))
    assert not (folder / "training.yaml").exists()
    assert yaml.safe_load((folder / "config.json").read_text())["custom_pipelines"]
