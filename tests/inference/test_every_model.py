"""The pipeline, its files, plot, web app, doctor and push work for every registered model, with heads or none."""

import csv
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import pipeline

from mister_e_hf import cli
from mister_e_hf.base.modalities import MODALITIES, TASK
from mister_e_hf.base.part_weights import ANSWERED_WEIGHTS
from mister_e_hf.hub.checkpoint import checkpoint_files, pushed_contents, save_checkpoint
from mister_e_hf.inference.doctor import examine
from mister_e_hf.inference.serve import emotions
from mister_e_hf.inference.timeline import timeline_figure
from mister_e_hf.models.registry import models_taking, registered
from support.model_contract import LABELS, small_model
from support.toy_model import registered_toy

NAMES = [entry.name for entry in registered()]
MANY = [[{"text": "so well"}, {}, {"text": "grr"}], [{"text": "hooray"}]]


def write(name: str, folder: Path, encoder: Path, **changes) -> Path:
    return save_checkpoint(folder, small_model(name, torch.float32, **changes), {}, encoders={"text": encoder})


def scores_of(dialogue: list[dict]) -> list[list[float]]:
    return [[turn["scores"][label] for label in LABELS.values()] for turn in dialogue]


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_answers_with_the_model_s_heads(name, tmp_path, text_encoder):
    erc = pipeline(TASK, model=write(name, tmp_path / "c", text_encoder))
    config = erc.model.config
    found = erc(MANY, batch_size=2)
    for dialogue, turns in zip(found, MANY, strict=True):
        torch.testing.assert_close(scores_of(dialogue), scores_of(erc(turns)), rtol=0, atol=1e-5)
        for turn in dialogue:
            assert turn["label"] in LABELS.values() and abs(sum(turn["scores"].values()) - 1) < 1e-6
            assert list(turn.get("experts", ())) == list(config.heads)
            weighed = list(config.fusion_experts or config.heads)
            assert list(turn.get("gate", weighed)) == weighed
            assert list(turn.get("modality_gate", ())) == list(config.weighed_modalities)
            assert list(turn.get("capsules", ())) == list(config.capsules)
    if config.capsules:  # the model reads text alone here, as far as the turns have any
        (said, silent, _), _ = found
        assert said["capsules"] == {"speech": 0, "text": 1, "speech+text": 0} and set(silent["capsules"].values()) == {
            0
        }
    assert f"heads={list(config.heads)!r}" in repr(erc)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("name", models_taking("visual"))
def test_three_modalities_in_both_tasks(name, task, tmp_path, text_encoder):
    changes = {"modalities": [*MODALITIES], "problem_type": "regression" if task == "regression" else None}
    erc = pipeline(TASK, model=write(name, tmp_path / "c", text_encoder, **changes))
    seen, heard = [0.5, 1.0, -1.0], [0.1, 0.2, 0.3, 0.4, 0.5]
    turns = [
        {"text": "so well", "visual_embedding": seen},
        {"speech_embedding": heard},
        {},
        {"visual_embedding": seen},
    ]
    found = erc([turns, turns[3:]], batch_size=2)
    torch.testing.assert_close(scores_of(found[0]), scores_of(erc(turns)), rtol=0, atol=1e-5)
    encoder, processor = erc._encoders.encoder("text")
    inputs = {
        each.embeddings: torch.zeros(1, 4, getattr(erc.model.config, each.width)) for each in MODALITIES.values()
    }
    inputs["visual_embeddings"][0, [0, 3]] = torch.tensor(seen)
    inputs["speech_embeddings"][0, 1] = torch.tensor(heard)
    inputs["visual_mask"] = torch.tensor([[True, False, False, True]])
    inputs["speech_mask"] = torch.tensor([[False, True, False, False]])
    inputs["text_mask"] = torch.tensor([[True, False, False, False]])
    with torch.no_grad():
        inputs["text_embeddings"][0, 0] = encoder(**processor(["so well"])).embeddings[0]
        if erc.model.config.reads_transcripts:
            inputs["transcripts"] = [["so well", None, None, None]]
        logits = erc.model(**inputs).logits[0].double()
    expected = logits if task == "regression" else logits.softmax(-1)
    torch.testing.assert_close(scores_of(found[0]), expected.tolist(), rtol=0, atol=1e-5)
    card = ModelCard.load(tmp_path / "c" / "README.md")
    assert "visual_embeddings=visual_embeddings" in card.text
    assert all(good for good, _ in examine(tmp_path / "c"))


@pytest.mark.parametrize("name", NAMES)
def test_predict_plot_serve_and_doctor(name, tmp_path, text_encoder, capsys):
    folder = write(name, tmp_path / "c", text_encoder)
    (tmp_path / "call.txt").write_text("so well\ngrr\n")
    for ending in ("jsonl", "csv"):
        words = ["predict", tmp_path / "call.txt", "--model", folder, "--out", tmp_path / f"call.{ending}"]
        assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "call.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["so well", "grr"]
    assert cli.main(["plot", str(tmp_path / "call.jsonl")]) == 0 and (tmp_path / "call.png").is_file()
    weights = [kind for kind in ANSWERED_WEIGHTS if kind.answer in lines[0]]
    assert [axes.get_ylabel().replace("\n", " ") for axes in timeline_figure(lines).axes] == [
        "probability",
        *(kind.title for kind in weights),
    ]
    rows, answer = emotions(pipeline(TASK, model=folder), [["so well", "", "", ""]], [])
    assert rows[0][0] == "so well"
    for kind in ANSWERED_WEIGHTS:
        assert (f" and of the {kind.title}s" in answer) == (kind in weights)
        for part in lines[0].get(kind.answer, ()):
            assert f'<th scope="col">{kind.title} of {part}</th>' in answer
    with (tmp_path / "call.csv").open(newline="") as file:
        for row, line in zip(csv.DictReader(file), lines, strict=True):
            found = {name: float(cell) for name, cell in row.items() if " weight of " in name}
            assert found == {f"{kind.title} of {part}": w for kind in weights for part, w in line[kind.answer].items()}
    findings = list(examine(folder))
    assert all(good for good, _ in findings), findings


