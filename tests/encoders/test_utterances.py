import csv
import os
import pickle
import tracemalloc

import datasets
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from mister_e_hf import load_audio
from mister_e_hf.corpora.dialogues import load_dialogues
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.corpora.store import write_corpus
from mister_e_hf.encoders.packing import packed_batches
from mister_e_hf.encoders.utterances import UtteranceCollator, Utterances
from mister_e_hf.media.audio import AudioError
from support.small_encoders import LABELS, RATE, read_lines, tiny_encoder, write_backbone, write_lines

pytestmark = pytest.mark.usefixtures("own_cache")

# The model's order is not the corpus's.
LABEL2ID = {"neutral": 0, "joy": 1, "anger": 2}

# dialogue, text, file, start, end, label
TURNS = [
    ("a", "Good morning.", "a.wav", None, None, "joy"),
    ("a", "Is it?", "long.wav", 0.5, 1.25, "anger"),
    ("a", None, "long.wav", 1.5, 2.0, "neutral"),
    ("b", "Nobody recorded this.", None, None, None, "joy"),
    ("b", "Grüße", "b.wav", None, None, None),
]
SECONDS = {"a.wav": 0.5, "b.wav": 0.25, "long.wav": 3.0}


@pytest.fixture
def recorded(tmp_path) -> datasets.DatasetDict:
    folder = tmp_path / "recorded"
    folder.mkdir()
    for seed, (name, seconds) in enumerate(SECONDS.items()):
        samples = np.random.default_rng(seed).integers(-9000, 9000, size=round(RATE * seconds))
        soundfile.write(folder / name, samples.astype(np.int16), RATE)
    with (folder / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["dialogue_id", "order", "text", "audio", "start", "end", "emotion"])
        table.writerows([dialogue, order, *others] for order, (dialogue, *others) in enumerate(TURNS))
    return read_lines(folder, tmp_path / "cache")


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> datasets.DatasetDict:
    folder = tmp_path_factory.mktemp("lines")
    return read_lines(write_lines(folder / "source", {"train": 12, "validation": 3, "test": 3}), folder / "cache")


def expected_items(data: datasets.Dataset, modality: str) -> list[tuple]:
    """(turn, label, index) of every item, by the rows as Python objects."""
    turns = [turn for row in data.to_list() for turn in row["utterances"]]
    names = data.features["utterances"].feature["emotion"].names
    items = []
    for index, turn in enumerate(turns):
        label = -100 if turn["emotion"] is None else LABEL2ID[names[turn["emotion"]]]
        if modality == "text" and turn["text"] is not None:
            items.append((turn["text"], label, index))
        elif modality == "speech" and turn["audio"] is not None:
            items.append((load_audio(turn["audio"], start=turn["start"], end=turn["end"]), label, index))
    return items


def assert_items(utterances: Utterances, expected: list[tuple]):
    assert len(utterances) == len(expected)
    for item, (turn, label, index) in zip((utterances[n] for n in range(len(utterances))), expected, strict=True):
        assert (item["label"], item["index"]) == (label, index)
        assert np.array_equal(item["turn"], turn)


# The turns of one modality


@pytest.mark.parametrize("embedded", [False, True], ids=["paths", "bytes"])
def test_an_item_is_its_turn_with_its_stretch_of_sound(recorded, tmp_path, embedded):
    data = load_dialogues(write_corpus(recorded, tmp_path / "corpus", embed_audio=embedded))["train"]
    assert (data[0]["utterances"][0]["audio"]["bytes"] is not None) == embedded
    labels = [LABEL2ID.get(label, -100) for *_, label in TURNS]
    text = Utterances(data, "text", LABEL2ID)
    assert_items(text, [(TURNS[turn][1], labels[turn], turn) for turn in (0, 1, 3, 4)])
    assert text.lengths.tolist() == [13, 6, 21, 5] and text.dialogues().tolist() == [0, 0, 1, 1]
    sound = {name: soundfile.read(tmp_path / "recorded" / name, dtype="float32")[0] for name in SECONDS}
    cuts = [sound["a.wav"], sound["long.wav"][8000:20000], sound["long.wav"][24000:32000], sound["b.wav"]]
    speech = Utterances(data, "speech", LABEL2ID)
    assert_items(speech, [(cut, labels[turn], turn) for cut, turn in zip(cuts, (0, 1, 2, 4), strict=True)])
    assert speech.lengths.tolist() == [0.5, 0.75, 0.5, 0.25] and speech.dialogues().tolist() == [0, 0, 0, 1]
    assert text.num_turns == speech.num_turns == 5
    assert text.dialogue_lengths.tolist() == [3, 2]


