import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from mister_e_hf.results_page import main_table_in
from small_demo import run_small_demo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def demo_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_small_demo("runs/demo")


@pytest.fixture
def my_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "my_calls").mkdir()
    rows = ["dialogue_id,order,text,file_name,emotion"]
    for dialogue in range(4):
        soundfile.write(tmp_path / "my_calls" / f"{dialogue}.wav", np.sin(np.arange(8000) / 9), 8000)
        rows += [f"{dialogue},0,Hello.,{dialogue}.wav,joy", f"{dialogue},1,Go away.,,anger"]
    (tmp_path / "my_calls" / "metadata.csv").write_text("\n".join(rows))


def test_python_snippets_run(demo_run, my_calls):
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) >= 3
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["turn"]["text"] == "Hello." and names["turn"]["duration"] == 1.0
    assert len(names["emotions"]) == 10
    assert names["output"].gate_weights[0, 9, 0] == 0


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
