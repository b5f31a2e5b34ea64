import argparse
import os
import re
import signal
import time

import pytest

from mister_e_hf import cli
from mister_e_hf.cli.output import with_options
from mister_e_hf.corpora import builder
from support.small_corpora import write_calls


@pytest.fixture
def corpus(tmp_path, capfd):
    """`mister-e corpus folder` of some calls: status, output, errors."""
    write_calls(tmp_path / "calls")

    def corpus(*words: str) -> tuple[int, str, str]:
        status = cli.main(
            ["corpus", "folder", "--data_dir", str(tmp_path / "calls"), "--cache_dir", str(tmp_path / "cache"), *words]
        )
        return status, *capfd.readouterr()

    return corpus


def test_missing_audio_is_reported_before_any_is_read(corpus, tmp_path):
    for name in ("a.wav", "b.wav", "long.wav"):
        (tmp_path / "calls" / name).unlink()
    (tmp_path / "calls" / "c.wav").write_bytes(b"broken, and never read")
    status, _, error = corpus()
    assert status == 2
    assert re.fullmatch(
        r"error: Dialogue folder, turn a_0: Audio file '.*a\.wav' not found, nor 2 others: long\.wav, b\.wav\. "
        r"Repair the files, or pass --bad_audio missing to keep such turns without audio\.\n",
        error,
    )
    assert corpus("--bad_audio", "missing")[0] == 0


def test_message_about_columns_names_the_option(corpus, tmp_path):
    table = tmp_path / "calls" / "metadata.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("dialogue_id", "scene 1", 1), encoding="utf-8")
    status, _, error = corpus()
    assert status == 2 and "--columns 'dialogue_id=scene 1'" in error and "columns=" not in error
    assert corpus("--columns", "dialogue_id=scene 1")[0] == 0


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("pass bad_audio='missing'", "pass --bad_audio missing"),
        ("pass columns={'start': ''}", "pass --columns start="),
        ("pass columns={'start': 'a b'}", "pass --columns 'start=a b'"),
        ("needs data_dir, its folder", "needs --data_dir, its folder"),
        ("no '/x/data_dir/y' and text='it'", "no '/x/data_dir/y' and text='it'"),
    ],
)
def test_settings_are_printed_as_options(message, expected):
    arguments = argparse.Namespace(bad_audio=None, columns=None, data_dir=None)
    assert with_options(message, arguments) == expected
    assert with_options(message, argparse.Namespace()) == message


def test_replaced_corpus_is_named(corpus, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    assert f"in {tmp_path / 'out'}\n" in corpus(*out, "--name", "First")[1]
    assert "in place of 'First' with 4 dialogues, which was there" in corpus(*out)[1]
    assert "in place of 'calls' with 4 dialogues, which was there" in corpus(*out)[1]


def test_killed_process_is_one_line(corpus, monkeypatch):
    main, read = os.getpid(), builder.CorpusBuilder._turn

    def dying(self, *words):
        if os.getpid() != main:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, *words)

    monkeypatch.setattr(builder.CorpusBuilder, "_turn", dying)
    status, _, error = corpus("--num_proc", "2", "--quiet")
    lines = [line for line in error.splitlines() if "error:" in line]
    assert status == 2 and len(lines) == 1 and "Traceback" not in error
    assert "a process that reads audio was ended by the system" in lines[0] and lines[0].endswith("(--num_proc).")


@pytest.mark.parametrize("num_proc", [None, 2])
def test_input_error_of_any_process_is_printed(corpus, monkeypatch, num_proc):
    def refuse(source):
        raise builder.InputError("'x.parquet', row 3: what is wrong")

    monkeypatch.setattr(builder.sources, "stored_audio", refuse)
    status, _, error = corpus("--quiet", *(["--num_proc", "2"] if num_proc else []))
    assert status == 2 and "error: 'x.parquet', row 3: what is wrong\n" in error and "Traceback" not in error


def test_full_disk_is_reported(corpus, monkeypatch):
    def full(source):
        raise OSError(28, "No space left on device", "/tmp/x.arrow")

    monkeypatch.setattr(builder.sources, "stored_audio", full)
    status, _, error = corpus("--quiet")
    assert status == 2 and error.splitlines()[-1] == "error: [Errno 28] No space left on device: '/tmp/x.arrow'"
