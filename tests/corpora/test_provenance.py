import dataclasses
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mister_e_hf import Meld, cli
from mister_e_hf.corpora.dialogues import load_dialogues
from mister_e_hf.corpora.provenance import METADATA_KEY, Provenance
from mister_e_hf.corpora.store import write_corpus
from support.small_corpora import write_calls, write_meld

OWN = Provenance(corpus="dialogue_folder", name="My calls", license="cc-by-4.0")


def test_an_own_corpus_has_the_name_of_its_folder_or_the_one_it_is_given(tmp_path):
    source = write_calls(tmp_path / "Anna's calls")
    words = ["corpus", "folder", "--data_dir", str(source), "--cache_dir", str(tmp_path / "cache")]
    assert cli.main([*words, "--out", str(tmp_path / "first")]) == 0
    assert Provenance.of_folder(tmp_path / "first") == Provenance("dialogue_folder", "Anna's calls")
    given = ["--name", OWN.name, "--license", OWN.license]
    assert cli.main([*words, *given, "--out", str(tmp_path / "second")]) == 0
    assert Provenance.of_folder(tmp_path / "second") == OWN
    card = (tmp_path / "second" / "README.md").read_text(encoding="utf-8")
    assert "# My calls" in card and "license: cc-by-4.0" in card
    # As it is loaded and written again.
    corpus = load_dialogues(tmp_path / "second")
    assert Provenance.of(corpus["train"].info) == OWN
    assert Provenance.of_folder(write_corpus(corpus, tmp_path / "third")) == OWN


def test_a_published_corpus_says_whether_it_is_whole(tmp_path, monkeypatch):
    builder = Meld(write_meld(tmp_path / "source"), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    found = Provenance.of(builder.as_dataset()["train"].info)
    assert (found.corpus, found.name, found.whole) == ("meld", "part of MELD", False)
    assert found.license == Meld.about["license"] and found.citation == Meld.about["citation"]
    counts = builder.published_counts()
    assert builder.corpus_name(counts) == "MELD" and Provenance("meld", "MELD").whole
    assert builder.corpus_name(counts | {"test": {"test_dia0": 10**6}}) == "changed MELD"


def test_a_table_that_was_written_before_names_were(tmp_path):
    stored = {METADATA_KEY: json.dumps({"corpus": "meld"}).encode()}
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(stored), tmp_path / "train.parquet")
    assert Provenance.of_table(tmp_path / "train.parquet") == Provenance("meld", "MELD")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "train.parquet")
    assert Provenance.of_folder(tmp_path) == Provenance()


@pytest.mark.parametrize("key", [METADATA_KEY, b"huggingface"])
@pytest.mark.parametrize("content", [b"{not json", b"[1]", b"\xff", b"[" * 100_000])
def test_damaged_metadata_names_the_table(tmp_path, key, content):
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({key: content}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=rf"train\.parquet'.*metadata '{key.decode()}'"):
        Provenance.of_table(tmp_path / "train.parquet")


def test_metadata_of_another_type_names_the_table(tmp_path):
    stored = {METADATA_KEY: json.dumps({"corpus": 5}).encode()}
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(stored), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet'.*must hold texts, got"):
        Provenance.of_table(tmp_path / "train.parquet")


def test_provenance_of_a_split_survives_a_selection():
    data = datasets.Dataset.from_dict({"a": [1, 2, 3]})
    OWN.put(data.info)
    assert Provenance.of(data.select([2, 0]).info) == OWN
    changed = dataclasses.replace(OWN, name="x", license=None)
    changed.put(data.info)
    assert Provenance.of(data.info) == changed
