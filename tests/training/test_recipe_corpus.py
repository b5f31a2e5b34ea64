"""The corpus against the model."""

import pyarrow as pa
import pytest

from support.small_recipes import (
    changed_corpus,
    recipe,
    with_column,
)


def test_corpus_that_fits(demo_folder):
    corpus = recipe("--corpus", str(demo_folder)).read_corpus()
    assert {split: len(data) for split, data in corpus.items()} == {"train": 48, "validation": 20, "test": 20}


def test_no_corpus_given():
    with pytest.raises(ValueError, match="no corpus given; set corpus.path or pass --corpus"):
        recipe().read_corpus()


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_corpus_of_another_width(demo_folder, modality):
    made = recipe("--corpus", str(demo_folder), f"--{modality}_embedding_dim", "20")
    with pytest.raises(ValueError, match=f"train: {modality}_features of dialogue 'train_000' have width .*= 20"):
        made.read_corpus()


def test_expert_without_its_modality(demo_folder, tmp_path):
    silent = changed_corpus(demo_folder, tmp_path, lambda table: with_column(table, "has_audio", False), ["train"])
    with pytest.raises(ValueError, match="train: no turn has speech.*leave it out of model.experts"):
        recipe("--corpus", silent).read_corpus()
    assert recipe("--corpus", silent, "--experts", "text", "fusion").read_corpus()
    mute = changed_corpus(demo_folder, tmp_path, lambda table: table.drop_columns("text_features"))
    with pytest.raises(ValueError, match="train: no turn has text.*leave it out of model.experts"):
        recipe("--corpus", mute).read_corpus()
    assert recipe("--corpus", mute, "--experts", "speech").read_corpus()


def test_corpus_without_a_label(demo_folder, tmp_path):
    folder = changed_corpus(demo_folder, tmp_path, lambda table: with_column(table, "labels", None), ["validation"])
    with pytest.raises(ValueError, match="validation: no turn has a label in 'labels'"):
        recipe("--corpus", folder).read_corpus()


def test_corpus_with_other_labels(demo_folder):
    made = recipe("--corpus", str(demo_folder), "--labels", "neutral", "joy")
    with pytest.raises(ValueError, match="train: dialogue 'train_000' has the label .* in 'labels'"):
        made.read_corpus()


def test_label_and_score_columns(demo_folder, tmp_path):
    def rename(table: pa.Table) -> pa.Table:
        numbers = [[0.5] * len(ids) for ids in table["utterance_ids"].to_pylist()]
        return table.rename_columns({"labels": "emotions"}).append_column("sentiment", [numbers])

    folder = changed_corpus(demo_folder, tmp_path, rename)
    with pytest.raises(ValueError, match="no column 'labels'"):
        recipe("--corpus", folder).read_corpus()
    corpus = recipe("--corpus", folder, "--label_column", "emotions", "--score_column", "sentiment").read_corpus()
    assert all((data.scores == 0.5).all() and (data.labels >= 0).all() for data in corpus.values())
    with pytest.raises(ValueError, match="'sentiment' holds real numbers"):
        recipe("--corpus", folder, "--label_column", "sentiment").read_corpus()
