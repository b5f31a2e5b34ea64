import json
from pathlib import Path

import pytest

from support.forks import run_script

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"


def run(script: str, folder: Path, *words: str) -> dict:
    words = ("--quick", "--json", folder / "numbers.json", *words)
    status = run_script(FOLDER / script, *words, log=folder / "log.txt")
    assert status == 0, (folder / "log.txt").read_text(encoding="utf-8")
    return json.loads((folder / "numbers.json").read_text())


@pytest.mark.slow
def test_stage2_benchmark_runs_with_little_padding(tmp_path):
    numbers = run("stage2.py", tmp_path)
    assert {row["corpus"] for row in numbers["training"]} == {"meld", "iemocap"}
    for row in numbers["padding"]:
        assert row["like"] < 0.05 < row["shuffled"]
    assert all(rate > 0 for row in numbers["training"] for rate in row["turns_per_second"])


@pytest.mark.slow
def test_a_third_modality_and_another_commit_are_compared(tmp_path):
    source = FOLDER.parents[1] / "src"
    numbers = run("modalities.py", tmp_path, "--models", "bc_lstm", "--before", str(source))
    assert list(numbers["bc_lstm"]) == ["before, two", "two", "three"]
    for row in numbers["bc_lstm"].values():
        assert (
            row["ratio"]["train"] > 0 and row["seconds"]["predict"] > 0 and row["peak_bytes"] >= 0
        )  # of what importing took before


@pytest.mark.slow
def test_growth_is_measured_beside_another_commit(tmp_path):
    source = FOLDER.parents[1] / "src"
    numbers = run("growth.py", tmp_path, "--models", "mister_e, attention_decay", "--train", "--before", str(source))
    (found,) = numbers.values()
    assert list(found) == ["before", "now"] and list(found["now"]) == ["8", "16", "beside"]
    assert all(each["seconds"] > 0 for row in found.values() for each in row.values())


@pytest.mark.slow
def test_all_rows_for_a_gpu_run_on_a_cpu(tmp_path):
    numbers = run("gpu.py", tmp_path, "--rows", "stage2", "prediction", "stage1", "embedding")
    assert {row["corpus"] for row in numbers["stage2"]} == {"meld", "iemocap"} and len(numbers["stage2"]) == 11
    assert {row["turns"] for row in numbers["prediction"]} == {10, 512}
    names = ["RoBERTa-large", "WavLM-large", "Llama-3.1-8B", "Qwen2-Audio-7B"]
    assert [row["backbone"] for row in numbers["stage1"]] == names
    assert all(row["share_of_rate"] > 0 for name in ("stage1", "embedding") for row in numbers[name])


def test_egmf_on_a_gpu_runs_on_a_cpu(tmp_path):
    numbers = run("gpu.py", tmp_path, "--rows", "egmf")
    assert numbers["matrix_rate"] > 0
    assert len(numbers["egmf"]) == 4
    for kind in ("training", "scoring"):
        lora, kept = (row[kind] for row in numbers["egmf"] if row["turns"] == 8)
        assert lora["tokens"] > 4 * kept["tokens"] > 0  # the prompts' texts are not read again
        assert lora["operations"] > kept["operations"] > 0
        assert all(row[kind]["share_of_rate"] > 0 for row in numbers["egmf"])


def test_what_a_gpu_would_do_is_counted(tmp_path):
    (train, predict, half, _) = run("launches.py", tmp_path, "--models", "mister_e")["now"]
    assert (train["work"], train["precision"], predict["work"]) == ("training step", "float32", "prediction")
    assert half["launch"] > train["launch"] > predict["launch"] > 100
    assert half["cast"] > 50 and train["operators"]["launch: recurrence"] == 2


@pytest.mark.slow
def test_models_of_one_hidden_size_are_compared(tmp_path):
    numbers = run("modalities.py", tmp_path, "--models", "mult", "mister_e", "emo_caps", "--side_by_side", "8")
    assert {name: list(rows) for name, rows in numbers.items()} == {
        "mult": ["two", "three"],
        "mister_e": ["two"],
        "emo_caps": ["two", "three"],
    }
    assert numbers["mult"]["three"]["ratio"]["train"] == 1 and numbers["emo_caps"]["three"]["ratio"]["train"] > 0


@pytest.mark.slow
def test_embedding_is_measured_as_the_corpus_grows(tmp_path):
    numbers = run("embed_growth.py", tmp_path, "--modalities", "text")
    assert [row["turns"] for row in numbers] == [20, 40]
    for row in numbers:
        assert list(row["steps"]) == ["read the corpus", "embed", "find it done", "read the vectors"]
        assert row["steps"]["embed"]["seconds"] > 0


@pytest.mark.slow
def test_what_an_encoder_would_do_on_a_gpu_is_counted(tmp_path):
    rows = run("launches.py", tmp_path, "--models", "RoBERTa-large")["now"]
    assert [row["work"] for row in rows] == 2 * ["training step", "embedding"]
    assert all(row["wait"] <= 1 for row in rows)  # where transformers looks at the mask
