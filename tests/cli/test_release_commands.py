"""`mister-e corpus` for the corpora of scores and of released features, as far as a trained model."""

import json

import pytest

from mister_e_hf import cli, read_corpus
from support.small_releases import SIMS, features_of, mosei_clips, write_cherma, write_pickle, write_sims


@pytest.fixture
def run(tmp_path, capfd):
    def run(*words: str) -> tuple[int, str, str]:
        status = cli.main([*words, "--cache_dir", str(tmp_path / "cache")])
        return status, *capfd.readouterr()

    return run


def test_features_become_a_table_of_vectors(run, tmp_path):
    path = write_pickle(tmp_path / "unaligned_50.pkl", features_of(mosei_clips()))
    out = tmp_path / "mosei"
    status, output, _ = run("corpus", "mosei", "--data_dir", str(path), "--out", str(out))
    assert status == 0
    assert f"this is a table of vectors (speech 8, text 16, visual 4); next: mister-e init {out}\n" in output
    lines = {line.split("  ")[0]: line.split()[-3:] for line in output.splitlines()}
    assert lines["turns with visual vectors"] == ["4", "2", "1"]
    assert lines["turns with sentiment"] == ["4", "1", "1"] and lines["mean sentiment"] == ["-0.33", "-1.00", "3.00"]
    data = read_corpus(out, {"negative": 0, "non-negative": 1})["train"]
    assert data.dialogue_ids == ["-mJ2ud6oKI8", "100178"]
    assert data[0]["visual_embeddings"].shape == (3, 4) and data[0]["labels"].tolist() == [1, 0, 0]


def test_scores_are_targets_of_a_regression(run, tmp_path):
    path = write_pickle(tmp_path / "ch-simsv2s.pkl", features_of(SIMS))
    run("corpus", "sims", "--data_dir", str(path), "--out", str(tmp_path / "sims"))
    targets = {"all": "sentiment", "text": "sentiment_text"}
    data = read_corpus(tmp_path / "sims", targets=targets)["train"]
    assert data.task == "regression"
    assert data[0]["labels"].flatten().tolist() == pytest.approx([0.0, 0.2, -0.8, -0.2])


def test_clips_become_dialogues(run, tmp_path):
    folder = write_sims(tmp_path / "ch-simsv2s")
    status, output, _ = run("corpus", "sims", "--data_dir", str(folder), "--out", str(tmp_path / "sims"))
    assert status == 0 and "table of vectors" not in output
    assert "太好了" not in output and "mean sentiment_visual" in output


def test_groups_and_labels_of_cherma(run, tmp_path):
    folder = write_cherma(tmp_path / "CHERMA0723")
    pattern = r"(?P<dialogue>film\d+)_(?P<order>\d+)"
    words = ("--group_pattern", pattern, "--out", str(tmp_path / "out"), "--json")
    status, output, _ = run("corpus", "cherma", "--data_dir", str(folder), *words)
    found = [json.loads(line) for line in output.splitlines()]
    assert status == 0 and found[0]["splits"]["train"]["dialogues"] == 2
    data = read_corpus(tmp_path / "out", label_column="emotion_speech")["train"]
    assert [len(one["labels"]) for one in data] == [2, 1]


def test_a_corpus_without_a_licence_is_not_pushed(run, tmp_path):
    folder = write_cherma(tmp_path / "CHERMA0723")
    status, _, error = run("corpus", "cherma", "--data_dir", str(folder), "--push_to_hub", "org/cherma")
    assert status == 2 and "'cherma' is not pushed: no licence of CHERMA is known" in error


def test_damaged_features_name_the_option(run, tmp_path):
    folder = write_cherma(tmp_path / "CHERMA0723")
    (folder / "audio/train/film2_1.npy").unlink()
    status, _, error = run("corpus", "cherma", "--data_dir", str(folder))
    assert status == 2 and "pass --bad_audio missing to keep its turn without the modality" in error
