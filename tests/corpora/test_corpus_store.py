import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mister_e_hf import load_audio, read_corpus
from mister_e_hf.corpora import store
from mister_e_hf.corpora.schema import SPLITS, dialogue_features
from mister_e_hf.corpora.store import check_replaceable, write_corpus
from mister_e_hf.corpora.summary import format_summary, summarize
from mister_e_hf.media.audio import AudioError
from support.arrow_memory import counted_arrow_memory
from support.new_process import run_python
from support.small_corpora import CALLS, LABELS, read_calls, stretch_of, write_calls

FILES = ["README.md", "test.parquet", "train.parquet", "validation.parquet"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> datasets.DatasetDict:
    folder = tmp_path_factory.mktemp("calls")
    return read_calls(write_calls(folder / "source"), folder / "cache")


def load(folder: Path, cache: Path) -> datasets.DatasetDict:
    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def dialogues(count: int, sound: bytes = b"") -> datasets.Dataset:
    """Dialogues of one turn each, with bytes in place of audio."""
    turn = {"utterance_id": "0", "text": "Hm.", "audio": {"bytes": sound, "path": "0.flac"} if sound else None}
    turn |= {"start": None, "end": None, "duration": 1.0, "speaker": None, "emotion": "joy", "sentiment": None}
    rows = {"dialogue_id": [f"d{number}" for number in range(count)], "utterances": [[turn]] * count}
    return datasets.Dataset.from_dict(rows, features=dialogue_features(LABELS))


# Writing and reading again


def test_a_written_corpus_loads_as_the_builder_gave_it(corpus, tmp_path):
    assert write_corpus(corpus, tmp_path / "deep" / "calls") == (tmp_path / "deep" / "calls").resolve()
    assert names(tmp_path / "deep") == ["calls"] and names(tmp_path / "deep" / "calls") == FILES
    loaded = load(tmp_path / "deep" / "calls", tmp_path / "cache")
    assert list(loaded) == list(corpus) == list(SPLITS)
    for split in SPLITS:
        assert loaded[split].features == corpus[split].features
        assert loaded[split].to_list() == corpus[split].to_list()
    emotion = loaded["train"].features["utterances"].feature["emotion"]
    assert emotion.names == LABELS and loaded["train"][0]["utterances"][1]["emotion"] == LABELS.index("anger")


def test_embedded_audio_is_bit_equal_and_independent_of_its_source(tmp_path):
    corpus = read_calls(write_calls(tmp_path / "source"), tmp_path / "cache")
    write_corpus(corpus, tmp_path / "calls", embed_audio=True)
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "calls").rename(tmp_path / "moved")
    loaded = load(tmp_path / "moved", tmp_path / "cache")
    stretches = 0
    for split, expected in CALLS.items():
        assert loaded[split].features == corpus[split].features
        assert loaded[split]["dialogue_id"] == list(expected)
        for row, before, turns in zip(loaded[split], corpus[split], expected.values(), strict=True):
            for turn, old, (text, sound, speaker, emotion, sentiment) in zip(
                row["utterances"], before["utterances"], turns, strict=True
            ):
                kept = ("utterance_id", "text", "speaker", "emotion", "sentiment", "duration")
                assert [turn[field] for field in kept] == [old[field] for field in kept]
                assert (turn["text"], turn["speaker"], turn["sentiment"]) == (text, speaker, sentiment)
                assert turn["emotion"] == (None if emotion is None else LABELS.index(emotion))
                assert turn["start"] is None and turn["end"] is None
                if sound is None:
                    assert turn["audio"] is None and turn["duration"] is None
                    continue
                stretches += sound[1] is not None
                assert turn["audio"]["path"] == f"{turn['utterance_id'].replace('/', '_')}.flac"
                samples = load_audio(turn["audio"])
                np.testing.assert_array_equal(samples * 32768, stretch_of(sound))
                assert len(samples) / 16_000 == turn["duration"]
    assert stretches == 2


