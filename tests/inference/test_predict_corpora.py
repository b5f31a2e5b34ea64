"""`mister-e predict` on finished corpora, of vectors and of dialogues, and on video that a model does not read."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mister_e_hf import cli, read_corpus
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.hub.checkpoint import save_checkpoint
from mister_e_hf.inference.doctor import examine
from mister_e_hf.models.registry import registered
from mister_e_hf.vectors.store import write_vectors
from support.model_contract import small_config, small_model
from support.small_checkpoint import write_checkpoint
from support.small_videos import clip
from support.vector_tables import LENGTHS, TURNS, bare_table, cut

NAMES = [entry.name for entry in registered()]
TEXTS = [f"words {number}" for number in range(TURNS)]
SCORES = {"problem_type": "regression", "id2label": {0: "valence", 1: "activation"}}


def write_corpus(folder: Path, name: str = "mult", in_table: bool = False, **widths: int) -> Path:
    """A corpus of vectors that fits a small model: two splits, of which some turns lack text."""
    config = small_config(name)
    for seed, split in enumerate(("train", "test")):
        table = bare_table(split, texts=cut(TEXTS), labels=None)
        has_text = [turn % 3 > 0 for turn in range(TURNS)]
        table = table.append_column("has_text", pa.array(cut(has_text)))
        torch.manual_seed(seed)
        vectors = {
            MODALITIES[key].features: torch.randn(TURNS, width) for key, width in {**config.widths, **widths}.items()
        }
        if in_table:
            folder.mkdir(exist_ok=True)
            kind = pa.list_(pa.list_(pa.float32()))
            for column, rows in vectors.items():
                table = table.append_column(column, pa.array(cut(rows.numpy().tolist()), kind))
            pq.write_table(table, folder / f"{split}.parquet")
        else:
            write_vectors(folder, split, table, **vectors)
    return folder


@pytest.fixture
def predict(capsys):
    def run(*words) -> tuple[int, list[dict], str]:
        capsys.readouterr()
        status = cli.main(["predict", *map(str, words)])
        printed = capsys.readouterr()
        return status, [json.loads(line) for line in printed.out.splitlines() if status == 0], printed.err

    return run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changes", [{}, SCORES], ids=["classes", "scores"])
def test_vectors_of_a_model_without_encoders(name, changes, tmp_path, predict):
    model = small_model(name, torch.float32, **changes)
    save_checkpoint(tmp_path / "model", model)
    corpus = write_corpus(tmp_path / "corpus", name)
    status, lines, errors = predict(corpus, "--model", tmp_path / "model")
    assert status == 0, errors
    config = model.config
    expected = []
    for data in read_corpus(corpus, {}, splits=("train", "test")).values():
        for item in data:
            inputs = {key: item[key][None] for name in config.modalities for key in keys_of(name)}
            texts = {"transcripts": [item["transcripts"]]} if config.reads_transcripts else {}
            with torch.no_grad():
                logits = model.view(model(**inputs, **texts)).logits[0].double()
            expected += (logits if changes else (logits / config.calibration_temperature).softmax(-1)).tolist()
    found = [[line["scores"][label] for label in config.id2label.values()] for line in lines]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert [(line["split"], line["dialogue"], line["turn"]) for line in lines] == [
        (split, f"{split}{number}", turn)
        for split in ("train", "test")
        for number, length in enumerate(LENGTHS)
        for turn in range(length)
    ]
    assert [line["text"] for line in lines] == TEXTS * 2
    assert all(line.get("experts", {}).keys() == set(config.heads) for line in lines)


def keys_of(modality: str) -> tuple[str, str]:
    return MODALITIES[modality].embeddings, MODALITIES[modality].mask


def test_one_table_of_vectors_is_one_split(tmp_path, predict):
    save_checkpoint(tmp_path / "model", small_model("mult", torch.float32))
    of_all = predict(write_corpus(tmp_path / "corpus"), "--model", tmp_path / "model")[1]
    in_table = write_corpus(tmp_path / "in_table", in_table=True)
    for corpus in (tmp_path / "corpus", in_table):
        status, lines, errors = predict(corpus / "test.parquet", "--model", tmp_path / "model")
        assert status == 0, errors
        assert lines == [{key: line[key] for key in line if key != "split"} for line in of_all[TURNS:]]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_of_several_splits_has_a_column_of_them(ending, tmp_path):
    save_checkpoint(tmp_path / "model", small_model("bc_lstm", torch.float32))
    corpus, out = write_corpus(tmp_path / "corpus", "bc_lstm"), tmp_path / f"out.{ending}"
    assert cli.main(["predict", str(corpus), "--model", str(tmp_path / "model"), "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open())) if ending == "csv" else pq.read_table(out).to_pylist()
    assert [row["split"] for row in rows] == ["train"] * TURNS + ["test"] * TURNS
    assert list(rows[0])[:3] == ["dialogue", "split", "turn"]


@pytest.mark.parametrize(
    ("widths", "words", "message"),
    [
        ({"text": 99}, (), "train: text_features of dialogue 'train0' have width 99, but the model expects text_"),
        ({}, ("--transcriber", "org/asr"), "--transcriber is for turns with audio or text, and '.*' holds vectors"),
        ({}, ("--columns", "text=words"), "--columns is for turns with audio or text, and '.*' holds vectors"),
    ],
)
def test_vectors_that_do_not_fit_raise(widths, words, message, tmp_path, predict):
    save_checkpoint(tmp_path / "model", small_model("mult", torch.float32))
    corpus = write_corpus(tmp_path / "corpus", **widths)
    status, _, errors = predict(corpus, "--model", tmp_path / "model", *words)
    assert status == 2
    with pytest.raises(ValueError, match=message):
        raise ValueError(errors)


def test_words_without_a_vector_are_for_the_model_alone_even_beside_an_encoder(tmp_path, text_encoder, predict):
    model, corpus = small_model("egmf", torch.float32), write_corpus(tmp_path / "corpus", "egmf")
    save_checkpoint(tmp_path / "without", model)
    save_checkpoint(tmp_path / "with", model, encoders={"text": text_encoder})
    (one, lines, said), (other, others, _) = (
        predict(corpus, "--model", tmp_path / name, "--quiet") for name in ("without", "with")
    )
    assert (one, other) == (0, 0) and lines == others and "has no text_encoder/" not in said


def test_words_of_a_table_go_to_a_model_that_reads_them(tmp_path, predict):
    save_checkpoint(tmp_path / "model", small_model("egmf", torch.float32))
    (tmp_path / "turns.csv").write_text('text\nhello\nso well\n""\n')
    status, lines, errors = predict(tmp_path / "turns.csv", "--model", tmp_path / "model")
    assert status == 0 and [line.get("text") for line in lines] == ["hello", "so well", None]
    assert errors.count("has no text_encoder/, so the model reads the words of turns with text and without") == 1
    assert "1 of 3 turns have no transcript, which the model reads" in errors
    assert lines[0]["scores"] != lines[1]["scores"]


def test_a_checkpoint_is_not_an_input(tmp_path, predict):
    save_checkpoint(tmp_path / "model", small_model("mult", torch.float32))
    write_corpus(tmp_path / "model" / "vectors")
    status, _, errors = predict(tmp_path / "model", "--model", tmp_path / "model")
    assert status == 2 and "is a checkpoint, which --model takes" in errors
    assert f"its own vectors are in '{tmp_path / 'model' / 'vectors'}'" in errors


def test_shards_of_vectors_are_one_split(tmp_path, predict):
    save_checkpoint(tmp_path / "model", small_model("mult", torch.float32))
    whole = predict(write_corpus(tmp_path / "corpus"), "--model", tmp_path / "model")[1]
    for path in [*(tmp_path / "corpus").iterdir()]:
        path.rename(path.with_stem(f"{path.stem}-00000-of-00001"))
    status, lines, errors = predict(tmp_path / "corpus", "--model", tmp_path / "model")
    assert status == 0 and lines == whole, errors
    status, lines, errors = predict(tmp_path / "corpus" / "test-00000-of-00001.parquet", "--model", tmp_path / "model")
    assert status == 0, errors
    assert lines == [{key: line[key] for key in line if key != "split"} for line in whole[TURNS:]]


def test_a_table_of_turns_for_a_model_without_encoders_raises(tmp_path, predict):
    save_checkpoint(tmp_path / "model", small_model("mult", torch.float32))
    (tmp_path / "turns.csv").write_text("text\nhello\n")
    status, _, errors = predict(tmp_path / "turns.csv", "--model", tmp_path / "model")
    assert status == 2 and "has no encoders, so it takes vectors: a corpus folder or Parquet table with" in errors
    assert "speech_features and text_features" in errors


def test_vectors_that_the_model_does_not_read_are_named(tmp_path, predict, caplog):
    model = small_model("mult", torch.float32)
    save_checkpoint(tmp_path / "model", model)
    corpus = write_corpus(tmp_path / "corpus", visual=3)
    status, _, errors = predict(corpus, "--model", tmp_path / "model")
    assert status == 0, errors
    assert f"The model does not read the visual vectors of '{corpus}'" in caplog.text


def test_vectors_that_the_model_does_not_read_have_any_width(tmp_path, predict):
    save_checkpoint(tmp_path / "model", small_model("bc_lstm", torch.float32, modalities=["speech"]))
    corpus = write_corpus(tmp_path / "corpus", "bc_lstm", text=99)
    status, turns, errors = predict(corpus, "--model", tmp_path / "model")
    assert status == 0 and [turn["split"] for turn in turns] == ["train"] * TURNS + ["test"] * TURNS, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("corpora") / "model")


def test_a_corpus_of_dialogues_gives_what_its_table_gives(whole, tmp_path, predict):
    (tmp_path / "turns.csv").write_text(
        "dialogue_id,order,text,split\n" + "".join(f"{name},0,so {name},{name}\n" for name in ("train", "test"))
    )
    _, of_table, _ = predict(tmp_path / "turns.csv", "--model", whole)
    built = ["corpus", "folder", "--data_dir", tmp_path / "turns.csv", "--out", tmp_path / "corpus"]
    assert cli.main([*map(str, built)]) == 0
    status, lines, errors = predict(tmp_path / "corpus", "--model", whole)
    assert status == 0 and lines == of_table, errors
    assert [(line["split"], line["dialogue"]) for line in lines] == [("train", "train"), ("test", "test")]
    _, of_one, _ = predict(tmp_path / "corpus" / "test.parquet", "--model", whole)
    assert of_one == [{key: lines[1][key] for key in lines[1] if key != "split"}]


def test_a_column_of_video_that_is_not_read_is_named(whole, tmp_path, predict, caplog):
    (tmp_path / "clip.mp4").write_bytes(clip(10))
    (tmp_path / "turns.csv").write_text("text,video\nso,clip.mp4\nyes,clip.mp4\n")
    status, lines, errors = predict(tmp_path / "turns.csv", "--model", whole)
    assert status == 0 and len(lines) == 2, errors
    said = [record.message for record in caplog.records if "does not read video" in record.message]
    assert said == [
        "The model does not read video: the pictures of the column `video` are not used, only its audio where a turn "
        "has no other"
    ]


@pytest.mark.parametrize("command", [("evaluate",), ("predict", "turns.csv", "--model")])
def test_a_folder_of_several_seeds_names_them(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("turns.csv").write_text("text\nso\n")
    for seed in range(2):
        save_checkpoint(f"runs/seed-{seed}", small_model("mult", torch.float32))
    assert cli.main([*command, "runs"]) == 2
    assert "'runs' holds the runs of several seeds, seed-0, seed-1; pass one of them" in capsys.readouterr().err


def test_the_doctor_says_whether_there_are_encoders(whole, tmp_path):
    save_checkpoint(tmp_path / "model", small_model("mult", torch.float32))
    for folder, held in ((tmp_path / "model", "bytes without encoders"), (whole, "bytes with encoders")):
        assert any(text.endswith(held) for _, text in examine(folder))
