import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mister_e_hf.corpora.dialogues import corpus_fingerprint, cross_fitting_folds, load_dialogues
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.corpora.store import write_corpus
from support.loopback_hub import loopback_hub
from support.new_process import run_python
from support.small_corpora import read_calls, write_calls
from support.small_encoders import LABELS, read_lines, write_lines

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> datasets.DatasetDict:
    folder = tmp_path_factory.mktemp("lines")
    return read_lines(write_lines(folder / "source", {"train": 12, "validation": 3, "test": 3}), folder / "cache")


def names_of(corpus: datasets.DatasetDict) -> dict[str, list[str]]:
    return {split: data["dialogue_id"][:] for split, data in corpus.items()}


def test_folder_round_trips(lines, tmp_path):
    folder = write_corpus(lines, tmp_path / "a [b]*" / "corpus")
    read = load_dialogues(str(folder))
    assert list(read) == ["train", "validation", "test"]
    for split, data in read.items():
        assert data.to_list() == lines[split].to_list() and data.features == lines[split].features
        assert data.info.dataset_name == "dialogue_folder"


def test_shards_are_read_in_order(lines, tmp_path):
    folder = write_corpus(lines, tmp_path / "corpus")
    table = pq.read_table(folder / "train.parquet")
    (folder / "train.parquet").unlink()
    for number in range(12):
        pq.write_table(table[number : number + 1], folder / f"train-{number:05}-of-00012.parquet")
    assert load_dialogues(folder)["train"].to_list() == lines["train"].to_list()


def test_folders_of_one_name_are_kept_apart_and_rewritten_ones_read_again(lines, tmp_path):
    corpora = [datasets.DatasetDict(train=lines["train"].select(rows)) for rows in ([0, 1], [2, 3, 4], [5])]
    folders = [write_corpus(corpora[number], tmp_path / str(number) / "corpus") for number in (0, 1)]
    for folder, corpus in zip(folders, corpora, strict=False):
        assert names_of(load_dialogues(folder)) == names_of(corpus)
    write_corpus(corpora[2], folders[0])
    assert names_of(load_dialogues(folders[0])) == names_of(corpora[2])


def test_empty_splits_are_left_out(lines):
    corpus = load_dialogues({"train": lines["train"], "test": lines["test"].filter(lambda row: False)})
    assert list(corpus) == ["train"]


def test_other_folders_and_tables_raise(lines, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"No corpus folder at '{tmp_path / 'nothing'}'"):
        load_dialogues(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="'.*empty' holds no tables; create a corpus with `mister-e corpus`"):
        load_dialogues(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"text": ["hello"]}), tmp_path / "other" / "train.parquet")
    with pytest.raises(ValueError, match=r"Split train of '.*other' has the columns \['text'\]; expected dialogue_id"):
        load_dialogues(tmp_path / "other")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(ValueError, match="Parquet"):
        load_dialogues(tmp_path / "broken")


@pytest.mark.parametrize(
    "turns",
    [
        ["hello"],
        [{"text": "hello"}],
        [
            {name: None for name in dialogue_features(["a"])["utterances"].feature}
            | {"utterance_id": "0", "emotion": "joy"}
        ],
    ],
    ids=["no fields", "few fields", "emotion of text"],
)
def test_turns_without_the_fields_raise(turns):
    data = datasets.Dataset.from_list([{"dialogue_id": "a", "utterances": turns}])
    with pytest.raises(ValueError, match="The utterances of split test of the corpus are .* emotion a ClassLabel"):
        load_dialogues({"test": data})


HUB = """
import sys
from datasets.exceptions import DatasetNotFoundError
from mister_e_hf.corpora.publishing import push_corpus
from mister_e_hf.corpora.dialogues import corpus_fingerprint, load_dialogues
push_corpus(sys.argv[1], "org/calls")
for source in (sys.argv[1], "org/calls"):
    print({split: corpus_fingerprint(data) for split, data in load_dialogues(source).items()})
try:
    load_dialogues("org/nothing")
except FileNotFoundError as error:
    print(error)
"""


def test_corpus_round_trips_through_the_hub(lines, tmp_path):
    folder = write_corpus(lines, tmp_path / "corpus", embed_audio=True)
    with loopback_hub() as hub:
        call = run_python("-c", HUB, folder, env=hub.env(tmp_path / "home"))
    assert call.returncode == 0, call.stdout + call.stderr
    here, there, error = call.stdout.splitlines()
    assert here == there and "validation" in here
    assert error.startswith("'org/nothing' is neither a folder here nor a dataset that could be loaded")


# The fingerprint


def with_turn(data: datasets.Dataset, **changes) -> datasets.Dataset:
    rows = data.to_list()
    rows[1]["utterances"][0] |= changes
    return datasets.Dataset.from_list(rows, features=data.features)


def test_fingerprint_depends_on_content_alone(lines):
    data = lines["train"]
    own = corpus_fingerprint(data)
    halves = [data.select(range(5)), data.select(range(5, 12))]
    same = [datasets.concatenate_datasets(halves), datasets.Dataset.from_list(data.to_list(), features=data.features)]
    assert {corpus_fingerprint(other) for other in same} == {own}
    features = dialogue_features(["rage", *LABELS[1:]])
    others = {
        "text": with_turn(data, text="Something else"),
        "id": with_turn(data, utterance_id="x"),
        "label": with_turn(data, emotion=None),
        "sentiment": with_turn(data, sentiment=9.0),
        "times": with_turn(data, start=0.01, end=0.02),
        "audio": with_turn(data, audio={"bytes": b"", "path": None}),
        "other audio": with_turn(data, audio={"bytes": b"1", "path": None}),
        "dialogue": data.map(lambda row: {"dialogue_id": row["dialogue_id"] + "x"}),
        "name of a label": datasets.Dataset(data.data.table.replace_schema_metadata(features.arrow_schema.metadata)),
        "order": data.shuffle(seed=1),
        "fewer": data.select(range(11)),
    }
    assert len({own, *map(corpus_fingerprint, others.values())}) == len(others) + 1


def test_fingerprint_depends_on_the_state_of_audio_files(tmp_path):
    data = read_calls(write_calls(tmp_path / "calls"), tmp_path / "cache")["train"]
    before = corpus_fingerprint(data)
    path = tmp_path / "calls" / "a.wav"
    os.utime(path, ns=(0, 0))
    touched = corpus_fingerprint(data)
    path.unlink()
    assert len({before, touched, corpus_fingerprint(data)}) == 3


# Folds for cross-fitting


@pytest.mark.parametrize(("count", "folds"), [(2, 2), (7, 3), (100, 5), (1038, 10)])
def test_folds_are_of_equal_size_and_reproducible(count, folds):
    fold = cross_fitting_folds(count, folds)
    sizes = np.bincount(fold)
    assert len(sizes) == folds and sizes.max() - sizes.min() <= 1
    assert np.array_equal(fold, cross_fitting_folds(count, folds))
    assert count < 50 or not np.array_equal(fold, np.sort(fold))


@pytest.mark.parametrize("folds", [1, 8])
def test_wrong_number_of_folds_raises(folds):
    with pytest.raises(ValueError, match=f"7 dialogues cannot be split into {folds} folds"):
        cross_fitting_folds(7, folds)