@pytest.mark.parametrize("place", ["test/train", "my_train-data", "validation.old"])
def test_folder_name_does_not_influence_splits(corpus, tmp_path, place):
    write_corpus(corpus, tmp_path / place)
    loaded = load(tmp_path / place, tmp_path / "cache")
    assert {split: data["dialogue_id"][:] for split, data in loaded.items()} == {
        split: list(expected) for split, expected in CALLS.items()
    }


def test_rewritten_folders_and_folders_of_the_same_name_are_read_again(corpus, tmp_path):
    for place in ("a", "b"):
        for dialogue in ("a", "b"):
            some = datasets.DatasetDict(
                train=corpus["train"].filter(lambda row, kept=dialogue: row["dialogue_id"] == kept)
            )
            write_corpus(some, tmp_path / place / "calls")
            loaded = load(tmp_path / place / "calls", tmp_path / "cache")
            assert loaded["train"].to_list() == some["train"].to_list()


def test_an_embedded_corpus_can_be_written_again(corpus, tmp_path):
    write_corpus(corpus, tmp_path / "first", embed_audio=True)
    loaded = load(tmp_path / "first", tmp_path / "cache")
    for embed_audio in (False, True):
        write_corpus(loaded, tmp_path / "second", embed_audio=embed_audio)
        for split in SPLITS:
            assert load(tmp_path / "second", tmp_path / "cache")[split].to_list() == loaded[split].to_list()


def test_audio_is_embedded_as_mono_16_khz(tmp_path):
    time = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    (tmp_path / "source").mkdir()
    soundfile.write(tmp_path / "source" / "a.wav", np.stack([tone, tone], axis=1), 44_100)
    (tmp_path / "source" / "metadata.csv").write_text("dialogue_id,order,audio,start,end\na,0,a.wav,0.25,0.75\n")
    corpus = read_calls(tmp_path / "source", tmp_path / "cache")
    write_corpus(corpus, tmp_path / "out", embed_audio=True)
    (turn,) = load(tmp_path / "out", tmp_path / "cache")["train"][0]["utterances"]
    (tmp_path / "a.flac").write_bytes(turn["audio"]["bytes"])
    samples, rate = soundfile.read(tmp_path / "a.flac")
    assert (samples.shape, rate) == ((8000,), 16_000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * (0.25 + np.arange(8000) / 16_000))
    np.testing.assert_allclose(samples[200:-200], expected[200:-200], atol=1e-3)


@pytest.mark.parametrize(("embed_audio", "size"), [(False, 10), (True, 12_000)])
def test_shards_hold_every_dialogue_once_and_in_order(tmp_path, monkeypatch, embed_audio, size):
    monkeypatch.setattr(store, "_SHARD_BYTES", size)
    rows = [{"dialogue_id": f"d{number}", "order": 0, "text": f"t{number}"} for number in range(320)]
    table = pa.Table.from_pylist([row | {"emotion": LABELS[len(row["text"]) % 3], "split": "train"} for row in rows])
    (tmp_path / "source").mkdir()
    pq.write_table(table, tmp_path / "source" / "turns.parquet")
    corpus = read_calls(tmp_path / "source", tmp_path / "cache")
    write_corpus(corpus, tmp_path / "out", embed_audio=embed_audio)
    shards = names(tmp_path / "out")[1:]
    assert len(shards) > 2
    assert shards == [f"train-{number:05}-of-{len(shards):05}.parquet" for number in range(len(shards))]
    metadata = [pq.read_metadata(tmp_path / "out" / shard) for shard in shards]
    # A shard is written until it is large enough.
    assert all(data.num_row_groups > 1 for data in metadata[:-1]) == embed_audio
    assert min((tmp_path / "out" / shard).stat().st_size for shard in shards[:-1]) >= size
    read = [row for shard in shards for row in pq.read_table(tmp_path / "out" / shard).to_pylist()]
    assert read == corpus["train"].to_list() and len(read) == 320
    assert load(tmp_path / "out", tmp_path / "cache")["train"].to_list() == read
    features = [[[float(number)]] for number in range(320)]
    start = 0
    for shard in shards:  # vectors added to each
        table = pq.read_table(tmp_path / "out" / shard)
        part = pa.array(features[start : start + len(table)], pa.list_(pa.list_(pa.float32())))
        start += len(table)
        pq.write_table(table.append_column("text_features", part), tmp_path / "out" / shard)
    vectors = read_corpus(tmp_path / "out", dict(zip(LABELS, range(3), strict=True)), splits=("train",))["train"]
    assert vectors.dialogue_ids == [f"d{number}" for number in range(320)]
    assert [item["text_embeddings"].item() for item in vectors] == list(range(320))


