import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "stage2.py"


def test_stage2_benchmark_runs_with_little_padding(tmp_path):
    words = [sys.executable, str(SCRIPT), "--quick", "--json", str(tmp_path / "numbers.json")]
    call = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert call.returncode == 0, call.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert {row["corpus"] for row in numbers["training"]} == {"meld", "iemocap"}
    for row in numbers["padding"]:
        assert row["like"] < 0.05 < row["shuffled"]
    assert all(rate > 0 for row in numbers["training"] for rate in row["turns_per_second"])
