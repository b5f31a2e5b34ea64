"""Libraries that do not fit together are found, named with what to install, and stop the first use in one line."""

import os
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from mister_e_hf.base import installation
from mister_e_hf.base.installation import Conflict, conflicts
from support.new_process import run_python  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from lowest_versions import lowest_versions  # noqa: E402


def install(folder: Path, name: str, *requires: str, version: str = "1.0"):
    """What pip leaves of an installed distribution, without its modules."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_this_installation_has_no_conflicts():
    assert conflicts() == []
    installation.check_installation()


def test_unaccepted_version_is_a_conflict(site):
    install(site, "zz-first", "zz-third>=2,<3", "numpy>=1")
    install(site, "zz-second", "zz-third>=2.5", "zz-fourth; extra == 'all'", "zz-fourth; python_version < '3'")
    install(site, "zz-third", version="1.4")
    found = conflicts(["zz-first", "zz-second"])
    assert found == [
        Conflict("zz-third", "1.4", ("zz-first (<3,>=2)", "zz-second (>=2.5)"), "pip install 'zz-third<3,>=2,>=2.5'")
    ]
    assert str(found[0]) == (
        "zz-third 1.4 does not satisfy zz-first (<3,>=2), zz-second (>=2.5). "
        "To fix it: pip install 'zz-third<3,>=2,>=2.5'"
    )


def test_missing_library_is_a_conflict(site):
    install(site, "zz-first", "zz-third")
    (found,) = conflicts(["zz-first"])
    assert str(found) == "zz-third is missing, required by zz-first. To fix it: pip install 'zz-third'"


def test_source_tree_without_a_distribution_has_no_requirements(monkeypatch):
    monkeypatch.setattr(installation, "DISTRIBUTION", "zz-not-installed")
    assert conflicts() == []


@pytest.fixture
def broken(tmp_path):
    """An environment in which this package asks for a numpy and a library that are not there."""
    install(tmp_path, "mister-e-hf", "numpy>=999", "zz-none", version="9.9")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    return partial(run_python, env=os.environ | {"PYTHONPATH": path})


LINE = (
    "does not satisfy mister-e-hf (>=999). To fix it: pip install 'numpy>=999' "
    "(and 1 more; `mister-e doctor` lists all)"
)


def test_first_use_raises_with_the_command_to_install(broken):
    call = broken("-m", "mister_e_hf", "predict", "x.wav", "--model", "y")
    assert call.returncode == 2 and call.stderr.count("\n") == 1
    assert call.stderr.startswith("error: numpy ") and call.stderr.rstrip().endswith(LINE)
    call = broken("-c", "import mister_e_hf; print(sorted(mister_e_hf.__all__)[0]); mister_e_hf.MisterEModel")
    assert call.stdout and call.stderr.rstrip().endswith(LINE) and "MissingLibraryError: numpy" in call.stderr


def test_doctor_lists_every_conflict(broken):
    call = broken("-m", "mister_e_hf", "doctor")
    bad = [line for line in call.stdout.splitlines() if line.startswith("BAD")]
    assert call.returncode == 2 and len(bad) == 2
    assert bad[0].endswith("To fix it: pip install 'numpy>=999'") and "zz-none is missing" in bad[1]
    assert re.search(r"error: 2 findings of \d+ marked BAD above", call.stderr)


def test_lowest_versions_are_the_floors_of_the_project(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["b>=2.5,<4", "torch>=2.6", "c"]\n[project.optional-dependencies]\n'
        'dev = ["torch==2.13.*", "a>=1"]\n'
    )
    assert lowest_versions(tmp_path / "pyproject.toml") == ["a==1", "b==2.5"]
    project = Path(__file__).parents[2]
    floors = dict(line.split("==") for line in lowest_versions(project / "pyproject.toml"))
    assert "torch" not in floors and floors["transformers"] == "5.23"


def test_constraints_have_a_version_for_every_requirement():
    project = Path(__file__).parents[2]
    pinned = dict(line.split("==") for line in (project / "constraints.txt").read_text().splitlines() if "==" in line)
    floors = dict(line.split("==") for line in lowest_versions(project / "pyproject.toml"))
    assert set(floors) - set(pinned) == set()


def test_pre_commit_runs_the_ruff_of_the_project():
    project = Path(__file__).parents[2]
    pinned = dict(line.split("==") for line in (project / "constraints.txt").read_text().splitlines() if "==" in line)
    (hooks,) = yaml.safe_load((project / ".pre-commit-config.yaml").read_text())["repos"]
    assert hooks["rev"] == f"v{pinned['ruff']}" and [hook["id"] for hook in hooks["hooks"]] == [
        "ruff-check",
        "ruff-format",
    ]


def test_a_missing_extra_is_optional(monkeypatch):
    version_of = installation.version_of
    monkeypatch.setattr(installation, "version_of", lambda name: None if name == "gradio" else version_of(name))
    found = [(good, text) for good, text in installation.examine_installation() if "gradio" in text]
    assert len(found) == 1 and found[0][0] and found[0][1].startswith("without gradio, which is optional (for ")
