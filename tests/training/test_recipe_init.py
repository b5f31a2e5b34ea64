"""`mister-e init` writes a recipe that trains on a corpus as it is."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModel

from mister_e_hf import read_corpus, write_vectors
from mister_e_hf.cli import main
from mister_e_hf.training.demo import write_demo_backbones
from support.small_encoders import LABELS, write_lines

SIZES = {"train": 6, "validation": 2, "test": 2}
QUICK = ["--use_cpu", "--disable_tqdm", "--num_train_epochs", "1"]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    write_lines(folder / "lines", SIZES)
    write_demo_backbones(folder / "made", folder / "lines" / "metadata.csv")
    return folder / "made"


@pytest.fixture
def make(tmp_path, monkeypatch, own_cache):
    monkeypatch.chdir(tmp_path)

    def make(without: set[str] = frozenset(), sizes: dict[str, int] = SIZES) -> Path:
        """A corpus folder of lines, some columns left out."""
        table = write_lines(tmp_path / "calls", sizes) / "metadata.csv"
        with table.open(newline="") as file:
            rows = [{key: value for key, value in row.items() if key not in without} for row in csv.DictReader(file)]
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        words = ["--data_dir", "calls", "--out", "corpora/calls", "--cache_dir", str(tmp_path / "cache")]
        assert main(["corpus", "folder", *words]) == 0
        return Path("corpora/calls")

    return make


def train(recipe: str, backbones: Path, modalities: list[str]) -> Path:
    words = []
    for name in modalities:
        words += [
            f"--{name}_encoder.backbone",
            str(backbones / name),
            f"--{name}_encoder.training.num_train_epochs",
            "1",
        ]
        words += [f"--{name}_encoder.training.use_cpu", f"--{name}_encoder.training.disable_tqdm"]
    assert main(["train", recipe, *QUICK, *words]) == 0
    return Path("runs") / Path(recipe).stem


KINDS = {"both": (set(), ["speech", "text"]), "text": ({"file_name"}, ["text"]), "audio": ({"text"}, ["speech"])}


@pytest.mark.parametrize(("without", "modalities"), KINDS.values(), ids=KINDS)
def test_written_recipe_trains_on_the_corpus(make, backbones, capsys, without, modalities):
    corpus = make(without)
    assert main(["init", str(corpus)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("in calls.yaml; next: mister-e train calls.yaml\n") and ", ".join(LABELS) in printed
    sections = yaml.safe_load(Path("calls.yaml").read_text())
    assert sections["corpus"] == {"path": "corpora/calls", "labels": LABELS}
    assert [name for name in ("speech", "text") if f"{name}_encoder" in sections] == modalities
    assert sections["model"].get("experts") == (modalities if len(modalities) == 1 else None)
    run = train("calls.yaml", backbones, modalities)
    config = AutoModel.from_pretrained(run).config
    assert list(config.id2label.values()) == LABELS
    assert config.experts == ([*modalities, "fusion"] if len(modalities) == 2 else modalities)
    assert "# MiSTER-E, calls" in (run / "README.md").read_text()


@pytest.mark.parametrize("modalities", [["speech", "text"], ["text"], ["speech"]], ids="-".join)
def test_recipe_for_a_corpus_of_vectors_has_no_encoder(make, modalities, capsys):
    corpus = make()
    for split in SIZES:
        table = pq.read_table(corpus / f"{split}.parquet")
        turns = sum(map(len, table["utterances"].to_pylist()))
        widths = {f"{name}_features": torch.randn(turns, 3 + len(name)) for name in modalities}
        write_vectors("vectors", split, table, **widths)
    capsys.readouterr()
    assert main(["init", "vectors", "--out", "mine.yaml", "--json"]) == 0
    expected = {name: f"vectors of width {3 + len(name)}" for name in modalities}
    assert json.loads(capsys.readouterr().out) == {"labels": LABELS, **expected, "recipe": "mine.yaml"}
    run = train("mine.yaml", Path(), [])
    config = AutoModel.from_pretrained(run).config
    widths = {name: column.width for name, column in read_corpus("vectors")["train"].vectors.items()}
    assert {name: getattr(config, f"{name}_embedding_dim") for name in modalities} == widths


def test_unusable_corpora_raise_and_nothing_is_written(make, capsys):
    corpus = make(sizes={"train": 3})
    (corpus / "validation.parquet").unlink(missing_ok=True)

    def refused(*words: str) -> str:
        assert main(["init", *words]) == 2
        return capsys.readouterr().err

    capsys.readouterr()
    (Path("corpora") / "calls" / "test.parquet").unlink(missing_ok=True)
    assert "has no split validation, test" in refused("corpora/calls")
    assert "is not a corpus folder" in refused("calls") and "--data_dir calls --out corpora/calls" in refused("calls")
    assert "is not a corpus folder" in refused("calls/metadata.csv")
    assert "No corpus folder at 'nowhere'" in refused("nowhere")
    Path("calls.yaml").write_text("mine")
    assert "'calls.yaml' exists and is not overwritten" in refused("corpora/calls")
    assert Path("calls.yaml").read_text() == "mine" and len(list(Path().glob("*.yaml"))) == 1


def test_an_unlabelled_split_raises(make, capsys):
    corpus = make({"emotion"})
    capsys.readouterr()
    assert main(["init", str(corpus)]) == 2
    assert "label" in capsys.readouterr().err and not Path("calls.yaml").exists()
