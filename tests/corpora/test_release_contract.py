"""The contract of a corpus's builder, for the corpora with scores or several labels, in each of their layouts."""

import os
from pathlib import Path

import numpy as np

from mister_e_hf import Cherma, ChSimsV2, CmuMosei
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.corpora import schema
from support.corpus_contract import CorpusContract, LayoutContract, turns
from support.small_releases import (
    SIMS,
    features_of,
    mosei_clips,
    write_cherma,
    write_cherma_pickles,
    write_mosei_release,
    write_mosei_table,
    write_pickle,
    write_sims,
)


class FeaturesContract(LayoutContract):
    """For a layout of features; `text` is the pickle or list alone."""

    def test_every_modality_has_vectors_of_one_width(self, read):
        for data in read().values():
            for modality in (MODALITIES[name] for name in self.vectors):
                for row in data:
                    vectors = row[modality.features]
                    assert len(vectors) == len(row["utterances"]) == len(row[modality.has])
                    assert row[modality.has] == [vector is not None for vector in vectors]
                    assert len({len(vector) for vector in vectors if vector}) <= 1
                    assert np.isfinite(np.array([vector for vector in vectors if vector])).all()


class PickleContract(FeaturesContract):
    test_changed_text_of_the_same_size_and_time_is_read_again = None  # a pickle is large, and not hashed

    def test_changed_pickle_is_read_again(self, read, folder):
        before = turns(read())[self.turn]["text"]
        path = next(folder.rglob(self.text[0]))
        content = path.read_bytes()
        old, new = (text.encode(self.encoding) for text in self.text[1:])
        assert len(old) == len(new) and old in content
        path.write_bytes(content.replace(old, new))
        os.utime(path, ns=(1, 1))
        assert turns(read())[self.turn]["text"] == before.replace(*self.text[1:]) != before

    encoding = "utf-32-le"  # of arrays of text


class OfMosei:
    builder = CmuMosei
    labels = schema.LABELS["cmu_mosei"]
    splits = {"train": ["-mJ2ud6oKI8", "100178"], "validation": ["x266rUJQC_8"], "test": ["FcAgbLF6__s"]}
    totals = {"train": 16326, "validation": 1871, "test": 4659}
    turn = "100178_3"


class TestCmuMoseiTable(OfMosei, CorpusContract):
    text = ("label.csv", "I liked", "I hated")

    def write(self, folder: Path) -> Path:
        return write_mosei_table(folder)

    def audio_file(self, folder: Path) -> Path:
        return folder / "Raw" / "100178" / "3.wav"


class TestCmuMoseiRelease(OfMosei, LayoutContract):
    totals = {"train": 16327, "validation": 1871, "test": 4662}
    text = ("Raw/Transcript/Segmented/Combined/100178.txt", "I liked", "I hated")

    def write(self, folder: Path) -> Path:
        return write_mosei_release(folder)

    test_published_counts = None  # those of MMSA's layouts are the published test turns


class TestCmuMoseiFeatures(OfMosei, PickleContract):
    vectors = ("speech", "text", "visual")
    text = ("unaligned_50.pkl", "I liked", "I hated")

    def write(self, folder: Path) -> Path:
        write_pickle(folder / "Processed" / "unaligned_50.pkl", features_of(mosei_clips()))
        return folder


class OfSims:
    builder = ChSimsV2
    labels = schema.LABELS["ch_sims_v2"]
    splits = {"train": ["aqgy3_0001", "video_0001"], "validation": ["video_0002"], "test": ["test1"]}
    totals = {"train": 2722, "validation": 647, "test": 1034}
    turn = "video_0001_0001"


class TestChSimsV2Table(OfSims, CorpusContract):
    text = ("meta.csv", "太好了", "太坏了")

    def write(self, folder: Path) -> Path:
        return write_sims(folder)

    def audio_file(self, folder: Path) -> Path:
        return folder / "Raw" / "video_0001" / "0001.wav"


class TestChSimsV2Features(OfSims, PickleContract):
    vectors = ("speech", "text", "visual")
    text = ("ch-simsv2s.pkl", "太好了", "太坏了")

    def write(self, folder: Path) -> Path:
        write_pickle(folder / "ch-simsv2s.pkl", features_of(SIMS))
        return folder


class TestChermaLists(FeaturesContract):
    builder = Cherma
    labels = schema.LABELS["cherma"]
    splits = {"train": ["film1_2", "film1_10", "film2_1"], "validation": ["film2_2"], "test": ["film3_1"]}
    totals = {"all": 28717}
    vectors = ("speech", "text", "visual")
    turn = "film2_1"
    other_settings = {"group_pattern": r"(?P<dialogue>film\d)_(?P<order>\d+)"}
    test_changed_text_of_the_same_size_and_time_is_read_again = None  # the lists have no text

    def write(self, folder: Path) -> Path:
        return write_cherma(folder)


class TestChermaPickles(PickleContract):
    builder = Cherma
    labels = schema.LABELS["cherma"]
    splits = {
        "train": ["train_00000", "train_00001"],
        "validation": ["validation_00000", "validation_00001"],
        "test": ["test_00000", "test_00001"],
    }
    totals = {"all": 28717}
    vectors = ("speech", "visual")
    turn = "train_00001"
    text = ("cherma_train.pkl", "第1句", "第9句")
    encoding = "utf-8"

    def write(self, folder: Path) -> Path:
        return write_cherma_pickles(folder)
