import errno
import json
import os
import resource
import signal
import stat
import threading
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import save_file

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.files import check_output, check_output_folder, write_json, write_table, write_text, write_yaml
from mister_e_hf.base.whole_files import UNFINISHED, only_process_in, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, OSError(errno.ENOSPC, "No space")])
def test_failed_write_leaves_the_previous_file(tmp_path, error):
    path = tmp_path / "o.jsonl"
    path.write_text("before")

    def fail(partial: Path):
        partial.write_text("half")
        raise error

    with pytest.raises(type(error) if isinstance(error, OSError) else error) as raised:
        write_atomically(path, fail)
    assert names(tmp_path) == ["o.jsonl"] and path.read_text() == "before"
    if isinstance(error, OSError):
        assert str(path) in str(raised.value) and UNFINISHED not in str(raised.value)


def test_errors_of_other_files_keep_their_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="call.wav"):
        write_atomically(tmp_path / "o.jsonl", lambda partial: (tmp_path / "call.wav").read_bytes())


def test_error_names_the_output_not_the_partial_file(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write_text(tmp_path / "missing" / "o.json", "x")
    assert "missing/o.json" in str(raised.value) and UNFINISHED not in str(raised.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["folder"]


WRITERS = {
    "text": lambda path: write_text(path, "x" * 90_000),
    "json": lambda path: write_json(path, ["x" * 90_000]),
    "table": lambda path: write_table(path, pa.table({"a": torch.randn(30_000).numpy()})),
    "torch": lambda path: write_atomically(path, lambda partial: torch.save(torch.zeros(30_000), partial)),
    "safetensors": lambda path: write_atomically(path, lambda part: save_file({"a": torch.zeros(30_000)}, part)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_full_disk_names_the_file_and_leaves_no_partial_file(tmp_path, writer):
    """By the system's own limit on the size of a file, which a write meets as it meets the end of a disk."""
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(OSError) as raised:
            WRITERS[writer](tmp_path / "o.out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert "o.out'" in str(raised.value) and UNFINISHED not in str(raised.value)
    assert "large" in str(raised.value) or "full" in str(raised.value)
    assert names(tmp_path) == []


def test_last_of_two_concurrent_writers_wins(tmp_path):
    path, steps = tmp_path / "o.jsonl", threading.Barrier(2, timeout=20)

    def first(partial: Path):
        with partial.open("w") as file:
            file.write("first " * 10)
            file.flush()
            steps.wait()  # the second has begun
            steps.wait()  # and has ended
            file.write("first " * 10)

    def second(partial: Path):
        steps.wait()
        partial.write_text("second " * 10)

    thread = threading.Thread(target=write_atomically, args=(path, first))
    thread.start()
    write_atomically(path, second)
    assert path.read_text() == "second " * 10
    steps.wait()
    thread.join()
    assert path.read_text() == "first " * 20 and names(tmp_path) == ["o.jsonl"]


def test_files_of_a_killed_writer_are_removed(tmp_path):
    child = os.fork()
    if not child:
        write_atomically(tmp_path / "o.jsonl", lambda partial: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(UNFINISHED)
    write_text(tmp_path / "other.jsonl", "x")
    assert left.exists()
    write_text(tmp_path / "o.jsonl", "x")
    assert names(tmp_path) == ["o.jsonl", "other.jsonl"]


def test_links_are_followed_and_modes_are_kept(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("before")
    real.chmod(0o640)
    link.symlink_to("real")
    write_text(link, "after")
    assert link.is_symlink() and real.read_text() == "after" and stat.S_IMODE(real.stat().st_mode) == 0o640
    (tmp_path / "dangling").symlink_to("new")
    write_text(tmp_path / "dangling", "made")
    assert (tmp_path / "new").read_text() == "made"
    mask = os.umask(0o022)
    write_text(tmp_path / "plain", "x")
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o644


def test_pipe_is_written_directly(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert check_output(tmp_path / "pipe") == tmp_path / "pipe"
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through")
    reader.join(20)
    assert got == ["through"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and names(tmp_path) == ["pipe"]


def test_json_and_yaml_round_trip_and_non_finite_numbers_raise(tmp_path):
    value = {"name": "Zürich 表情", "numbers": [1, 2.5], "nothing": None}
    write_json(tmp_path / "a.json", value)
    write_yaml(tmp_path / "a.yaml", value)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == value
    assert yaml.safe_load((tmp_path / "a.yaml").read_text("utf-8")) == value
    with pytest.raises(ValueError, match=r"b.json'.*test\.scores\.1 is nan"):
        write_json(tmp_path / "b.json", {"test": {"scores": [1.0, float("nan")]}})
    assert names(tmp_path) == ["a.json", "a.yaml"]


def test_output_that_is_an_input_raises(tmp_path):
    corpus, table = tmp_path / "corpus", tmp_path / "turns.csv"
    (corpus / "more").mkdir(parents=True)
    table.write_text("a")
    (tmp_path / "link.csv").symlink_to("turns.csv")
    os.link(table, tmp_path / "hard.csv")
    (tmp_path / "same").symlink_to("corpus")
    inputs = [None, "an/id-on-the-hub", str(table), corpus]
    for output in ("turns.csv", "link.csv", "hard.csv", "corpus/o.csv", "corpus/more/o.csv", "same/o.csv"):
        with pytest.raises(InputError, match=f"{output}' .*input of this command; choose another output"):
            check_output(tmp_path / output, inputs)
    for output in ("corpus", "corpus/more", "corpus/new/er", "same", "same/new"):
        with pytest.raises(InputError, match=f"{output}' .*input of this command; choose another output"):
            check_output_folder(tmp_path / output, inputs)
    assert check_output(tmp_path / "o.csv", inputs) == tmp_path / "o.csv"
    assert check_output_folder(tmp_path, inputs) == tmp_path
    assert check_output_folder(tmp_path / "new" / "er", inputs) == tmp_path / "new" / "er"


def test_unwritable_output_raises(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(InputError, match="does not exist; create it first"):
        check_output(tmp_path / "missing" / "o.csv")
    with pytest.raises(InputError, match="'.*file' is a file"):
        check_output_folder(tmp_path / "file" / "run")


def test_second_process_waits_until_the_first_leaves_the_folder_or_dies(tmp_path):
    inside, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with only_process_in(tmp_path / "run"):
            os.write(inside[1], b"x")
            os.read(go_on[0], 1)
            (tmp_path / "left").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.read(inside[0], 1)
    said = []

    def waiting():
        said.append((tmp_path / "left").exists())
        os.write(go_on[1], b"x")

    with only_process_in(tmp_path / "run", waiting):
        assert said == [False] and (tmp_path / "left").exists()
    os.waitpid(child, 0)
    with only_process_in(tmp_path / "run", waiting):
        assert said == [False]
    assert names(tmp_path / "run") == []