def test_turns_without_a_label_can_be_left_out(recorded):
    for modality, indices in {"text": [0, 1, 3], "speech": [0, 1, 2]}.items():
        utterances = Utterances(recorded["train"], modality, LABEL2ID, labelled_only=True)
        assert utterances.indices.tolist() == indices and len(utterances.lengths) == 3
        assert [utterances[item]["label"] for item in range(3)] == [LABEL2ID[TURNS[turn][-1]] for turn in indices]
    assert len(Utterances(recorded["train"], "text", labelled_only=True)) == 0


def test_dialogues_can_be_left_out(recorded):
    alone = Utterances(recorded["train"], "text", LABEL2ID, dialogues=np.array([False, True]))
    assert [alone[item]["turn"] for item in range(len(alone))] == ["Nobody recorded this.", "Grüße"]
    assert alone.num_turns == 5 and alone.dialogues().tolist() == [1, 1] and alone.indices.tolist() == [3, 4]


def test_without_the_model_s_labels_no_turn_is_labelled(recorded):
    assert set(Utterances(recorded["train"], "text").labels.tolist()) == {-100}


def test_a_label_that_the_model_lacks_is_named(recorded):
    with pytest.raises(ValueError, match="the label 'anger', which is none of the model's labels"):
        Utterances(recorded["train"], "text", {"joy": 0, "neutral": 1})
    # one that no turn has may be lacking
    first = recorded["train"].filter(lambda row: row["dialogue_id"] == "b")
    assert Utterances(load_dialogues({"train": first})["train"], "text", {"joy": 0}).labels.tolist() == [0, -100]


def test_blanks_are_no_text(recorded):
    row = recorded["train"][0]
    for number, text in enumerate([" \n\t", "", "\u3000"]):
        row["utterances"][number]["text"] = text
    data = datasets.Dataset.from_list([row], features=recorded["train"].features)
    assert len(Utterances(data, "text")) == 0 and len(Utterances(data, "speech")) == 3


def test_sound_that_cannot_be_used(recorded, caplog, tmp_path):
    (tmp_path / "recorded" / "a.wav").unlink()
    (tmp_path / "recorded" / "b.wav").write_bytes(b"no sound")
    strict = Utterances(recorded["train"], "speech")
    for item, turn, culprit in ((0, "a_0", "a.wav"), (3, "b_1", "b.wav")):
        with pytest.raises(AudioError, match=f"Turn {turn}: .*{culprit}"):
            strict[item]
    assert len(strict[1]["turn"]) == 12000
    lenient = Utterances(recorded["train"], "speech", bad_audio="missing")
    assert [lenient[item]["turn"] is None for item in range(4)] == [True, False, False, True]
    assert "Turn a_0 is used without audio" in caplog.text and "Turn b_1 is used without audio" in caplog.text


def test_a_turn_that_the_corpus_took_is_read_whatever_its_length(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.tile([0.1, -0.1], 300_500), 1000)
    (tmp_path / "train.csv").write_text("dialogue_id,order,audio,emotion\na,0,long.wav,joy\n")
    data = read_lines(tmp_path, tmp_path / "cache", max_seconds=700)["train"]
    assert len(Utterances(data, "speech")[0]["turn"]) == 601 * RATE


@pytest.mark.parametrize("changes", [{"modality": "video"}, {"bad_audio": "ignore"}])
def test_wrong_arguments_are_named(recorded, changes):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=f"{name} must be .* got '{value}'"):
        Utterances(recorded["train"], **{"modality": "text", **changes})


CHANGES = {
    "as it is": lambda data: data,
    "shuffled": lambda data: data.shuffle(seed=3),
    "some rows": lambda data: data.select([7, 2, 2, 11]),
    "a run of rows": lambda data: data.select(range(3, 9)),
    "a run of shuffled rows": lambda data: data.shuffle(seed=3).select(range(3, 9)),
    "filtered": lambda data: data.filter(lambda row: int(row["dialogue_id"].split("_")[1]) % 2 == 0),
    "reversed": lambda data: data.select(range(len(data) - 1, -1, -1)),
    "several parts": lambda data: datasets.concatenate_datasets([data.select(range(6, 12)), data.select(range(2))]),
    "in memory": lambda data: datasets.Dataset.from_list(data.to_list(), features=data.features),
    "one row of many": lambda data: data.select([5]),
}


