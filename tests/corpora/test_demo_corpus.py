import csv

import numpy as np
import pyarrow as pa
import pytest

from mister_e_hf import read_corpus
from mister_e_hf.corpora.demo import (
    LABELS,
    SPEECH_DIM,
    SPLIT_SIZES,
    TEXT_DIM,
    VIDEO_LABELS,
    VISUAL_DIM,
    demo_corpus,
    write_demo_corpus,
)
from mister_e_hf.corpora.demo_recordings import write_demo_recordings
from mister_e_hf.media.audio import load_audio
from mister_e_hf.media.video import has_sound, load_frames

SIZES = {"train": 30, "validation": 10, "test": 10}
PLAIN, OWN, FIRST, SECOND = range(4)


def rows(corpus: dict[str, pa.Table]) -> list[dict]:
    return [row for table in corpus.values() for row in table.to_pylist()]


def patterns(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The four patterns of each modality: without noise, a turn's vector is one of them."""
    corpus = rows(demo_corpus(seed, noise=0.0, sizes=SIZES))
    found = []
    for field in ("speech_features", "text_features"):
        vectors = np.concatenate([np.array(row[field]) for row in corpus])
        labels = np.concatenate([row["labels"] for row in corpus])
        plain, own = ("neutral", "anger") if field == "speech_features" else ("neutral", "joy")
        paired = np.unique(vectors[np.isin(labels, ["surprise", "fear"])], axis=0)
        known = [np.unique(vectors[labels == label], axis=0) for label in (plain, own)]
        found.append(np.concatenate([*known, paired]))
    return tuple(found)


def shown(vectors: list, patterns: np.ndarray) -> np.ndarray:
    """The nearest pattern of each turn."""
    distances = np.linalg.norm(np.array(vectors)[:, None] - patterns, axis=-1)
    return distances.argmin(-1)


def test_same_seed_same_corpus():
    first, second, other = (demo_corpus(seed, sizes=SIZES) for seed in (3, 3, 4))
    assert all(first[split].equals(second[split]) for split in SIZES)
    for split in SIZES:
        for column in ("labels", "has_audio", "speech_features", "text_features"):
            assert not first[split][column].equals(other[split][column]), (split, column)


def test_noise_changes_the_vectors_alone():
    quiet, loud = (demo_corpus(0, noise=noise, sizes=SIZES) for noise in (0.1, 1.0))
    for split in SIZES:
        for column in ("dialogue_id", "utterance_ids", "labels", "has_audio"):
            assert quiet[split][column].equals(loud[split][column])
    differences = [
        np.concatenate([np.array(row["text_features"]).ravel() for row in rows(corpus)])
        - np.concatenate([np.array(row["text_features"]).ravel() for row in rows(demo_corpus(0, 0.0, SIZES))])
        for corpus in (quiet, loud)
    ]
    assert [difference.std() for difference in differences] == pytest.approx([0.1, 1.0], rel=0.05)


def test_four_patterns_a_modality():
    speech, text = patterns(0)
    assert speech.shape == (4, SPEECH_DIM) and text.shape == (4, TEXT_DIM)
    assert not np.allclose(speech, patterns(1)[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_each_emotion_shows_where_it_should(seed):
    speech_patterns, text_patterns = patterns(seed)
    pairs = {label: set() for label in LABELS}
    for row in rows(demo_corpus(seed, sizes=SIZES)):
        speech, text = shown(row["speech_features"], speech_patterns), shown(row["text_features"], text_patterns)
        for label, pair in zip(row["labels"], zip(speech.tolist(), text.tolist(), strict=True), strict=True):
            pairs[label].add(pair)
    assert pairs["anger"] == {(OWN, PLAIN)}
    assert pairs["joy"] == {(PLAIN, OWN)}
    assert pairs["neutral"] == pairs["sadness"] == {(PLAIN, PLAIN)}
    # Both take every pattern of their pair in each modality, so only both together distinguish them.
    for label in ("surprise", "fear"):
        assert len(pairs[label]) == 2
        assert {pair[0] for pair in pairs[label]} == {pair[1] for pair in pairs[label]} == {FIRST, SECOND}
    assert not pairs["surprise"] & pairs["fear"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_plain_turn_is_sadness_exactly_where_the_last_other_turn_was_anger(seed):
    counts = {"sadness": 0, "neutral": 0}
    for row in rows(demo_corpus(seed, sizes=SIZES)):
        last = None
        for label in row["labels"]:
            if label in counts:
                assert label == ("sadness" if last == "anger" else "neutral")
                counts[label] += 1
            else:
                last = label
    assert min(counts.values()) > 20


def test_every_label_in_every_split():
    for table in demo_corpus(0).values():
        labels = [label for row in table["labels"].to_pylist() for label in row]
        assert set(labels) == set(LABELS)
        assert min(np.unique(labels, return_counts=True)[1]) > 0.05 * len(labels)


def test_dialogues_and_turns_are_unique():
    corpus = rows(demo_corpus(0))
    dialogues = [row["dialogue_id"] for row in corpus]
    turns = [turn for row in corpus for turn in row["utterance_ids"]]
    assert len(set(dialogues)) == len(dialogues) == sum(SPLIT_SIZES.values())
    assert len(set(turns)) == len(turns)
    speech = np.concatenate([np.array(row["speech_features"]) for row in corpus])
    assert len(np.unique(speech, axis=0)) == len(turns)


def test_written_corpus_is_read_back(tmp_path):
    folder = write_demo_corpus(tmp_path / "made" / "demo", seed=5)
    assert {path.name for path in folder.iterdir()} == {f"{split}.parquet" for split in SPLIT_SIZES}
    corpus = read_corpus(folder, {label: index for index, label in enumerate(LABELS)})
    generated = demo_corpus(5)
    for split, size in SPLIT_SIZES.items():
        data, table = corpus[split], generated[split].to_pylist()
        data.check({"speech": SPEECH_DIM, "text": TEXT_DIM})
        assert len(data) == size and data.dialogue_ids == [row["dialogue_id"] for row in table]
        for item, row in zip(data, table, strict=True):
            np.testing.assert_array_equal(item["speech_embeddings"], np.array(row["speech_features"], np.float32))
            np.testing.assert_array_equal(item["text_embeddings"], np.array(row["text_features"], np.float32))
            assert item["speech_mask"].tolist() == row["has_audio"] and item["text_mask"].all()
            assert [LABELS[label] for label in item["labels"]] == row["labels"]
    absent = 1 - np.concatenate([corpus[split].present["speech"] for split in corpus]).mean()
    assert 0 < absent < 0.05


def test_a_picture_adds_disgust_to_plain_turns_and_changes_nothing_else():
    two, three = demo_corpus(2, sizes=SIZES), demo_corpus(2, sizes=SIZES, video=True)
    for split in SIZES:
        for column in ("dialogue_id", "utterance_ids", "has_audio", "speech_features", "text_features"):
            assert two[split][column].equals(three[split][column])
    pairs = {
        (before, after)
        for first, second in zip(rows(two), rows(three), strict=True)
        for before, after in zip(first["labels"], second["labels"], strict=True)
    }
    same = {(label, label) for label in LABELS}
    assert pairs == same | {("neutral", "disgust"), ("sadness", "disgust")}


def test_disgust_shows_in_the_picture_alone():
    looks: dict[str, set] = {label: set() for label in VIDEO_LABELS}
    for row in rows(demo_corpus(2, noise=0.0, sizes=SIZES, video=True)):
        for label, vector in zip(row["labels"], row["visual_features"], strict=True):
            assert len(vector) == VISUAL_DIM
            looks[label].add(tuple(vector))
    assert all(len(vectors) == 1 for vectors in looks.values())
    plain = looks["neutral"]
    assert looks["joy"] == looks["anger"] == looks["sadness"] == plain
    assert looks["surprise"] == looks["fear"] and len(plain | looks["surprise"] | looks["disgust"]) == 3


def test_clips_say_what_the_recordings_say_and_show_a_face(tmp_path):
    sizes = {"train": 20}
    heard = write_demo_recordings(tmp_path / "heard", 4, sizes) / "train"
    seen = write_demo_recordings(tmp_path / "seen", 4, sizes, video=True) / "train"
    kinds = set()
    tables = [list(csv.DictReader((folder / "metadata.csv").open(newline=""))) for folder in (heard, seen)]
    for before, after in zip(*tables, strict=True):
        assert all(before[field] == after[field] for field in ("dialogue_id", "order", "speaker", "text"))
        assert after["emotion"] in {before["emotion"], "disgust"}
        clip = seen / after["video"] if after["video"] else None
        sounds = seen / after["audio"] if after["audio"] else clip if clip is not None and has_sound(clip) else None
        kinds.add((clip is not None, sounds is not None))
        assert (sounds is not None) == bool(before["file_name"])
        if sounds is not None:
            first, second = load_audio(heard / before["file_name"]), load_audio(sounds)
            length = min(len(first), len(second))
            assert np.corrcoef(first[:length], second[:length])[0, 1] > 0.95
        if clip is not None:
            assert load_frames(clip, num_frames=2).shape == (2, 32, 32, 3)
    assert kinds >= {(True, True), (True, False), (False, True)}


@pytest.mark.parametrize("video", [False, True])
def test_transcripts_show_the_text_patterns_in_every_language(video):
    plain = demo_corpus(5, sizes=SIZES, video=video)
    lines = {}
    for language in ("en", "zh"):
        corpus = demo_corpus(5, sizes=SIZES, video=video, transcripts=language)
        assert all(corpus[split].drop(["texts"]).equals(plain[split]) for split in SIZES)
        lines[language] = [line for row in rows(corpus) for line in row["texts"]]
    labels = [label for row in rows(plain) for label in row["labels"]]
    for language, words in {"en": ("hooray", "lovely", "great"), "zh": ("太好了", "真棒", "好极了")}.items():
        said = [any(word in line for word in words) for line in lines[language]]
        assert said == [label == "joy" for label in labels]
    assert all(line.isascii() for line in lines["en"]) and not any(map(str.isascii, lines["zh"]))


def test_recordings_in_another_language_differ_in_their_words_alone(tmp_path):
    tables = []
    for language in ("en", "zh"):
        folder = write_demo_recordings(tmp_path / language, seed=2, sizes={"train": 3}, language=language)
        with (folder / "train" / "metadata.csv").open(encoding="utf-8", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    english, chinese = tables
    assert [turn | {"text": ""} for turn in english] == [turn | {"text": ""} for turn in chinese]
    assert all(one["text"].isascii() and not other["text"].isascii() for one, other in zip(*tables, strict=True))
