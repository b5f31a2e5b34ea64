"""Turns of video: as items of a split, through a processor, and embedded in bulk."""

import datasets
import numpy as np
import pytest
import torch

from mister_e_hf import read_corpus
from mister_e_hf.corpora.schema import dialogue_features
from mister_e_hf.encoders.embedding import RECORD, EmbeddingOptions, embed_corpus, embed_turns
from mister_e_hf.encoders.utterances import UtteranceCollator, Utterances
from mister_e_hf.media.video import VideoError
from support.small_videos import plain, write_clip
from support.tiny_backbones import LABELS, tiny_encoder, tiny_processor

NAMES = list(LABELS.values())
RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)
# Dialogues of turns: file, start, end, label. The long file is red for a second, then green, then blue.
TURNS = {
    "a": [("red.mp4", None, None, "anger"), ("long.mp4", 1.0, 2.0, "joy"), (None, None, None, "joy")],
    "b": [("long.mp4", 2.0, 3.0, None), ("long.mp4", 0.5, 1.5, "neutral")],
    "c": [("red.mp4", None, None, "anger")],
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "red.mp4", [plain(RED)] * 10, fps=10)
    write_clip(folder / "long.mp4", [plain(colour) for colour in (RED, GREEN, BLUE) for _ in range(10)], fps=10)
    return folder


def split_of(folder, split: str = "", as_bytes: bool = False) -> datasets.Dataset:
    rows = []
    for dialogue, given in TURNS.items():
        utterances = []
        for number, (name, start, end, label) in enumerate(given):
            path = None if name is None else folder / name
            video = None if path is None else {"path": str(path), "bytes": path.read_bytes() if as_bytes else None}
            turn = dict.fromkeys(dialogue_features(NAMES)["utterances"].feature)
            turn |= {"utterance_id": f"{dialogue}_{number}", "text": "so", "video": video, "start": start, "end": end}
            emotion = None if label is None else NAMES.index(label)
            utterances.append(turn | {"emotion": emotion, "sentiment": float(number)})
        rows.append({"dialogue_id": f"{split}{dialogue}", "utterances": utterances})
    return datasets.Dataset.from_list(rows, features=dialogue_features(NAMES))


@pytest.fixture(scope="module")
def corpus(clips) -> datasets.DatasetDict:
    return datasets.DatasetDict({split: split_of(clips, split) for split in ("train", "validation", "test")})


@pytest.fixture
def encoder(base):
    return tiny_encoder(base("vit"), "vit"), tiny_processor(base("vit"), "vit", num_frames=4)


def colour(frame: np.ndarray) -> int:
    """Which of red, green and blue a frame is."""
    return int(frame.mean((0, 1)).argmax())


def test_items_are_frames_of_the_stretch_of_each_turn(clips):
    data = Utterances(split_of(clips), "visual", {name: number for number, name in LABELS.items()}, num_frames=4)
    assert data.indices.tolist() == [0, 1, 3, 4, 5] and data.num_turns == 6
    assert [data[item]["label"] for item in range(5)] == [0, 1, -100, 2, 0]
    assert all(data[item]["turn"].shape == (4, 32, 32, 3) for item in range(5))
    assert [[colour(frame) for frame in data[item]["turn"]] for item in range(4)] == [
        [0, 0, 0, 0],
        [1, 1, 1, 1],
        [2, 2, 2, 2],
        [0, 0, 1, 1],
    ]


def test_videos_in_the_table_are_read_as_those_beside_it(clips):
    beside, inside = (Utterances(split_of(clips, as_bytes=stored), "visual") for stored in (False, True))
    for item in range(len(beside)):
        assert np.array_equal(beside[item]["turn"], inside[item]["turn"])


def test_a_corpus_without_the_field_has_no_video(clips):
    features = dialogue_features(NAMES)
    features["utterances"] = datasets.List(
        {name: value for name, value in features["utterances"].feature.items() if name != "video"}
    )
    rows = split_of(clips).to_list()
    for row in rows:
        for turn in row["utterances"]:
            del turn["video"]
    data = Utterances(datasets.Dataset.from_list(rows, features=features), "visual")
    assert len(data) == 0 and data.num_turns == 6


def test_a_video_that_cannot_be_read_is_named_or_missing(clips, tmp_path, caplog):
    (tmp_path / "red.mp4").write_bytes(b"no video")
    (tmp_path / "long.mp4").write_bytes((clips / "long.mp4").read_bytes())
    strict = Utterances(split_of(tmp_path), "visual")
    with pytest.raises(VideoError, match=r"Turn a_0: .*red\.mp4"):
        strict[0]
    assert strict[1]["turn"].shape[0] == 8
    lenient = Utterances(split_of(tmp_path), "visual", bad_video="missing")
    assert [lenient[item]["turn"] is None for item in range(5)] == [True, False, False, False, True]
    assert "Turn a_0 is used without video" in caplog.text
    with pytest.raises(ValueError, match="bad_video must be 'error' or 'missing', got 'skip'"):
        Utterances(split_of(clips), "visual", bad_video="skip")


