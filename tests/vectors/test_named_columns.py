import json
import logging
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mister_e_hf import DialogueVectors, read_corpus
from mister_e_hf.base.errors import InputError
from support.loopback_hub import loopback_hub
from support.named_speech import vectors_of, with_names, write_named
from support.new_process import run_python

NAMES = ["pitch", "energy", "jitter", "rate"]


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("wanted", [["rate", "pitch"], ["energy"], NAMES])
def test_columns_are_picked_by_name_in_the_order_of_the_names(tmp_path, wanted, beside):
    corpus = read_corpus(write_named(tmp_path, "d", NAMES, beside=beside), speech_columns=wanted)
    places = [NAMES.index(name) for name in wanted]
    for number, data in enumerate(corpus.values()):
        picked = data.vectors["speech"]
        assert picked.width == len(wanted) and torch.equal(picked.rows(0, 4), vectors_of(number, 4)[:, places])
        assert data.vectors["text"].width == 3 and data.present["speech"].all()
        assert torch.equal(data[0]["speech_embeddings"], vectors_of(number, 4)[:3, places])


def test_without_names_to_pick_nothing_changes(tmp_path):
    named, plain = write_named(tmp_path / "named", "d", NAMES), write_named(tmp_path / "plain", "d", None, speech=4)
    for split, data in read_corpus(named).items():
        assert data.fingerprint() == read_corpus(plain)[split].fingerprint()


def test_picked_columns_keep_dtype_and_presence(tmp_path):
    write_named(tmp_path, "d", NAMES, dtype=torch.float16, splits=("train",))
    table = pq.read_table(tmp_path / "train.parquet")
    pq.write_table(
        table.append_column("has_audio", pa.array([[True, False, True], [True]])), tmp_path / "train.parquet"
    )
    data = read_corpus(tmp_path, splits=("train",), speech_columns=["jitter"])["train"]
    assert data[0]["speech_embeddings"].dtype == torch.float16
    assert data.present["speech"].tolist() == [True, False, True, True]


def test_a_corpus_that_names_no_columns_counts_as_without_speech_which_is_logged_once(tmp_path, caplog):
    folder = write_named(tmp_path, "d", None, speech=4)
    with caplog.at_level(logging.WARNING):
        corpus = read_corpus(folder, speech_columns=["pitch"])
        read_corpus(folder, speech_columns=["pitch"])
    assert all(list(data.vectors) == ["text"] and "speech_mask" not in data[0] for data in corpus.values())
    (record,) = caplog.records
    assert f"'{folder}' does not name the columns of its speech vectors" in record.getMessage()
    assert "counts as a corpus without speech" in record.getMessage()


