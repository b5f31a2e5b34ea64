import csv
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyarrow.parquet import read_table

from mister_e_hf.cli import main
from mister_e_hf.evaluation.predictions import summarize
from mister_e_hf.studies.report.results_page import main_table_in
from support.small_demo import run_small_demo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NEXT = ["predict", "plot", "evaluate"]  # after a demo


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Where the demo was run."""
    folder = tmp_path_factory.mktemp("clone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_small_demo("runs/demo")
    return folder


@pytest.fixture
def demo_run(made, monkeypatch):
    monkeypatch.chdir(made)


def test_python_snippets_run(demo_run, own_cache):
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) >= 3
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["turn"]["text"] and names["turn"]["emotion"] is not None and len(names["recording"]) == 2
    assert len(names["emotions"]) == 10
    assert names["output"].gate_weights[0, 9, 0] == 0


def test_commands_for_one_s_own_recordings_run(demo_run, own_cache, capsys):
    block = re.search(r"<!-- own recordings -->\n```bash\n(.*?)```", README, flags=re.DOTALL)[1]
    commands = [shlex.split(line) for line in block.splitlines() if not line.startswith("#")]
    assert [words[1] for words in commands] == ["corpus", "init", "train", "train", "predict"]
    tiny = ["--num_train_epochs", "1", "--use_cpu"]
    for modality in ("speech", "text"):  # the recipe's own encoders would have to be downloaded
        tiny += [f"--{modality}_encoder.backbone", f"runs/demo/demo/backbones/{modality}"]
        tiny += [f"--{modality}_encoder.training.num_train_epochs", "1", f"--{modality}_encoder.training.use_cpu"]
    for words in commands:
        assert main([*words[1:], *(tiny if words[1] == "train" else [])]) == 0, (words, capsys.readouterr().err)
    with Path("runs/calls.csv").open(newline="") as file:
        assert {row["dialogue"] for row in csv.DictReader(file)} == {"test_000", "test_001", "test_002"}
    assert "# MiSTER-E, calls" in Path("runs/calls/README.md").read_text()


def test_the_demo_ends_in_what_was_shown_and_commands_that_work(demo_run, capsys):
    specification = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    demo = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(demo)
    scores = json.loads(Path("runs/demo/results.json").read_text())["test"]
    demo.show(Path("runs/demo"), {"test": summarize([scores])})
    printed = capsys.readouterr().out
    for name in ("mixture", "speech", "text", "fusion"):
        assert re.search(rf"^{name} +{100 * scores[name]['weighted_f1']:.2f} ", printed, flags=re.MULTILINE)
    turns = [
        row for row in read_table("runs/demo/predictions.parquet").to_pylist() if row["dialogue_id"] == "test_000"
    ]
    shown = re.findall(r"^ +\d+  (\w+) +(\w+) ", printed, flags=re.MULTILINE)
    assert shown == [(row["label"], row["prediction"]) for row in turns]
    commands = [shlex.split(line) for line in printed.partition("Try next:")[2].splitlines() if line]
    starts = [next(place for place, word in enumerate(words) if word in NEXT) for words in commands]
    assert [words[start] for words, start in zip(commands, starts, strict=True)] == NEXT
    program = commands[0][: starts[0]]
    assert subprocess.run([*program, "--version"], capture_output=True, timeout=60).stdout.startswith(b"mister-e ")
    for words, start in zip(commands, starts, strict=True):
        assert main(words[start:]) == 0, (words, capsys.readouterr().err)


def test_snippet_of_the_model_card_runs(demo_run):
    snippets = re.findall(r"```python\n(.*?)```", Path("runs/demo/README.md").read_text(), flags=re.DOTALL)[:2]
    soundfile.write("2.wav", np.sin(np.arange(8000) / 9), 8000)
    snippet = "\n".join(snippets).replace("REPOSITORY", "runs/demo")
    prelude = "import torch\nspeech_embeddings, text_embeddings = torch.randn(1, 3, 32), torch.randn(1, 3, 32)\n"
    call = subprocess.run([sys.executable, "-c", prelude + snippet], capture_output=True, text=True, timeout=120)
    assert call.returncode == 0, call.stderr


def test_every_file_and_recipe_that_it_names_is_there():
    for name in re.findall(r"`((?:[\w-]+/)*\w+\.py)`", README):
        assert list(ROOT.rglob(name)) and (ROOT / "src/mister_e_hf" / name).is_file() or (ROOT / name).is_file(), name
    listed = {path.stem for path in (ROOT / "hub_configs").glob("*.yaml")}
    published = {"mister-e-iemocap6", "mister-e-iemocap4", "mister-e-meld", "mister-e-mosi"}
    sizes = {f"{name}{size}" for name in published for size in ("", "-small", "-7b")}
    assert listed == sizes | {"demo", "demo-recordings", "own-small"}


def test_main_table_is_that_of_the_results():
    """Where there are results, both pages hold it; where there are none, the README has no numbers of its own."""
    results = ROOT / "RESULTS.md"
    expected = main_table_in(results.read_text()) if results.is_file() else None
    assert (expected is not None) == results.is_file()
    assert main_table_in(README) == expected
