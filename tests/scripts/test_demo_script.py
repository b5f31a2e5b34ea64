"""`scripts/demo.py` and the targets of `make` that remove things."""

import re
import subprocess
import sys
from pathlib import Path

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


def test_mistakes_print_one_line(tmp_path):
    (tmp_path / "mine").write_text("a file")
    words = [sys.executable, ROOT / "scripts" / "demo.py", "mine", "--hidden_sise", "3"]
    call = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert call.returncode == 2 and call.stderr.startswith("error: ") and call.stderr.count("\n") == 1
    assert "a generated corpus" in call.stdout and "minutes" in call.stdout and "goes to mine" in call.stdout


def test_clean_keeps_what_was_trained():
    rules = dict(re.findall(r"^(clean[\w-]*):\n((?:\t.*\n?)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert not re.search(r"\bruns\b", rules["clean"])
    assert rules["clean-runs"].split() == ["rm", "-rf", "runs/demo"]