def test_a_corpus_without_speech_has_nothing_to_pick_from(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        corpus = read_corpus(write_named(tmp_path, "d", None), speech_columns=["pitch"])
    assert not caplog.records and list(corpus["train"].vectors) == ["text"]


def test_an_unknown_name_raises_with_the_nearest(tmp_path):
    folder = write_named(tmp_path, "d", NAMES)
    with pytest.raises(InputError, match="train: the speech vectors have no column 'pitsh'.*did you mean 'pitch'"):
        read_corpus(folder, speech_columns=["energy", "pitsh"])
    with pytest.raises(InputError, match="no column 'loudness'.*its columns are pitch, energy, jitter, rate"):
        read_corpus(folder, speech_columns=["loudness"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pitch", "must be a list of one name or more, got 'pitch'"),
        ([], r"must be a list of one name or more, got \[\]"),
        (["pitch", " "], "must be names, none of them empty, got ' '"),
        (["pitch", 3], "must be names, none of them empty, got 3"),
        (["pitch", "rate", "pitch"], "must name each column once, got 'pitch' twice"),
    ],
)
def test_names_that_are_not_names_raise(tmp_path, given, message):
    with pytest.raises(InputError, match=f"speech_columns {message}"):
        read_corpus(write_named(tmp_path, "d", NAMES), speech_columns=given)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (b"{", "metadata 'erc' is damaged"),
        (b"[1]", "metadata 'erc' is damaged"),
        (b'{"speech_feature_names": "pitch"}', "must be a list of strings, got pitch"),
        (b'{"speech_feature_names": ["pitch", 2]}', "must be a list of strings"),
        (b'{"speech_feature_names": ["a", "b", "a", "c"]}', "names the speech column 'a' twice"),
        (b'{"speech_feature_names": ["pitch", "rate"]}', "names 2 speech columns, but its vectors have width 4"),
        (b"\xff\xfe\x00", "metadata 'erc' is damaged"),
    ],
)
def test_damaged_names_raise_where_they_are_needed(tmp_path, stored, message):
    folder = write_named(tmp_path, "d", None, speech=4)
    for path in folder.glob("*.parquet"):
        pq.write_table(pq.read_table(path).replace_schema_metadata({b"erc": stored}), path)
    assert read_corpus(folder)["train"].vectors["speech"].width == 4
    with pytest.raises(InputError, match=f"train: the table's? .*{message}|train: the table {message}"):
        read_corpus(folder, speech_columns=["pitch"])


def test_splits_of_which_one_does_not_name_its_columns_raise(tmp_path):
    write_named(tmp_path, "d", NAMES)
    write_named(tmp_path, "d", None, speech=4, splits=("train", "validation"))
    message = "test names the columns of its speech vectors, train, validation does not"
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))}': {message}"):
        read_corpus(tmp_path, speech_columns=["pitch"])


def test_shards_of_which_one_names_other_columns_raise(tmp_path):
    write_named(tmp_path, "d", NAMES, splits=("train",), beside=False)
    table = pq.read_table(tmp_path / "train.parquet")
    (tmp_path / "train.parquet").unlink()
    pq.write_table(table[:1], tmp_path / "train-00000-of-00002.parquet")
    pq.write_table(with_names(table[1:], NAMES[::-1]), tmp_path / "train-00001-of-00002.parquet")
    assert read_corpus(tmp_path, splits=("train",))["train"].num_turns == 4
    with pytest.raises(InputError, match="shards of train name the columns of their speech vectors differently"):
        read_corpus(tmp_path, splits=("train",), speech_columns=["pitch"])


def test_vectors_of_a_table_without_names_raise():
    table = pa.table({"dialogue_id": ["d"], "utterance_ids": [["1"]], "speech_features": [[[1.0, 2.0]]]})
    with pytest.raises(InputError, match="train: the table does not name the columns of its speech vectors"):
        DialogueVectors(table, speech_columns=["pitch"])
    named = table.replace_schema_metadata({"erc": json.dumps({"speech_feature_names": ["pitch", "rate"]})})
    assert DialogueVectors(named, speech_columns=["rate"])[0]["speech_embeddings"].tolist() == [[2.0]]


READ = """
import sys
from mister_e_hf import read_corpus
from mister_e_hf.corpora.publishing import push_corpus

if len(sys.argv) > 1:
    push_corpus(sys.argv[1], "org/named")
print(read_corpus("org/named", speech_columns=["rate", "pitch"])["test"][0]["speech_embeddings"].tolist())
"""


def test_names_are_found_in_the_tables_of_the_hub_and_in_its_cache(tmp_path):
    folder = write_named(tmp_path / "corpus", "d", NAMES, labels=["joy", "anger"], beside=False)
    with loopback_hub() as hub:
        env = hub.env(tmp_path / "home")
        for words, more in (([str(folder)], {}), ([], {"HF_HUB_OFFLINE": "1"})):
            call = run_python("-c", READ, *words, env=env | more)
            assert call.returncode == 0, call.stderr
            assert json.loads(call.stdout) == vectors_of(2, 4)[:3, [3, 0]].tolist()