def test_one_split_alone_and_splits_without_dialogues(corpus, tmp_path):
    kept = corpus.filter(lambda row: row["dialogue_id"] in ("a", "b"))
    assert len(kept["test"]) == 0
    write_corpus(kept, tmp_path / "out")
    assert names(tmp_path / "out") == ["README.md", "train.parquet"]
    assert load(tmp_path / "out", tmp_path / "cache")["train"].to_list() == corpus["train"].to_list()
    assert list(load(tmp_path / "out", tmp_path / "cache")) == ["train"]


@pytest.mark.parametrize("splits", [{}, {"train": 0}, {"train": 1, "dev": 1}])
def test_writing_something_else_raises(tmp_path, splits):
    corpus = datasets.DatasetDict({split: dialogues(count) for split, count in splits.items()})
    with pytest.raises(ValueError, match="dev" if "dev" in splits else "no dialogue"):
        write_corpus(corpus, tmp_path / "out")
    assert names(tmp_path) == []


# What is there already


@pytest.mark.parametrize("embed_audio", [False, True])
def test_a_failure_on_the_way_leaves_all_as_it_was(tmp_path, embed_audio):
    corpus = read_calls(write_calls(tmp_path / "source"), tmp_path / "cache")
    (tmp_path / "place").mkdir()
    write_corpus(corpus, tmp_path / "place" / "calls", embed_audio=embed_audio)
    before = contents(tmp_path / "place" / "calls")
    (tmp_path / "source" / "d.wav").unlink()  # of test, the last to be written
    for name in ("calls", "new"):
        with pytest.raises(AudioError, match=r"d\.wav"):
            write_corpus(corpus, tmp_path / "place" / name, embed_audio=True)
        assert names(tmp_path / "place") == ["calls"]
        assert contents(tmp_path / "place" / "calls") == before


def test_remains_of_a_killed_process_are_removed(corpus, tmp_path):
    for word in ("unfinished", "replaced"):
        (tmp_path / f".{word}-calls").mkdir()
        (tmp_path / f".{word}-calls" / "train-00000.partial").write_text("half")
    write_corpus(corpus, tmp_path / "calls")
    assert names(tmp_path) == ["calls"] and names(tmp_path / "calls") == FILES


def test_a_corpus_is_replaced_whole(corpus, tmp_path):
    write_corpus(corpus, tmp_path / "calls")
    write_corpus(datasets.DatasetDict(validation=corpus["validation"]), tmp_path / "calls", embed_audio=True)
    assert names(tmp_path) == ["calls"]
    assert names(tmp_path / "calls") == ["README.md", "validation.parquet"]


@pytest.mark.parametrize("call, of", [("mkdir", ".unfinished-calls"), ("rename", "calls")])
def test_an_interrupt_between_two_steps_leaves_the_old_corpus(corpus, tmp_path, monkeypatch, call, of):
    write_corpus(corpus, tmp_path / "calls")
    function = getattr(Path, call)

    def interrupted(path, *words, **options):
        function(path, *words, **options)
        if path.name == of:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(datasets.DatasetDict(train=corpus["train"]), tmp_path / "calls")
    monkeypatch.undo()
    assert names(tmp_path) == ["calls"] and names(tmp_path / "calls") == FILES


