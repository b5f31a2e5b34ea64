"""`scripts/demo.py` and the targets of `make` that remove things."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_help_works_in_any_folder(tmp_path):
    call = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert call.returncode == 0 and call.stdout.startswith("usage: demo.py") and not list(tmp_path.iterdir())


def test_mistakes_print_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").write_text("a file")
    script = str(ROOT / "scripts" / "demo.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, "mine", "--hidden_sise", "3"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert "a generated corpus" in shown.out and "minutes" in shown.out and "goes to mine" in shown.out


def test_clean_keeps_what_was_trained():
    rules = dict(re.findall(r"^(clean[\w-]*):\n((?:\t.*\n?)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert not re.search(r"\bruns\b", rules["clean"])
    assert rules["clean-runs"].split() == ["rm", "-rf", "runs/demo"]
