"""What `mister-e init` and recipes advise where a corpus or a recipe is not the usual one."""

import csv
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from mister_e_hf import Recipe, cli
from mister_e_hf.base.errors import InputError
from support.small_recipes import RECIPES
from support.small_scores import score_corpus, write_score_corpus

CHINESE = ["你说什么？", "我不知道。", "太好了！"]


def write_corpus(folder: Path, texts: list[str], **columns) -> Path:
    (folder / "calls").mkdir(parents=True)
    with (folder / "calls" / "turns.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["dialogue_id", "order", "text", "emotion", *columns])
        for dialogue in range(12):
            for turn, text in enumerate(texts):
                emotion = ["joy", "anger"][turn % 2] if "valence" not in columns else ""
                table.writerow(
                    [f"d{dialogue:02}", turn, text, emotion, *(number + turn for number in columns.values())]
                )
    words = ["--data_dir", str(folder / "calls"), "--cache_dir", str(folder / "cache")]
    words += ["--out", str(folder / "corpus"), *(["--scores", *columns] if columns else [])]
    assert cli.main(["corpus", "folder", *words]) == 0
    return folder / "corpus"


@pytest.mark.parametrize(
    ("texts", "script"),
    [
        (CHINESE, "CJK"),
        (["Что ты сказал?", "Я не знаю.", "OK"], "Cyrillic"),
        (["Qu'est-ce que tu as dit ?", "你说 what did you say", "?!"], None),
    ],
)
def test_transcripts_of_another_script_are_warned_of(tmp_path, caplog, texts, script):
    corpus = write_corpus(tmp_path, texts)
    assert cli.main(["init", str(corpus), "--out", str(tmp_path / "mine.yaml")]) == 0
    said = [record.getMessage() for record in caplog.records if "transcripts are" in record.getMessage()]
    assert len(said) == (script is not None)
    for sentence in said:
        assert f"mostly written in {script} characters, and the encoders are English" in sentence
        backbone = re.search(r"text_encoder\.backbone (\S+)$", sentence)[1]
        assert "multilingual" in backbone and "speech_encoder" not in sentence  # the corpus has no audio
        sections = yaml.safe_load((tmp_path / "mine.yaml").read_text())
        assert sections["text_encoder"]["backbone"] != backbone


def test_a_corpus_of_scores_without_labels_names_the_option(tmp_path, capsys):
    corpus = write_corpus(tmp_path, ["Hello", "Well", "Bye"], valence=1)
    printed = capsys.readouterr().out
    assert "unlabelled" not in printed and "without label" in printed
    assert cli.main(["init", str(corpus), "--out", str(tmp_path / "mine.yaml")]) == 2
    error = capsys.readouterr().err
    assert (
        "has no turn with a label. To predict scores, name their columns with --targets: sentiment, valence" in error
    )
    assert cli.main(["init", str(corpus), "--out", str(tmp_path / "mine.yaml"), "--targets", "valence"]) == 0


@pytest.fixture
def numbers(tmp_path) -> Path:
    """A table of vectors whose labels are scores."""
    folder = write_score_corpus(tmp_path / "numbers", {"train": 4, "validation": 2, "test": 2})
    for split, table in score_corpus({"train": 4, "validation": 2, "test": 2}).items():
        table = table.drop_columns("labels").rename_columns(
            ["labels" if name == "valence" else name for name in table.drop_columns("labels").column_names]
        )
        pq.write_table(table.replace_schema_metadata(None), folder / f"{split}.parquet")
    return folder


def test_labels_that_are_numbers_are_offered_as_targets(numbers, tmp_path, capsys):
    assert cli.main(["init", str(numbers), "--out", str(tmp_path / "mine.yaml")]) == 2
    error = capsys.readouterr().err
    assert "To predict scores, name their columns with --targets: " in error and "labels" in error
    assert f"mister-e train own-small --corpus {numbers} --corpus.labels NAME NAME" in error
    assert "(--corpus.labels)" not in error  # which init does not have
    recipe = Recipe.load("mister-e-mosi-score-small", ["--corpus", str(numbers)])
    with pytest.raises(InputError, match=r"to predict one under this name: --corpus\.targets '\{sentiment: labels\}'"):
        recipe.read_corpus()
    recipe.override(["--corpus.targets", "{sentiment: labels}", "--speech_embedding_dim", "24"])
    recipe.override(["--text_embedding_dim", "32"])
    assert recipe.read_corpus()["train"].targets == {"sentiment": "labels"}


@pytest.mark.parametrize(
    ("name", "made"),
    [("demo-video", "python scripts/demo.py runs/demo-video --video"), ("demo-recordings", "make demo")],
)
def test_recipes_of_the_demo_name_what_makes_their_backbones(tmp_path, name, made):
    with pytest.raises(InputError, match=f"are made by `{re.escape(made)}`. .*: own-small, or own-video with video"):
        Recipe.load(RECIPES[name]).encoder("speech")
    other = tmp_path / "other.yaml"
    other.write_text("speech_encoder: {tuning: full}\n")
    with pytest.raises(InputError, match="no speech_encoder.backbone, .* trained. Name one") as raised:
        Recipe.load(other).encoder("speech")
    assert "made by" not in str(raised.value)


def test_a_recipe_of_the_demo_on_another_corpus_names_the_script(tmp_path, capsys):
    corpus = write_corpus(tmp_path, ["Hello", "Well"])
    words = ["--corpus", str(corpus), "--output_dir", str(tmp_path / "run")]
    assert cli.main(["train", "demo-video", *words]) == 2
    assert "made by `python scripts/demo.py runs/demo-video --video`" in capsys.readouterr().err
