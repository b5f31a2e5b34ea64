import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from mister_e_hf import DialogueCollator
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.store import write_corpus
from mister_e_hf.vectors.pooled import read_pooled
from support.named_speech import vectors_of, write_named
from support.small_corpora import read_calls, write_calls

NAMES = ["pitch", "energy", "jitter", "rate"]


def three_corpora(folder) -> list:
    """Named columns in different places; other labels in each; the third one has neither names nor a label."""
    return [
        write_named(folder / "a", "a", ["loudness", *NAMES], labels=["joy", "anger"]),
        write_named(folder / "b", "b", NAMES[::-1], labels=[0.5, -1.0], dtype=torch.float16, beside=False),
        write_named(folder / "c", "c", None, speech=9),
    ]


def test_corpora_are_pooled_by_the_columns_that_they_share(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = read_pooled(three_corpora(tmp_path), speech_columns=["pitch", "rate"])
    assert data.dialogue_ids == [f"{name}-train-{row}" for name in "abc" for row in (0, 1)]
    assert data.num_turns == 12 and data.labels is None and "labels" not in data[0] and len(data) == 6
    speech = torch.cat([vectors_of(0, 5)[:, [1, 4]], vectors_of(0, 4)[:, [3, 0]], torch.zeros(4, 2)])
    assert torch.equal(data.vectors["speech"].rows(0, 12).float(), speech)
    assert data.present["speech"].tolist() == [True] * 8 + [False] * 4 and data.present["text"].all()
    assert torch.equal(data.vectors["text"].rows(0, 12).float(), -torch.cat([vectors_of(0, 3)] * 3))
    assert [record.getMessage().split("'")[1] for record in caplog.records] == [str(tmp_path / "c")]


def test_a_pool_is_batched_and_its_statistics_are_those_of_the_present_turns(tmp_path):
    data = read_pooled(three_corpora(tmp_path), speech_columns=["pitch", "rate"])
    batch = DialogueCollator()([data[number] for number in range(len(data))])
    assert batch["speech_embeddings"].shape == (6, 3, 2) and batch["speech_mask"].sum() == 8
    mean, deviation = data.statistics("speech")
    rows = torch.cat([vectors_of(0, 5)[:, [1, 4]], vectors_of(0, 4)[:, [3, 0]]]).double()
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(deviation, rows.std(0, correction=0))


def test_splits_are_pooled_and_test_is_read_only_by_name(tmp_path):
    corpora = three_corpora(tmp_path)[:1]
    data = read_pooled(corpora, ("train", "validation"))
    assert data.dialogue_ids == ["a-train-0", "a-train-1", "a-validation-0", "a-validation-1"]
    assert not any("test" in name for name in data.dialogue_ids)
    assert read_pooled(corpora, ("test",)).dialogue_ids == ["a-test-0", "a-test-1"]


def test_one_corpus_gives_the_same_dialogues_as_alone(tmp_path):
    from mister_e_hf import read_corpus

    folder = write_named(tmp_path, "a", NAMES)
    alone, pooled = read_corpus(folder)["train"], read_pooled([folder])
    assert alone.fingerprint() == pooled.fingerprint()
    for one, other in zip(alone, pooled, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_vectors_stay_memory_mapped_and_a_changed_file_is_noticed(tmp_path):
    data = read_pooled([write_named(tmp_path / "a", "a", None), write_named(tmp_path / "b", "b", None)])
    data[3]
    os.truncate(tmp_path / "b" / "train.safetensors", 90)
    assert data[0]["text_embeddings"].shape == (3, 3)
    with pytest.raises(InputError, match="b/train.safetensors' was changed"):
        data[3]


def test_widths_that_differ_raise_and_offer_the_shared_columns(tmp_path):
    a, b, c = three_corpora(tmp_path)
    with pytest.raises(
        InputError,
        match=f"speech vectors of '{a}' have width 5, those of '{b}' 4.*speech_columns "
        r"\(pitch, energy, jitter, rate\)",
    ):
        read_pooled([a, b])
    with pytest.raises(InputError, match=f"'{a}' have width 5, those of '{c}' 9.*'{c}' names no columns"):
        read_pooled([a, c])
    text = write_named(tmp_path / "text", "t", None, text=7)
    with pytest.raises(InputError, match=f"text vectors of '{a}' have width 3, those of '{text}' 7; .*Leave out"):
        read_pooled([a, text])


def test_a_dialogue_in_two_corpora_raises_even_in_a_split_that_is_not_read(tmp_path):
    a, b = write_named(tmp_path / "a", "a", None), write_named(tmp_path / "b", "b", None)
    table = pq.read_table(b / "test.parquet")
    pq.write_table(table.set_column(0, "dialogue_id", pa.array(["b-test-0", "a-train-1"])), b / "test.parquet")
    with pytest.raises(InputError, match=rf"'a-train-1' is in '{a}' \(train\) and in '{b}' \(test\)"):
        read_pooled([a, b])


def test_a_dialogue_twice_in_one_corpus_raises_even_in_a_split_that_is_not_read(tmp_path):
    a, b = write_named(tmp_path / "a", "a", None), write_named(tmp_path / "b", "b", None)
    for split, ids, where in (("test", ["b-test-0", "b-train-1"], "in train and in test"), ("train", "bb", "twice")):
        table = pq.read_table(b / f"{split}.parquet")
        pq.write_table(table.set_column(0, "dialogue_id", pa.array([*ids])), b / f"{split}.parquet")
        with pytest.raises(InputError, match=rf"'{b}': dialogue '.*' is {where}"):
            read_pooled([a, b])


def test_a_corpus_given_twice_raises(tmp_path):
    a = write_named(tmp_path / "a", "a", None)
    with pytest.raises(InputError, match="given twice"):
        read_pooled([a, tmp_path / "a" / ".." / "a"])


def test_a_name_that_no_corpus_has_raises_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match="no column 'pitsh'.*did you mean 'pitch'"):
        read_pooled(three_corpora(tmp_path), speech_columns=["pitsh"])
    twice = write_named(tmp_path / "twice", "twice", ["rate", "rate"])
    with pytest.raises(InputError, match=f"'{twice}', train: .* names the speech column 'rate' twice"):
        read_pooled([*three_corpora(tmp_path), twice], speech_columns=["rate"])
    with pytest.raises(InputError, match="'.*/b', train: .*no column 'loudness'"):
        read_pooled(three_corpora(tmp_path), speech_columns=["pitch", "loudness"])


def test_a_corpus_with_other_names_counts_as_without_speech(tmp_path, caplog):
    corpora = [write_named(tmp_path / "a", "a", NAMES), write_named(tmp_path / "b", "b", ["covarep_1", "covarep_2"])]
    with caplog.at_level(logging.WARNING):
        data = read_pooled(corpora, speech_columns=["rate"])
    assert data.present["speech"].tolist() == [True] * 4 + [False] * 4
    assert "has other speech columns (covarep_1, covarep_2)" in caplog.text


def test_a_corpus_that_is_left_without_vectors_raises(tmp_path):
    a = write_named(tmp_path / "a", "a", NAMES)
    nameless = write_named(tmp_path / "b", "b", None, speech=4, text=None)
    with pytest.raises(InputError, match=f"'{nameless}' does not name the columns .* has no other vectors in train"):
        read_pooled([a, nameless], speech_columns=["rate"])
    other = write_named(tmp_path / "c", "c", ["covarep"], text=None)
    with pytest.raises(InputError, match=rf"'{other}' has other speech columns \(covarep\), .* no other vectors"):
        read_pooled([a, other], speech_columns=["rate"])


def test_a_corpus_of_recordings_raises(tmp_path):
    a = write_named(tmp_path / "a", "a", None)
    calls = write_corpus(read_calls(write_calls(tmp_path / "calls"), tmp_path / "cache"), tmp_path / "corpus")
    with pytest.raises(InputError, match=f"'{calls}' holds no vectors in train: encoders make them"):
        read_pooled([a, calls])


def test_an_unreadable_table_of_a_split_that_is_not_read_raises(tmp_path):
    a, b = write_named(tmp_path / "a", "a", None), write_named(tmp_path / "b", "b", None)
    table = pq.read_table(b / "test.parquet")
    pq.write_table(table.drop_columns(["dialogue_id"]), b / "test.parquet")
    with pytest.raises(InputError, match=r"b/test.parquet' is not a Parquet table with a column dialogue_id"):
        read_pooled([a, b])


def test_a_missing_split_names_the_corpus(tmp_path):
    a, b = write_named(tmp_path / "a", "a", None), write_named(tmp_path / "b", "b", None, splits=("train",))
    with pytest.raises(FileNotFoundError, match=rf"No 'validation\.parquet' in '{b}'"):
        read_pooled([a, b], ("validation",))


@pytest.mark.parametrize("sources", [[], "folder"])
def test_no_list_of_corpora_raises(sources):
    with pytest.raises(InputError, match="Expected a list of one corpus or more"):
        read_pooled(sources)


def test_a_vector_that_is_not_finite_names_the_corpus(tmp_path):
    a, b = write_named(tmp_path / "a", "a", None), write_named(tmp_path / "b", "b", None)
    save_file({"text_features": torch.full((4, 3), torch.nan)}, b / "train.safetensors")
    with pytest.raises(InputError, match=f"'{b}', train: text_features of utterance '0_0' in dialogue 'b-train-0'"):
        read_pooled([a, b])


def test_whole_numbers_are_pooled_with_half_precision(tmp_path):
    corpora = [
        write_named(tmp_path / "a", "a", None, dtype=torch.float16),
        write_named(tmp_path / "b", "b", None, dtype=torch.int32),
    ]
    save_file({"text_features": torch.full((4, 3), 100_000, dtype=torch.int32)}, corpora[1] / "train.safetensors")
    mean, _ = read_pooled(corpora).statistics("text")
    assert np.isclose(mean[0].item(), (-vectors_of(0, 3)[:, 0].double().mean().item() + 100_000) / 2)


@pytest.mark.shared
def test_the_praat_measures_of_three_real_corpora_are_pooled(shared_dir):
    data = shared_dir / "data"
    from mister_e_hf.vectors.named_columns import speech_names

    names = speech_names(pq.read_schema(data / "meld" / "train.parquet"), "meld")
    corpora = [data / name for name in ("iemocap", "meld", "mosi")]
    pool = read_pooled(corpora, speech_columns=names)
    assert len(names) == 10 and pool.vectors["speech"].width == 10 and pool.vectors["text"].width == 768
    assert (len(pool), pool.num_turns) == (108 + 1038 + 52, 5163 + 9989 + 1284)
    assert pool.present["speech"][:5163].all() and not pool.present["speech"][-1284:].any()
    last_ten = torch.tensor(pq.read_table(corpora[0] / "train.parquet")["speech_features"][0].as_py())[:, -10:]
    assert torch.equal(pool[0]["speech_embeddings"], last_ten)