def test_a_processor_takes_videos_as_well_as_frames(clips, base):
    processor = tiny_processor(base("vit"), "vit", num_frames=4)
    data = Utterances(split_of(clips), "visual", num_frames=4)
    long, red = clips / "long.mp4", clips / "red.mp4"
    videos = [str(red), {"path": str(long), "start": 1.0, "end": 2.0}, {"bytes": red.read_bytes(), "path": None}]
    expected = processor([data[0]["turn"], data[1]["turn"], data[0]["turn"]])
    found = processor(videos)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_batch_for_training(clips, base):
    data = Utterances(split_of(clips), "visual", {name: number for number, name in LABELS.items()}, num_frames=2)
    batch = UtteranceCollator(tiny_processor(base("vit"), "vit"))([data[0], data[2]])
    assert batch["pixel_values"].shape[:2] == (2, 2) and batch["labels"].tolist() == [0, -100]


# Embedded in bulk


def test_vectors_do_not_depend_on_batches_or_workers(corpus, encoder):
    model, processor = encoder
    data = Utterances(corpus["train"], "visual", num_frames=4)
    vectors, present = embed_turns(model, processor, data)
    assert present.tolist() == [True, True, False, True, True, True]
    assert vectors[2].abs().max() == 0
    for options in (EmbeddingOptions(frame_budget=4), EmbeddingOptions(frame_budget=9, num_workers=2)):
        again, _ = embed_turns(model, processor, data, options)
        torch.testing.assert_close(again, vectors, rtol=0, atol=1e-6)
    with torch.no_grad():
        alone = torch.cat([model(**processor([data[item]["turn"]])).embeddings for item in range(len(data))])
    torch.testing.assert_close(vectors[present], alone, rtol=0, atol=1e-6)


def test_a_corpus_is_embedded_and_read(corpus, encoder, tmp_path):
    embed_corpus(corpus, {"visual": encoder}, tmp_path / "vectors", shard_turns=3, use_cpu=True)
    files = sorted(path.name for path in (tmp_path / "vectors").iterdir())
    assert sum(name.endswith(".safetensors") for name in files) == 6 and RECORD in files
    data = read_corpus(tmp_path / "vectors", {name: number for number, name in LABELS.items()})["train"]
    expected, _ = embed_turns(*encoder, Utterances(corpus["train"], "visual", num_frames=4))
    found = torch.cat([data[number]["visual_embeddings"] for number in range(len(data))])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.cat([data[number]["visual_mask"] for number in range(len(data))]).tolist() == [1, 1, 0, 1, 1, 1]


def test_an_interrupted_run_resumes(corpus, encoder, tmp_path):
    folder = embed_corpus(corpus, {"visual": encoder}, tmp_path / "vectors", shard_turns=3, use_cpu=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "train-00001-of-00002.parquet").unlink()
    embed_corpus(corpus, {"visual": encoder}, folder, shard_turns=3, use_cpu=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ValueError, match="bad_video"):
        embed_corpus(corpus, {"visual": encoder}, folder, shard_turns=3, use_cpu=True, bad_video="missing")


def test_turns_whose_video_cannot_be_read_are_counted(clips, encoder, tmp_path, capfd):
    (tmp_path / "red.mp4").write_bytes(b"")
    (tmp_path / "long.mp4").write_bytes((clips / "long.mp4").read_bytes())
    corpus = datasets.DatasetDict({"train": split_of(tmp_path)})
    with pytest.raises(VideoError, match="Turn a_0"):
        embed_corpus(corpus, {"visual": encoder}, tmp_path / "strict", use_cpu=True)
    embed_corpus(corpus, {"visual": encoder}, tmp_path / "vectors", use_cpu=True, bad_video="missing")
    assert "2 turns have video that cannot be read, and no vector of it" in capfd.readouterr().err
    table = datasets.Dataset.from_parquet(str(tmp_path / "vectors" / "train-00000-of-00001.parquet"))
    assert table["has_video"][:] == [[False, True, False], [True, True], [False]]


def test_records_of_other_modalities_are_as_before(clips):
    options = EmbeddingOptions()
    assert options.policies(["speech", "text"]) == {"bad_audio": "error"}
    assert options.policies(["visual"]) == {"bad_audio": "error", "bad_video": "error"}