@pytest.mark.parametrize("modality", ["speech", "text"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_dataset_of_dialogues_gives_its_own_turns(lines, change, modality):
    changed = change(lines["train"])
    expected = expected_items(changed, modality)
    utterances = Utterances(load_dialogues(datasets.DatasetDict(train=changed))["train"], modality, LABEL2ID)
    assert expected
    assert_items(utterances, expected)
    assert [utterances.dialogue_lengths[row] for row in range(len(changed))] == [
        len(row["utterances"]) for row in changed
    ]


def test_sound_stays_on_disk(tmp_path):
    """Neither making the turns nor reading their words nor sending them to another process touches the sound."""
    sound = 4 * 1024 * 1024

    def rows():
        for number in range(4):
            turn = {"utterance_id": "0", "text": f"line {number}", "audio": {"bytes": os.urandom(sound), "path": None}}
            turn |= {"start": None, "end": None, "duration": 1.0, "speaker": None, "emotion": "joy", "sentiment": None}
            yield {"dialogue_id": str(number), "utterances": [turn]}

    features = dialogue_features(LABELS)
    data = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(tmp_path))
    allocated = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        utterances = Utterances(data, "text", LABEL2ID)
        texts = [utterances[item]["turn"] for item in range(4)]
        stored = pickle.dumps(utterances)
        assert tracemalloc.get_traced_memory()[1] < sound / 4
    finally:
        tracemalloc.stop()
    assert pa.total_allocated_bytes() - allocated < sound / 4
    assert texts == [f"line {number}" for number in range(4)]
    again = pickle.loads(stored)
    assert [again[item] for item in range(4)] == [utterances[item] for item in range(4)]


# Batches


@pytest.mark.parametrize("most", [1, 7, 256])
@pytest.mark.parametrize("budget", [0.5, 40.0, 1e9])
def test_every_item_stands_once_in_batches_within_the_budget(budget, most):
    sizes = np.random.default_rng(0).lognormal(1.0, 0.8, size=500).tolist()
    batches = list(packed_batches(sizes, budget, most))
    assert sorted(item for batch in batches for item in batch) == list(range(500))
    assert max(map(len, batches)) <= most
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(sizes[item] for item in batch) <= budget
    in_order = [sizes[item] for batch in batches for item in batch]
    assert in_order == sorted(sizes, reverse=True)
    if budget > 1:
        padded = sum(len(batch) * max(sizes[item] for item in batch) for batch in batches)
        assert most == 256 or len(batches) <= 1.3 * max(500 / most, padded / budget)
        if budget == 40.0:
            assert padded < 1.1 * sum(sizes)


def test_batches_by_hand():
    assert list(packed_batches([], 10, 3)) == []
    assert list(packed_batches([3, 1, 20, 2, 3], 6, 3)) == [[2], [0, 4], [3, 1]]
    assert list(packed_batches([0, 0, 0], 6, 2)) == [[0, 1], [2]]
    assert list(packed_batches([1, 1, 1, 1], 2, 9)) == [[0, 1], [2, 3]]
    # beyond a few rows, those that are much shorter go elsewhere
    assert list(packed_batches([10] * 8 + [8], 1000, 99)) == [[0, 1, 2, 3, 4, 5, 6, 7, 8]]
    assert list(packed_batches([10] * 8 + [7], 1000, 99)) == [[0, 1, 2, 3, 4, 5, 6, 7], [8]]


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_a_batch_is_the_processor_s_with_labels(lines, tmp_path, modality):
    _, processor = tiny_encoder(write_backbone(tmp_path / "backbone", modality), modality)
    utterances = Utterances(lines["train"], modality, LABEL2ID)
    items = [utterances[item] for item in (4, 0, 7, 2)]
    batch = UtteranceCollator(processor)(items)
    assert batch.pop("labels").tolist() == [item["label"] for item in items]
    expected = processor([item["turn"] for item in items])
    assert set(batch) == set(expected) and all(torch.equal(batch[name], expected[name]) for name in batch)


def test_long_sound_is_cropped_in_training_alone(recorded, tmp_path):
    _, processor = tiny_encoder(write_backbone(tmp_path / "backbone", "speech"), "speech")
    processor.window_seconds = 0.125
    items = [Utterances(recorded["train"], "speech")[item] for item in range(4)]
    whole = UtteranceCollator(processor)(items)
    assert whole["utterance_index"].bincount().tolist() == [4, 6, 4, 2]
    crops = [UtteranceCollator(processor, random_crop=True)(items) for _ in range(2)]
    assert all(crop["input_values"].shape == (4, 2000) for crop in crops)
    assert not torch.equal(crops[0]["input_values"], crops[1]["input_values"])
