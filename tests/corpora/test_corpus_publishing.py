import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard

from mister_e_hf import CmuMosi, Iemocap, Meld, load_audio, write_vectors
from mister_e_hf.corpora import store
from mister_e_hf.corpora.licences import PUBLISHED
from mister_e_hf.corpora.provenance import TITLES
from mister_e_hf.corpora.publishing import corpus_card, push_corpus
from mister_e_hf.corpora.schema import SPLITS
from mister_e_hf.corpora.store import write_corpus
from mister_e_hf.corpora.summary import format_summary, summarize
from support.loopback_hub import TOKEN, LoopbackHub, loopback_hub
from support.new_process import run_python
from support.small_corpora import read_calls, sound_of, write_calls, write_iemocap, write_meld, write_mosi

LICENSED = {"iemocap": (Iemocap, write_iemocap), "meld": (Meld, write_meld), "cmu_mosi": (CmuMosi, write_mosi)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> datasets.DatasetDict:
    folder = tmp_path_factory.mktemp("calls")
    return read_calls(write_calls(folder / "source"), folder / "cache")


@pytest.fixture(scope="module", params=LICENSED)
def licensed(request, tmp_path_factory) -> tuple[str, datasets.DatasetDict]:
    builder_class, write = LICENSED[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    builder = builder_class(write(folder / "source"), cache_dir=str(folder / "cache"))
    builder.download_and_prepare()
    return request.param, builder.as_dataset()


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """Errors are raised with a token, too, and nothing is sent to a Hub."""
    monkeypatch.setenv("HF_TOKEN", "none")


def add_vectors(table: pa.Table, width: int) -> pa.Table:
    vectors = [[[float(len(turn["utterance_id"]))] * width for turn in row] for row in table["utterances"].to_pylist()]
    return table.append_column("text_features", pa.array(vectors, pa.list_(pa.list_(pa.float32()))))


# The card


def test_card_describes_the_corpus(corpus):
    card = DatasetCard(corpus_card(corpus))
    data = card.data.to_dict()
    assert data["pretty_name"] == "source"
    assert {"audio-classification", "text-classification"} == set(data["task_categories"])
    assert "emotion-recognition-in-conversation" in data["tags"]
    assert f"<pre>\n{format_summary(summarize(corpus))}\n</pre>" in card.text
    assert "joy, sad, anger" in card.text and 'load_dataset("FOLDER")' in card.text
    assert "Licence" not in card.text


def test_card_of_a_licensed_corpus_has_licence_and_citation(licensed):
    name, corpus = licensed
    info = corpus["train"].info
    card = DatasetCard(corpus_card(corpus))
    assert card.data.pretty_name.split(" ", 1)[-1].removeprefix("of ") == TITLES[name]
    assert info.license and f"Licence: {info.license}" in card.text
    assert info.citation and info.citation in card.text and info.description in card.text


# What is not pushed


def test_a_licensed_corpus_is_refused_wherever_its_tables_go(licensed, tmp_path):
    name, corpus = licensed
    write_corpus(corpus, tmp_path / "corpus", embed_audio=True)
    places = [tmp_path / "corpus", tmp_path / "vectors", tmp_path / "columns", tmp_path / "one"]
    for split in SPLITS:
        table = pq.read_table(tmp_path / "corpus" / f"{split}.parquet")
        turns = sum(map(len, table["utterances"].to_pylist()))
        write_vectors(tmp_path / "vectors", split, table, text_features=torch.ones(turns, 2))
        write_vectors(tmp_path / "columns", split, add_vectors(table, 3))
    (tmp_path / "one").mkdir()
    # Among tables of one's own.
    pq.write_table(pa.table({"dialogue_id": ["d"]}), tmp_path / "one" / "train.parquet")
    shutil.copy(tmp_path / "corpus" / "test.parquet", tmp_path / "one" / "test-00000-of-00001.parquet")
    for place in places:
        with pytest.raises(ValueError, match=f"'{name}' is not pushed: ") as error:
            push_corpus(place, "org/name")
        assert PUBLISHED[name].why_not_pushed in str(error.value)


def test_the_name_of_a_licensed_corpus_comes_from_the_cache_too(tmp_path):
    write_mosi(tmp_path / "source")
    for _ in range(2):  # the second time nothing is read
        builder = CmuMosi(tmp_path / "source", cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
    write_corpus(builder.as_dataset(), tmp_path / "out", embed_audio=True)
    with pytest.raises(ValueError, match="'cmu_mosi' is not pushed"):
        push_corpus(tmp_path / "out", "org/name")


def test_pushing_audio_by_path_raises(corpus, tmp_path):
    write_corpus(corpus, tmp_path / "calls")
    with pytest.raises(ValueError, match=r"train\.parquet' refers to audio files.*turn a_0: .*a\.wav.*--embed_audio"):
        push_corpus(tmp_path / "calls", "org/name")
    # One turn is enough, however late.
    write_corpus(corpus, tmp_path / "calls", embed_audio=True)
    row = pq.read_table(tmp_path / "calls" / "train.parquet").to_pylist()[1]
    row["utterances"][1]["audio"] = {"bytes": None, "path": "b.wav"}
    tables = [pq.read_table(tmp_path / "calls" / "train.parquet")] * 7
    tables.append(pa.Table.from_pylist([row], schema=tables[0].schema))
    pq.write_table(pa.concat_tables(tables), tmp_path / "calls" / "train.parquet")
    with pytest.raises(ValueError, match=r"turn b_1: b\.wav.*--embed_audio"):
        push_corpus(tmp_path / "calls", "org/name")


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", "org/"])
def test_wrong_repository_name_raises_before_any_request(corpus, tmp_path, name):
    write_corpus(corpus, tmp_path / "calls", embed_audio=True)
    with pytest.raises(ValueError, match="[Rr]epo id"):
        push_corpus(tmp_path / "calls", name)


def test_no_tables(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="holds no train.parquet"):
            push_corpus(folder, "org/name")
    (tmp_path / "train.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"train\.parquet' is not a Parquet file"):
        push_corpus(tmp_path, "org/name")


# Over a Hub


PUSH = """
import json, sys
from huggingface_hub import HfApi
from mister_e_hf.corpora.publishing import push_corpus

shards, whole, vectors = sys.argv[1:]
api = HfApi()
api.create_repo("org/calls", repo_type="dataset")
for path in ("notes.txt", "lexicon.parquet", "data/train.parquet"):
    api.upload_file(path_or_fileobj=b"mine", path_in_repo=path, repo_id="org/calls", repo_type="dataset")
print(push_corpus(shards, "org/calls"))
print(push_corpus(whole, "org/calls", commit_message="Again"))
print(push_corpus(shards, "org/shards"))
print(push_corpus(whole, "mine", private=True))
print(push_corpus(vectors, "org/vectors"))
print(push_corpus(vectors, "org/vectors", private=True))
print(push_corpus(vectors, "org/vectors"))
"""
LOAD = """
import pickle, sys
from datasets import load_dataset
from mister_e_hf import read_corpus

found = {}
for name in ("org/calls", "org/shards", "loopback-user/mine"):
    try:
        corpus = load_dataset(name)
        found[name] = {split: (data.features, data.to_list()) for split, data in corpus.items()}
    except Exception as error:
        found[name] = str(error)
try:
    corpus = read_corpus("org/vectors", {"anger": 0, "joy": 1}, score_column="sentiment")
    found["org/vectors"] = {
        split: (
            data.dialogue_ids,
            data.utterance_ids,
            data.labels.tolist(),
            data.scores,
            [item["text_embeddings"].tolist() for item in data],
        )
        for split, data in corpus.items()
    }
except FileNotFoundError as error:
    found["org/vectors"] = str(error)
with open(sys.argv[1], "wb") as file:
    pickle.dump(found, file)
"""


def python(code: str, *words: Path, env: dict[str, str]) -> str:
    call = run_python("-c", code, *words, env=env)
    assert call.returncode == 0, call.stderr
    return call.stdout


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory) -> Path:
    """The calls with their audio in a folder of tables, one of shards, and one with vectors."""
    folder = tmp_path_factory.mktemp("pushed")
    write_corpus(corpus, folder / "whole", embed_audio=True)
    write_corpus(corpus, folder / "vectors", embed_audio=True)
    for split in SPLITS:
        path = folder / "vectors" / f"{split}.parquet"
        pq.write_table(add_vectors(pq.read_table(path), width=2), path)
    many = datasets.DatasetDict(corpus | {"train": datasets.concatenate_datasets([corpus["train"]] * 9)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_SHARD_BYTES", 1)
        write_corpus(many, folder / "shards", embed_audio=True)
    assert len(list((folder / "shards").glob("train-*-of-00003.parquet"))) == 3
    return folder


@pytest.fixture(scope="module")
def hub(folder):
    with loopback_hub() as hub:
        pushes = ("shards", "whole", "vectors")
        printed = python(PUSH, *(folder / name for name in pushes), env=hub.env(folder / "home"))
        assert printed.split() == ["org/calls", "org/calls", "org/shards", "loopback-user/mine", *["org/vectors"] * 3]
        yield hub


@pytest.fixture(scope="module")
def loaded(hub: LoopbackHub, tmp_path_factory) -> dict:
    """What a process finds on the Hub that knows nothing else, with the token and without."""
    found = {}
    for token in (TOKEN, None):
        folder = tmp_path_factory.mktemp("loaded")
        python(LOAD, folder / "found", env=hub.env(folder / "home", token))
        found[token] = pickle.loads((folder / "found").read_bytes())
    return found


def rows(folder: Path, split: str) -> list[dict]:
    return [row for path in sorted(folder.glob(f"{split}*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_pushed_corpus_round_trips_with_audio(corpus, folder, loaded):
    for name, place in {"org/calls": "whole", "org/shards": "shards", "loopback-user/mine": "whole"}.items():
        found = loaded[TOKEN][name]
        assert list(found) == list(SPLITS)
        for split in SPLITS:
            assert found[split] == (corpus[split].features, rows(folder / place, split))
    assert len(found["train"][1]) == 2 and len(loaded[TOKEN]["org/shards"]["train"][1]) == 18
    sound = load_audio(found["train"][1][0]["utterances"][0]["audio"])
    np.testing.assert_array_equal(sound * 32768, sound_of("a.wav"))


def test_a_later_push_takes_its_own_tables_away_and_no_others(hub):
    files = {"README.md", "train.parquet", "validation.parquet", "test.parquet"}
    others = {".gitattributes", "notes.txt", "lexicon.parquet", "data/train.parquet"}
    assert set(hub.files("org/calls", "dataset")) == files | others
    before = hub.commits("org/calls", "dataset")[-2]
    shards = {f"train-{number:05}-of-00003.parquet" for number in range(3)}
    assert set(hub.files("org/calls", "dataset", before)) == files - {"train.parquet"} | shards | others
    assert len(hub.commits("org/shards", "dataset")) == 2  # of the new repository, and of the push


def test_the_card_on_the_hub_names_the_repository_and_the_tables(hub, folder):
    for name, place in {"org/calls": "whole", "org/shards": "shards"}.items():
        card = DatasetCard(hub.read(name, "README.md", "dataset").decode())
        before = DatasetCard.load(folder / place / "README.md")
        assert f'load_dataset("{name}")' in card.text and card.text.replace(name, "FOLDER") == before.text
        data = card.data.to_dict()
        (config,) = data.pop("configs")
        assert data == before.data.to_dict()
        files = {found["split"]: found["path"] for found in config["data_files"]}
        tables = {path.name for path in (folder / place).glob("*.parquet")}
        assert list(files) == list(SPLITS) and {path for found in files.values() for path in found} == tables
        assert all(path.startswith(split) for split, found in files.items() for path in found)
    checks = [status for method, path, status in hub.requests if path == "/api/validate-yaml"]
    assert checks and set(checks) == {200}


def test_vectors_are_read_from_the_hub_with_labels_by_name(loaded):
    ids, utterances, labels, scores, vectors = loaded[TOKEN]["org/vectors"]["train"]
    assert (ids, utterances) == (["a", "b"], [["a_0", "a_1", "a_2"], ["b_0", "b_1"]])
    assert labels == [1, 0, 1, -100, 1]  # in the corpus joy is class 0
    np.testing.assert_array_equal(scores, [1.5, np.nan, np.nan, -2.0, 0.0])
    assert vectors == [[[3.0, 3.0]] * 3, [[3.0, 3.0]] * 2]
    assert loaded[TOKEN]["org/vectors"]["test"][2] == [-100, 1]


def test_private_repositories_are_private(hub, loaded):
    """One that was so from the beginning, and one that was public before."""
    changed = [
        path for method, path, status in hub.requests if (method, status) == ("PUT", 200) and "settings" in path
    ]
    assert changed == ["/api/datasets/org/vectors/settings"]
    assert loaded[None]["org/calls"] == loaded[TOKEN]["org/calls"]
    assert "loopback-user/mine" in loaded[None]["loopback-user/mine"]
    assert "org/vectors" in loaded[None]["org/vectors"] and isinstance(loaded[None]["org/vectors"], str)


def test_missing_token_raises_before_any_request(folder, tmp_path):
    code = "import sys; from mister_e_hf.corpora.publishing import push_corpus; push_corpus(sys.argv[1], 'org/name')"
    with loopback_hub() as hub:
        env = hub.env(tmp_path / "home", token=None)
        call = run_python("-c", code, folder / "whole", env=env)
        assert call.returncode == 1
        assert call.stderr.splitlines()[-1].startswith(
            "mister_e_hf.base.errors.InputError: A token is needed to push to 'org/name'."
        )
        assert "HF_TOKEN" in call.stderr.splitlines()[-1]
        assert hub.requests == []
