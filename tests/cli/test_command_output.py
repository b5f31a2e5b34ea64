"""What each command prints: results to standard output, progress to standard error, JSON with `--json`."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mister_e_hf import cli
from support.small_demo import run_small_demo
from support.terminal import FOREIGN, Terminal

REFERENCE = Path(__file__).parents[1] / "reference" / "reference_checkpoint.safetensors"
FROM_TURNS = ["{run}/training.yaml", "--corpus", "{run}/demo/corpus"]

# The words of each command, and what its JSON holds.
COMMANDS = {
    "corpus": (["corpus", "folder", "--data_dir", "{run}/demo/recordings", "--out", "{new}"], {"splits", "folder"}),
    "init": (["init", "{run}/demo/corpus", "--out", "{new}.yaml"], {"recipe", "labels", "speech", "text"}),
    # done already when it is called again
    "train": (
        ["train", "demo-recordings", "--corpus", "{run}/vectors", "--num_train_epochs", "2", "--output_dir", "{once}"],
        {"test", "folder"},
    ),
    "train --dry_run": (["train", "{run}/training.yaml", "--output_dir", "{new}", "--dry_run"], {"stages", "hours"}),
    "train_encoder": (
        [
            "train_encoder",
            *FROM_TURNS,
            "--modality",
            "text",
            "--text_encoder.training.num_train_epochs",
            "2",
            "--output_dir",
            "{once}",
        ],
        {"validation", "test", "embedding_dim", "folder"},
    ),
    "embed": (["embed", *FROM_TURNS, "--output_dir", "{run}", "--out", "{new}"], {"folder"}),
    "predict --out": (
        ["predict", "{run}/demo/recordings/test", "--model", "{run}", "--out", "{new}.csv"],
        {"turns", "out"},
    ),
    "evaluate": (["evaluate", "{run}", "--use_cpu"], {"scores", "corpus", "as_stored"}),
    "evaluate --corpus": (
        ["evaluate", "{run}", "--corpus", "{run}/demo/corpus", "--use_cpu"],
        {"scores", "corpus", "as_stored"},
    ),
    "plot": (["plot", "{lines}", "--out", "{new}.png"], {"file", "dialogue"}),
    "push --dry_run": (["push", "{run}", "org/name", "--dry_run"], {"files", "card"}),
    "convert": (["convert", "{weights}", "{new}", "--labels", "a", "b", "c", "d"], {"folder"}),
    "doctor": (["doctor", "{run}"], {"findings"}),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("output")
    run, lines, weights = run_small_demo(folder / "run"), folder / "lines.jsonl", folder / "moe_model.pth"
    assert cli.main(["predict", f"{run}/demo/recordings/test", "--model", str(run), "--out", str(lines)]) == 0
    stored = {
        name.removeprefix("weights."): tensor for name, tensor in load_file(REFERENCE).items() if "weights." in name
    }
    torch.save(stored, weights)
    return {"run": run, "lines": lines, "weights": weights}


def call(words: list[str], capsys) -> tuple[int, str, str]:
    """Status, standard output, and what was written to a terminal as standard error."""
    capsys.readouterr()
    with contextlib.redirect_stderr(Terminal()) as terminal:
        status = cli.main(words)
    return status, capsys.readouterr().out, terminal.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_prints_only_its_own_output(command, places, tmp_path, capsys, own_cache):
    words, wanted = COMMANDS[command]

    def given(number: int) -> list[str]:
        return [word.format(**places, once=tmp_path / "once", new=tmp_path / f"new-{number}") for word in words]

    status, result, shown = call(given(0), capsys)
    assert status == 0 and result and "\r" not in result and "%|" not in result, shown
    assert [word for word in FOREIGN if word in shown] == []
    status, quietly, shown = call([*given(1), "--quiet"], capsys)
    assert status == 0 and len(quietly.splitlines()) == len(result.splitlines())
    assert all(line.startswith("warning: ") for line in shown.splitlines())
    status, printed, _ = call([*given(2), "--quiet", "--json"], capsys)
    assert status == 0 and printed.count("\n") == 1
    assert wanted <= set(json.loads(printed))


def test_second_run_reports_what_it_skips(places, capsys, own_cache):
    run = places["run"]
    words = [f"{run}/training.yaml", "--corpus", f"{run}/demo/corpus", "--output_dir", str(run)]
    status, _, shown = call(["train", *words], capsys)
    lines = [line.rpartition("\r")[2] for line in shown.split("\n")]  # what stays of bars
    assert status == 0 and [line.partition(" earlier")[0] for line in lines if " earlier" in line] == [
        "speech encoder: trained",
        "text encoder: trained",
        "vectors: embedded",
        "MiSTER-E, seed 0: trained",
    ]
    assert all(" earlier" in line or line.startswith("warning: ") for line in lines if line.strip())


def test_predictions_are_json_lines(places, capsys):
    words = ["predict", f"{places['run']}/demo/recordings/test", "--model", str(places["run"])]
    for more in (["--json"], ["--quiet", "--json"], ["--quiet"]):  # where output is not a terminal without it, too
        status, printed, _ = call([*words, *more], capsys)
        assert status == 0
        assert [json.loads(line) for line in printed.splitlines()] == [
            json.loads(line) for line in places["lines"].read_text().splitlines()
        ]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "nowhere"],
        ["predict", "nowhere.csv", "--model", "nowhere"],
        ["corpus", "folder", "--data_dir", "nowhere"],
        ["train", "nowhere.yaml"],
        ["plot", "nowhere.jsonl"],
        ["report", "nowhere"],
    ],
)
def test_error_is_one_line_without_json(words, capsys):
    status, printed, shown = call([*words, "--json"], capsys)
    assert (status, printed) == (2, "") and shown.startswith("error: ") and shown.count("\n") == 1


def test_bad_findings_are_printed_as_json(places, tmp_path, capsys):
    status, printed, shown = call(["doctor", str(tmp_path), "--json"], capsys)
    assert status == 2 and "marked BAD" in shown
    assert [found["good"] for found in json.loads(printed)["findings"]].count(False) == 1
