"""What every builder of a corpus must satisfy; its test file subclasses `CorpusContract` and adds what is specific."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
import soundfile

from mister_e_hf import load_audio
from mister_e_hf.corpora.builder import CorpusBuilder
from mister_e_hf.corpora.licences import PUBLISHED
from mister_e_hf.corpora.provenance import Provenance
from mister_e_hf.corpora.schema import SPLITS, dialogue_features
from mister_e_hf.media.audio import AudioError
from support.small_corpora import noise

RATE = 16_000
MOST_SECONDS = 3.0  # max_seconds of the checks


# Reading a corpus


def build_corpus(
    builder: type[CorpusBuilder], folder: Path | None, cache: Path, num_proc: int | None = None, **settings
) -> datasets.DatasetDict:
    made = builder(folder, cache_dir=str(cache), **settings)
    made.download_and_prepare(num_proc=num_proc)
    return made.as_dataset()


def rows(corpus: datasets.DatasetDict) -> dict[str, list[dict]]:
    """Turns by dialogue, the emotion as a name."""
    name = next(iter(corpus.values())).features["utterances"].feature["emotion"].int2str
    return {
        row["dialogue_id"]: [
            turn | {"emotion": None if turn["emotion"] is None else name(turn["emotion"])}
            for turn in row["utterances"]
        ]
        for data in corpus.values()
        for row in data
    }


def turns(corpus: datasets.DatasetDict) -> dict[str, dict]:
    """Turns by id."""
    return {turn["utterance_id"]: turn for dialogue in rows(corpus).values() for turn in dialogue}


def members(corpus: datasets.DatasetDict) -> dict[str, set[str]]:
    """Ids of the dialogues of each split."""
    return {split: set(data["dialogue_id"]) for split, data in corpus.items()}


def warnings(caplog) -> list[str]:
    """Warnings of this package, in order, but for that of a small corpus's difference from the published counts."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("mister_e_hf")
        and record.levelno >= logging.WARNING
        and "published are" not in record.getMessage()
    ]


# Files


def write_audio(path: Path, seconds: float):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed=len(path.name)), RATE)


def change_text(path: Path, old: str, new: str):
    """Change a text file, but neither its size nor its times, as some ways of copying do."""
    state = path.stat()
    content = path.read_bytes()
    assert len(old) == len(new) and old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode()))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def empty(path: Path):
    path.write_bytes(b"")


def not_audio(path: Path):
    path.write_bytes(np.random.default_rng(0).bytes(2000))


def silent(path: Path):
    """As many bytes as before."""
    soundfile.write(path, np.zeros(soundfile.info(path).frames), RATE)


def not_finite(path: Path):
    soundfile.write(path, np.array([0.1, np.nan, 0.2]), RATE, subtype="FLOAT")


def truncated(path: Path):
    write_audio(path, 2.0)
    path.write_bytes(path.read_bytes()[:20_000])


def too_long(path: Path):
    write_audio(path, MOST_SECONDS + 1)


# Ways in which an audio file cannot be used, and what the error says.
DAMAGES = {
    Path.unlink: "not found",
    empty: "is empty",
    not_audio: "is corrupt",
    silent: "is silent",
    not_finite: "NaN",
    truncated: "is cut off",
    too_long: f"at most {MOST_SECONDS:g} s are taken",
}


