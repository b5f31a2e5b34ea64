"""
The contract of a corpus's builder, for every builder. Their own layouts and peculiarities are tested in their own
files.
"""

from pathlib import Path

from mister_e_hf import CmuMosi, DialogueFolder, Iemocap, Meld
from mister_e_hf.corpora import schema
from support.corpus_contract import CorpusContract, write_audio
from support.small_corpora import LABELS, write_calls, write_iemocap, write_meld, write_mosi


class TestIemocap(CorpusContract):
    builder = Iemocap
    labels = schema.LABELS["iemocap-6way"]
    splits = {"train": ["Ses02F_impro02"], "validation": ["Ses01F_impro03"], "test": ["Ses05F_impro01"]}
    counts = {"train": (92, 4437), "validation": (28, 1373), "test": (31, 1623)}
    turn = "Ses02F_impro02_F001"
    text = ("Session2/dialog/transcriptions/Ses02F_impro02.txt", "Turn 1", "Turn 7")
    other_settings = {"validation": "conv-emotion"}

    def write(self, folder: Path) -> Path:
        return write_iemocap(folder)

    def audio_file(self, folder: Path) -> Path:
        return folder / "Session2/sentences/wav/Ses02F_impro02/Ses02F_impro02_F001.wav"


class TestMeld(CorpusContract):
    builder = Meld
    labels = schema.LABELS["meld"]
    splits = {"train": ["train_dia0"], "validation": ["dev_dia0"], "test": ["test_dia0"]}
    counts = {"train": (1038, 9989), "validation": (114, 1109), "test": (280, 2610)}
    turn = "train_dia0_utt1"
    text = ("train_sent_emo.csv", "How are", "Who are")

    def write(self, folder: Path) -> Path:
        write_meld(folder)
        write_audio(folder / "dev_splits_complete" / "dia0_utt1.wav", 0.5)  # the release lacks a clip
        return folder

    def audio_file(self, folder: Path) -> Path:
        return folder / "train_splits" / "dia0_utt1.wav"


class TestCmuMosi(CorpusContract):
    builder = CmuMosi
    labels = schema.LABELS["cmu_mosi"]
    splits = {"train": ["v1"], "validation": ["v2"], "test": ["v3"]}
    counts = {"train": (52, 1284), "validation": (10, 229), "test": (31, 686)}
    turn = "v1_1"
    text = ("label.csv", "Not good", "Not nice")

    def write(self, folder: Path) -> Path:
        return write_mosi(folder)

    def audio_file(self, folder: Path) -> Path:
        return folder / "v1" / "1.wav"


class TestDialogueFolder(CorpusContract):
    builder = DialogueFolder
    labels = ["anger", "joy"]
    splits = {"train": ["a", "b"], "validation": ["c"], "test": ["d/1"]}
    turn = "a_0"
    text = ("metadata.csv", "Good morning", "Good evening")
    other_settings = {"labels": LABELS}

    def write(self, folder: Path) -> Path:
        return write_calls(folder)

    def audio_file(self, folder: Path) -> Path:
        return folder / "a.wav"
