"""The package's own recipes are found by name, from a source tree and from an installed wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mister_e_hf import Recipe
from mister_e_hf.cli import main
from mister_e_hf.training.recipe_files import find_recipe, recipe_names

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "hub_configs").glob("*.yaml"), key=lambda path: path.stem)


@pytest.mark.parametrize("form", ["{}", "{}.yaml", "hub_configs/{}.yaml"])
def test_a_recipe_is_found_by_name_from_any_folder(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    assert recipe_names() == [path.stem for path in FILES]
    for path in FILES:
        assert find_recipe(form.format(path.stem)).samefile(path)


def test_a_file_comes_before_a_recipe_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text("corpus: {labels: [a, b]}\n")
    assert Recipe.load("demo.yaml").corpus.labels == ["a", "b"]
    assert Recipe.load("demo").corpus.name == "demo"


def test_an_unknown_name_lists_the_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "mister-e-meld-smal"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'mister-e-meld-small'?" in error and "own-small" in error and "mister-e init" in error
    assert main(["train", "elsewhere/demo"]) == 2  # a path is not a name
    assert "'elsewhere/demo' is neither a file" in capsys.readouterr().err


def test_own_small_names_no_corpus():
    sections = Recipe.load("own-small").to_dict()
    assert sections["corpus"] == {} and "baselines" not in sections and "class_weights" not in sections["model"]
    assert Recipe.load("own-small", ["--corpus.labels", "a", "b"]).model().num_parameters() < 2_000_000


FIND = """
from pathlib import Path
import mister_e_hf
from mister_e_hf.training.recipe_files import find_recipe, recipe_names
print(Path(mister_e_hf.__file__).parent, find_recipe("own-small"), *recipe_names(), sep="\\n")
"""


def test_a_wheel_contains_the_recipes(tmp_path):
    pytest.importorskip("hatchling")
    for folder in ("dist", "site", "empty"):
        (tmp_path / folder).mkdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = (tmp_path / "dist").iterdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    ours = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py")}
    assert ours <= {path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*.py")}
    call = subprocess.run(
        [sys.executable, "-c", FIND],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    package, found, *names = call.stdout.splitlines()
    assert package == str(tmp_path / "site" / "mister_e_hf") and found.startswith(package)
    assert names == [path.stem for path in FILES]
    assert Path(found).read_bytes() == (ROOT / "hub_configs" / "own-small.yaml").read_bytes()