class CorpusContract:
    """
    Attributes:
        builder: the builder's class.
        labels: its classes in order.
        splits: ids of the dialogues of the small corpus, by split.
        counts: published dialogues and labelled turns of each split; empty for a corpus that is not published.
        turn: id of a turn of the small corpus whose audio is a WAV file of its own.
        text: a text file of the small corpus, a text in it and another of the same size: the transcript of `turn`.
        totals: published labelled turns of each split, where those of dialogues are not published; of "all" together.
        vectors: the modalities whose vectors the layout holds.
        other_settings: settings under which the builder reads another corpus from the same files.
    """

    builder: ClassVar[type[CorpusBuilder]]
    labels: ClassVar[list[str]]
    splits: ClassVar[dict[str, list[str]]]
    counts: ClassVar[dict[str, tuple[int, int]]] = {}
    totals: ClassVar[dict[str, int]] = {}
    vectors: ClassVar[tuple[str, ...]] = ()
    turn: ClassVar[str]
    text: ClassVar[tuple[str, str, str]]
    other_settings: ClassVar[dict[str, Any]] = {"max_seconds": 599.0}

    def write(self, folder: Path) -> Path:
        """Write the small corpus, all of whose audio can be used, into a new folder; returns the `data_dir`."""
        raise NotImplementedError

    def audio_file(self, folder: Path) -> Path:
        """The audio file of `turn`."""
        raise NotImplementedError

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        return self.write(tmp_path / "small")

    @pytest.fixture
    def read(self, folder, tmp_path):
        def read(place: Path = folder, num_proc: int | None = None, **settings) -> datasets.DatasetDict:
            settings = {"bad_audio": "error", "max_seconds": MOST_SECONDS} | settings
            return build_corpus(self.builder, place, tmp_path / "cache", num_proc, **settings)

        return read

    def cached(self, tmp_path: Path) -> dict[Path, tuple[int, int]]:
        files = (tmp_path / "cache").rglob("*.arrow")
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}

    # What is read

    def test_splits_features_and_turns(self, read, caplog):
        corpus = read()
        assert list(corpus) == [split for split in SPLITS if split in self.splits]
        assert {split: data["dialogue_id"][:] for split, data in corpus.items()} == self.splits
        for data in corpus.values():
            fields = self.builder.scores, self.builder.other_labels
            assert data.features == dialogue_features(self.labels, *fields, self.vectors)
        found = [turn for dialogue in rows(corpus).values() for turn in dialogue]
        assert {turn["emotion"] for turn in found} <= {None, *self.labels}
        assert any(turn["audio"] for turn in found) != bool(self.vectors)
        for dialogue in rows(corpus).values():
            assert len({turn["utterance_id"] for turn in dialogue}) == len(dialogue)
        for turn in found:
            assert turn["text"] is None or turn["text"] == turn["text"].strip() != ""
            assert (turn["duration"] is None) == (turn["audio"] is turn["video"] is None)
            if turn["audio"] is not None:
                samples = load_audio(turn["audio"], start=turn["start"], end=turn["end"])
                assert turn["duration"] == len(samples) / RATE
        assert warnings(caplog) == []

    def test_turn_refers_to_its_audio_file(self, read, folder):
        turn = turns(read())[self.turn]
        assert turn["audio"] == {"bytes": None, "path": str(self.audio_file(folder))} and turn["video"] is None
        assert (turn["start"], turn["end"]) == (None, None)

    def test_relative_folder_is_read(self, read, folder, monkeypatch):
        monkeypatch.chdir(folder.parent)
        assert turns(read(Path(folder.name)))[self.turn]["audio"]["path"] == str(self.audio_file(folder))

    def test_streaming_gives_the_same_rows(self, read, folder, tmp_path):
        corpus = read()
        streamed = self.builder(folder, cache_dir=str(tmp_path / "other"), bad_audio="error").as_streaming_dataset()
        for split, data in corpus.items():
            assert list(streamed[split]) == data.to_list() == list(data.to_iterable_dataset())

    def test_processes_give_the_same_rows(self, read, folder, tmp_path):
        alone = read()
        shared = build_corpus(self.builder, folder, tmp_path / "other", 2, bad_audio="error", max_seconds=MOST_SECONDS)
        assert [data.to_list() for data in shared.values()] == [data.to_list() for data in alone.values()]

    # What the corpus says of itself

    def test_info_names_the_corpus(self, read):
        published = PUBLISHED.get(self.builder.__module__.rpartition(".")[2])
        for data in read().values():
            origin = Provenance.of(data.info)
            assert origin.corpus == self.builder.__module__.rpartition(".")[2] and str(data.info.version) == "1.0.0"
            if published is not None:  # a small corpus is a part at most
                assert origin.name in (f"part of {published.title}", f"changed {published.title}")
                assert (origin.license, origin.citation) == (published.terms, published.citation)
                assert origin.homepage == published.homepage and data.info.description == published.description

    def test_published_counts(self, folder, tmp_path):
        builder = self.builder(folder, cache_dir=str(tmp_path / "cache"))
        counts = builder.published_counts()
        sizes = {split: (len(dialogues), sum(dialogues.values())) for split, dialogues in counts.items()}
        assert sizes == self.counts and builder.published_turns() == self.totals
        if self.counts:
            published = PUBLISHED[self.builder.__module__.rpartition(".")[2]]
            assert self.counts["test"][1] == published.test_turns[frozenset(self.labels)]

    def test_difference_from_the_published_counts_is_reported(self, read, caplog):
        read()
        reported = [message for message in caplog.messages if "published are" in message]
        assert [message.partition(":")[0] for message in reported] == [
            f"{self.builder.title} {split}" for split in [*self.counts, *self.totals]
        ]

    # Audio that cannot be used

    @pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
    def test_unusable_audio_raises(self, read, folder, damage):
        path = self.audio_file(folder)
        damage(path)
        with pytest.raises(AudioError, match=DAMAGES[damage]) as caught:
            read()
        assert str(caught.value).startswith(f"{self.builder.title}, turn {self.turn}: ")
        # An audio file that does not exist may be named with another suffix.
        assert f"'{path.with_suffix('')}" in str(caught.value) and "bad_audio='missing'" in str(caught.value)
        write_audio(path, 0.5)
        assert turns(read())[self.turn]["duration"] == 0.5

    def test_unusable_audio_raises_the_same_error_from_another_process(self, read, folder):
        silent(self.audio_file(folder))
        messages = []
        for num_proc in (None, 2):
            with pytest.raises(AudioError, match="is silent") as caught:
                read(num_proc=num_proc)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]

    @pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
    def test_turns_with_unusable_audio_are_kept_if_asked(self, read, folder, caplog, damage):
        whole = turns(read())
        caplog.clear()
        path = self.audio_file(folder)
        damage(path)
        found = turns(read(bad_audio="missing"))
        assert found == whole | {self.turn: whole[self.turn] | {"audio": None, "duration": None}}
        (message,) = warnings(caplog)
        assert message.startswith(f"{self.builder.title}: 1 turns have no usable audio and are kept without it: ")
        assert f"'{path.with_suffix('')}" in message and DAMAGES[damage] in message
        with pytest.raises(AudioError):  # what was read leniently does not serve a strict reader
            read()

    # The cache

    def test_unchanged_folder_is_served_from_the_cache(self, read, folder, tmp_path):
        first = read()
        before = self.cached(tmp_path)
        assert len(before) == len(self.splits)
        (folder / "unrelated.md").write_text("nothing of the corpus")
        assert rows(read(folder / ".." / folder.name)) == rows(first) and self.cached(tmp_path) == before
        read(**self.other_settings)
        assert before.items() < self.cached(tmp_path).items()

    def test_changed_text_of_the_same_size_and_time_is_read_again(self, read, folder):
        name, old, new = self.text
        before = turns(read())[self.turn]["text"]
        change_text(folder / name, old, new)
        assert turns(read())[self.turn]["text"] == before.replace(old, new) != before

    def test_changed_audio_is_read_again(self, read, folder):
        read()
        path = self.audio_file(folder)
        size = path.stat().st_size
        silent(path)
        assert path.stat().st_size == size
        with pytest.raises(AudioError, match="is silent"):
            read()
        path.unlink()
        assert turns(read(bad_audio="missing"))[self.turn]["audio"] is None
        write_audio(path, 0.75)
        assert turns(read(bad_audio="missing"))[self.turn]["duration"] == 0.75

    def test_moved_folder_refers_to_its_own_audio(self, read, folder, tmp_path):
        read()
        moved = Path(shutil.move(folder, tmp_path / "moved"))  # sizes and times stay
        for turn in turns(read(moved)).values():
            assert turn["audio"] is None or Path(turn["audio"]["path"]).is_relative_to(moved)

    # Arguments

    def test_missing_and_wrong_folders_raise(self, read, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "README.md").write_text("nothing")
        for place, message in {
            "nowhere": f"{self.builder.title}: '.*nowhere' does not exist",
            "other": "'.*other'",
        }.items():
            with pytest.raises(FileNotFoundError, match=message):
                read(tmp_path / place)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"bad_audio": "skip"}, "bad_audio must be 'error' or 'missing', got 'skip'"),
            ({"bad_video": "skip"}, "bad_video must be 'error' or 'missing', got 'skip'"),
            ({"max_seconds": 0}, "max_seconds must be above 0, got 0"),
            ({"max_seconds": -1.0}, "max_seconds must be above 0, got -1.0"),
            ({"max_seconds": float("nan")}, "max_seconds must be above 0, got nan"),
        ],
    )
    def test_wrong_settings_raise(self, read, settings, message):
        with pytest.raises(ValueError, match=message):
            read(**settings)

    def test_unknown_setting_raises(self, folder):
        with pytest.raises((ValueError, TypeError), match="quality"):
            self.builder(folder, quality="high")


class LayoutContract(CorpusContract):
    """The checks for a layout whose turns have no audio file of their own: features, or parts of long recordings."""

    test_turn_refers_to_its_audio_file = None
    test_relative_folder_is_read = None
    test_unusable_audio_raises = None
    test_unusable_audio_raises_the_same_error_from_another_process = None
    test_turns_with_unusable_audio_are_kept_if_asked = None
    test_changed_audio_is_read_again = None

    def test_relative_folder_gives_the_same_rows(self, read, folder, monkeypatch):
        whole = read()
        monkeypatch.chdir(folder.parent)
        assert [data.to_list() for data in read(Path(folder.name)).values()] == [
            data.to_list() for data in whole.values()
        ]