@pytest.mark.parametrize("name", NAMES)
def test_only_a_model_that_streams_streams(name, tmp_path, text_encoder):
    erc = pipeline(TASK, model=write(name, tmp_path / "c", text_encoder))
    with pytest.raises(
        ValueError, match=rf"'{erc.model.config.model_type}' does not stream.*pass whole dialogues"
    ) as e:
        erc.stream()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", NAMES)
def test_card_and_push_state_the_model(name, tmp_path, text_encoder):
    folder = write(name, tmp_path / "c", text_encoder)
    card = ModelCard.load(folder / "README.md")
    model = small_model(name)
    assert f"# {model.title}, " in card.text and model.method in card.text
    assert ("## Citation" in card.text) == bool(model.citation) and set(model.tags) <= set(card.data.tags)
    assert {"config.json", "model.safetensors", "text_encoder/config.json"} <= set(pushed_contents(folder))


def test_a_model_of_three_modalities_that_reads_transcripts(tmp_path, text_encoder):
    with registered_toy():
        folder = write("toy", tmp_path / "c", text_encoder)
        erc = pipeline(TASK, model=folder)
        turns = [{"text": "so well", "visual_embedding": [0.5, 1.0, -1.0]}, {"speech_embedding": [0.1] * 5}]
        found = erc([turns, turns[:1]], batch_size=2)
        assert list(found[0][0]["experts"]) == list(found[0][0]["gate"]) == list(MODALITIES)
        torch.testing.assert_close(scores_of(found[0]), scores_of(erc(turns)), rtol=0, atol=1e-5)
        with torch.no_grad():
            vector = erc._encoders.encoder("text")[0](**erc._encoders.encoder("text")[1](["so well"])).embeddings
            present = torch.tensor([[True, False]])
            output = erc.model(
                speech_embeddings=torch.full((1, 2, 5), 0.1),
                speech_mask=~present,
                text_embeddings=vector[None].expand(1, 2, -1),
                text_mask=present,
                visual_embeddings=torch.tensor([[[0.5, 1.0, -1.0]] * 2]),
                visual_mask=present,
                transcripts=[["so well", None]],
            )
        expected = output.logits[0].double().softmax(-1).tolist()
        torch.testing.assert_close(scores_of(found[0]), expected, rtol=0, atol=1e-5)
        # without the vectors, the transcript alone changes the answer
        without = [[{"text_embedding": [0.0] * 4, "text": text}] for text in ("well", "a long text")]
        assert scores_of(erc(without[0])) != scores_of(erc(without[1]))
        with pytest.raises(ValueError, match=r"turn 0: visual_embedding must have shape \(3,\), got \(2,\)"):
            erc([{"visual_embedding": [1.0, 2.0]}])
        assert all(good for good, _ in examine(folder))


def test_a_push_sends_what_the_model_declares(tmp_path, text_encoder):
    with registered_toy():
        folder = write("toy", tmp_path / "c", text_encoder)
        (folder / "vocabulary").mkdir()
        for name in ("words.txt", "secret.bin"):
            (folder / "vocabulary" / name).write_text("a")
        assert "vocabulary/words.txt" in checkpoint_files(folder)
        assert not [name for name in checkpoint_files(folder) if name.endswith(".bin")]


def test_sub_folders_that_a_model_writes_are_replaced_whole(tmp_path, monkeypatch):
    model = small_model("bc_lstm", torch.float32)
    save = type(model).save_pretrained

    def with_adapter(self, folder, *args, **kwargs):
        save(self, folder, *args, **kwargs)
        (Path(folder) / "language_model" / "adapter").mkdir(parents=True)
        (Path(folder) / "language_model" / "adapter" / "adapter_model.safetensors").write_text(version)

    monkeypatch.setattr(type(model), "save_pretrained", with_adapter)
    monkeypatch.setattr(type(model), "checkpoint_files", ("language_model/adapter/*.safetensors",))
    for version in ("1", "2"):
        folder = save_checkpoint(tmp_path / "c", model)
        assert (folder / "language_model" / "adapter" / "adapter_model.safetensors").read_text() == version
        (folder / "language_model" / "old.txt").write_text("from an older save")
    save_checkpoint(tmp_path / "c", model)
    assert not (folder / "language_model" / "old.txt").exists()
    assert "language_model/adapter/adapter_model.safetensors" in checkpoint_files(folder)


def test_predict_of_a_checkpoint_without_encoders_says_so(tmp_path, capsys):
    folder = save_checkpoint(tmp_path / "bare", small_model("bc_lstm", torch.float32), {})
    (tmp_path / "call.txt").write_text("so well\n")
    assert cli.main(["predict", str(tmp_path / "call.txt"), "--model", str(folder)]) == 2
    assert "has no encoders, so it takes vectors" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["../*.json", "/etc/*.txt", "adapter/*.pkl", "*", "**/*.json"])
def test_declared_files_are_safe_and_below_the_folder(pattern, tmp_path, monkeypatch):
    with registered_toy() as toy:
        folder = save_checkpoint(tmp_path / "c", small_model("toy", torch.float32), {})
        monkeypatch.setattr(toy.model_class(), "checkpoint_files", (pattern,))
        with pytest.raises(ValueError, match="expected a pattern below the folder"):
            checkpoint_files(folder)
