"""Columns of numbers of one's own table as scores of the turns, from the table to a prediction."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from mister_e_hf import DialogueFolder, cli, write_vectors
from mister_e_hf.base.errors import InputError
from mister_e_hf.vectors.score_columns import score_columns

SCORES = ["valence", "activation"]


def write_rows(folder: Path, **columns: str) -> Path:
    """A table of twelve dialogues of three turns with two columns of numbers, and `columns` at every turn."""
    folder.mkdir(parents=True)
    with (folder / "turns.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["dialogue_id", "order", "text", "Valence", "activation", "rater", *columns])
        for dialogue in range(12):
            for turn in range(3):
                activation = "" if turn == 1 else f"{dialogue - 6},5"  # a comma, as spreadsheets write it
                row = [f"d{dialogue:02}", turn, f"turn {turn}", 1 + turn / 2, activation, "Ann", *columns.values()]
                table.writerow(row)
    return folder


def build(folder: Path, **settings):
    builder = DialogueFolder(folder, cache_dir=str(folder.parent / "cache"), **settings)
    builder.download_and_prepare()
    return builder.as_dataset()


def turns(corpus) -> list[dict]:
    return [turn for data in corpus.values() for row in data for turn in row["utterances"]]


def test_named_columns_are_fields_of_the_turns(tmp_path):
    corpus = build(write_rows(tmp_path / "calls"), scores=SCORES)
    assert {turn["valence"] for turn in turns(corpus)} == {1.0, 1.5, 2.0}
    assert {turn["activation"] for turn in turns(corpus)} == {
        None,
        *(number + 0.5 for number in range(6)),
        *(-(number + 0.5) for number in range(1, 7)),
    }
    assert score_columns(corpus) == ["sentiment", *SCORES]


def test_columns_may_have_other_names(tmp_path):
    folder = write_rows(tmp_path / "calls", labels="2.5")
    corpus = build(folder, scores=["rating", "sentiment"], columns={"rating": "labels", "sentiment": "valence"})
    assert {(turn["rating"], turn["sentiment"]) for turn in turns(corpus)} == {(2.5, 1.0), (2.5, 1.5), (2.5, 2.0)}


def test_unused_numbers_are_named_with_the_setting(tmp_path, caplog):
    folder = write_rows(tmp_path / "calls")
    build(folder)
    (message,) = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert "['Valence', 'activation', 'rater'] are not used" in message
    assert message.endswith("To keep numbers as scores, name them in scores (--scores Valence activation)")
    caplog.clear()
    build(folder, scores=SCORES)
    (message,) = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert "['rater'] are not used" in message and "--scores" not in message


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (["dominance"], r"turns.csv' has no column 'dominance'; it has .*columns=\{'dominance': 'NAME'\}"),
        (["rater"], r"turns.csv', row 2: rater must be a number, got 'Ann'"),
        (["text"], r"scores names 'text', .* pass columns=\{'rating': 'text'\}"),
        (["valence", "valence"], "must name each column once"),
        ("valence", "must be a list of names"),
    ],
)
def test_columns_that_cannot_be_scores_raise(tmp_path, scores, expected):
    with pytest.raises(InputError, match=expected):
        build(write_rows(tmp_path / "calls"), scores=scores)


def test_subtitles_have_no_scores(tmp_path):
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n")
    with pytest.raises(InputError, match="subtitles hold no scores"):
        build(tmp_path / "calls", scores=SCORES)


def test_scores_of_a_table_are_trained_and_predicted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "calls")
    words = ["--data_dir", "calls", "--out", "corpora/calls", "--cache_dir", "cache"]
    assert cli.main(["corpus", "folder", *words, "--scores", *SCORES]) == 0
    printed = capsys.readouterr().out
    assert "turns with valence" in printed and "mean activation" in printed
    assert "without label" in printed and "unlabelled" not in printed
    for split in ("train", "validation", "test"):
        table = pq.read_table(tmp_path / "corpora" / "calls" / f"{split}.parquet")
        count = sum(map(len, table["utterances"].to_pylist()))
        write_vectors("vectors", split, table, text_features=torch.randn(count, 5))
    assert cli.main(["init", "vectors", "--targets", *SCORES, "--out", "mine.yaml"]) == 0
    assert cli.main(["train", "mine.yaml", "--use_cpu", "--num_train_epochs", "1"]) == 0
    results = json.loads(Path("runs/mine/results.json").read_text())
    assert results["targets"] == {name: name for name in SCORES}
    assert list(results["test"]["mixture"]["by_target"]) == SCORES