def test_a_corpus_without_the_name_of_a_builder_is_replaced_too(tmp_path):
    for count in (1, 2):
        write_corpus(datasets.DatasetDict(train=dialogues(count)), tmp_path / "out")
        assert pq.read_metadata(tmp_path / "out" / "train.parquet").num_rows == count
    assert "# Dialogues\n" in (tmp_path / "out" / "README.md").read_text()


def test_an_empty_folder_is_filled_and_a_link_followed(corpus, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        assert write_corpus(corpus, tmp_path / "link") == (tmp_path / "real").resolve()
        assert names(tmp_path) == ["link", "real"] and names(tmp_path / "real") == FILES
        assert (tmp_path / "link").is_symlink()


def with_vectors(table: pa.Table) -> pa.Table:
    vectors = [[[1.0]] * len(turns) for turns in table["utterances"].to_pylist()]
    return table.append_column("text_features", pa.array(vectors, pa.list_(pa.list_(pa.float32()))))


ELSE = {
    "a file": lambda place: place.write_text("mine"),
    "a card alone": lambda place: (place.mkdir(), (place / "README.md").write_text("mine")),
    "something beside": lambda place: (place / "notes.txt").write_text("mine"),
    "a folder beside": lambda place: (place / "sounds").mkdir(),
    "vectors beside": lambda place: (place / "train.safetensors").write_bytes(b"mine"),
    "vectors inside": lambda place: pq.write_table(
        with_vectors(pq.read_table(place / "test.parquet")), place / "test.parquet"
    ),
    "a table of another origin": lambda place: pq.write_table(pa.table({"a": [1]}), place / "train.parquet"),
    "a table of another name": lambda place: pq.write_table(pa.table({"a": [1]}), place / "training.parquet"),
    "no table": lambda place: (place / "train.parquet").write_text("mine"),
    "a folder called so": lambda place: ((place / "test.parquet").unlink(), (place / "test.parquet").mkdir()),
}


@pytest.mark.parametrize("kind", ELSE)
def test_anything_else_is_refused_before_any_work(corpus, tmp_path, kind):
    place = tmp_path / "place" / "out"
    if kind.startswith("a file") or kind == "a card alone":
        place.parent.mkdir()
    else:
        write_corpus(corpus, place)
        check_replaceable(place)
    ELSE[kind](place)
    before = {
        str(path): path.read_bytes() if path.is_file() else None for path in sorted((tmp_path / "place").rglob("*"))
    }
    gone = datasets.DatasetDict(train=dialogues(1).map(without_sound))
    for refused in (lambda: check_replaceable(place), lambda: write_corpus(gone, place, embed_audio=True)):
        with pytest.raises(FileExistsError, match="holds something other than a corpus"):
            refused()
    after = {
        str(path): path.read_bytes() if path.is_file() else None for path in sorted((tmp_path / "place").rglob("*"))
    }
    assert after == before


def without_sound(row: dict) -> dict:
    row["utterances"][0]["audio"] = {"path": "/nowhere/at/all.wav", "bytes": None}
    return row


# Memory


MEASURE = """
import sys
from pathlib import Path
import numpy as np, soundfile
from mister_e_hf import DialogueFolder
from mister_e_hf.corpora.store import write_corpus

folder, count = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
generator, rows = np.random.default_rng(0), ["dialogue_id,order,file_name,split"]
for number in range(count):
    soundfile.write(folder / f"{number}.wav", generator.integers(-9999, 9999, 16_000 * 5).astype(np.int16), 16_000)
    rows.append(f"{number},0,{number}.wav,train")
(folder / "metadata.csv").write_text("\\n".join(rows))
builder = DialogueFolder(folder, cache_dir=sys.argv[3])
builder.download_and_prepare()
write_corpus(builder.as_dataset(), folder.with_name(folder.name + "-out"), embed_audio=True)
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_embedding_takes_no_more_memory_for_a_larger_corpus(tmp_path):
    peaks, sizes = [], []
    for count in (40, 240):
        call = run_python("-c", MEASURE, tmp_path / str(count), count, tmp_path / "cache")
        assert call.returncode == 0, call.stderr
        peaks.append(int(call.stdout))
        sizes.append((tmp_path / f"{count}-out" / "train.parquet").stat().st_size)
    assert sizes[1] - sizes[0] > 25 * 2**20
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 5


def test_counting_does_not_copy_audio():
    sound = bytes(2**20)
    data = datasets.concatenate_datasets([dialogues(4, sound) for _ in range(4)])
    with counted_arrow_memory() as pool:
        assert summarize(datasets.DatasetDict(train=data))["train"]["joy"] == 16
    assert pool.max_memory() < len(sound)


# Counts


def test_counts_of_every_split(corpus):
    # Words in the order that they are shown in.
    assert list(summarize(corpus)["train"].items()) == [
        ("dialogues", 2),
        ("utterances", 5),
        ("joy", 3),
        ("sad", 0),
        ("anger", 1),
        ("without label", 1),
        ("turns per dialogue, mean", 2.5),
        ("turns per dialogue, most", 3),
        ("seconds of audio", 1.0 + 0.75 + 0.5 + 0.5),
        ("turns without audio", 1),
        ("turns without text", 1),
        ("turns without video", 5),
        ("turns with sentiment", 3),
        ("mean sentiment", pytest.approx((1.5 - 2.0 + 0.0) / 3)),
        ("deviation of sentiment", pytest.approx(np.std([1.5, -2.0, 0.0]))),
    ]
    none = [0, None, None]
    assert list(summarize(corpus)["validation"].values()) == [1, 1, 0, 0, 1, 0, 1.0, 1, 0.25, 0, 0, 1, *none]
    assert list(summarize(corpus)["test"].values()) == [1, 2, 1, 0, 0, 1, 2.0, 2, 0.75, 1, 0, 2, *none]


def test_counts_of_one_split_of_many_dialogues():
    data = dialogues(2500)
    summary = summarize(datasets.DatasetDict(test=data))
    assert list(summary) == ["test"]
    assert list(summary["test"].values()) == [2500, 2500, 2500, 0, 0, 0, 1.0, 1, 2500.0, 2500, 0, 2500]
    # Selected rows are scattered.
    summary = summarize(datasets.DatasetDict(test=data.shuffle(seed=0).select(range(7))))
    assert list(summary["test"].values()) == [7, 7, 7, 0, 0, 0, 1.0, 1, 7.0, 7, 0, 7]


def test_counts_of_a_split_without_dialogues():
    summary = summarize(datasets.DatasetDict(train=dialogues(1), test=dialogues(1).select([])))
    assert set(summary["test"].values()) == {0}


def test_counts_as_a_table(corpus):
    table = format_summary(summarize(corpus))
    assert table == "\n".join(
        [
            "                          train  validation  test",
            "dialogues                     2           1     1",
            "utterances                    5           1     2",
            "joy                           3           0     1",
            "sad                           0           0     0",
            "anger                         1           1     0",
            "without label                 1           0     1",
            "turns per dialogue, mean    2.5         1.0   2.0",
            "turns per dialogue, most      3           1     2",
            "seconds of audio            2.8         0.2   0.8",
            "turns without audio           1           0     1",
            "turns without text            1           0     0",
            "turns without video           5           1     2",
            "turns with sentiment          3           0     0",
            "mean sentiment            -0.17           -     -",
            "deviation of sentiment     1.43           -     -",
        ]
    )


def test_columns_of_the_summary_are_aligned():
    table = format_summary({"train": {"utterances": 1234567, "seconds of audio": 98765.43}})
    assert table.splitlines() == [
        "                      train",
        "utterances        1,234,567",
        "seconds of audio   98,765.4",
    ]
