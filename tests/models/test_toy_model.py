"""A user's model of three modalities that reads the transcripts: it works wherever the package's models do."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModel

from mister_e_hf import DialogueCollator, MisterETrainer, MisterETrainingArguments, Recipe, cli
from mister_e_hf.models import registry
from mister_e_hf.models.registry import entry, entry_of, registered
from mister_e_hf.training.dialogue_trainer import DialogueTrainer, DialogueTrainingArguments
from support.distributed_contract import gradient_of_a_step
from support.modality_contract import MODALITY_CHECKS
from support.model_contract import CHECKS, LABELS, WIDTHS, small_batch, small_config, small_model
from support.score_contract import SCORE_CHECKS
from support.toy_model import registered_toy, toy_split, toy_table


@pytest.fixture(autouse=True)
def toy():
    with registered_toy() as found:
        yield found


@pytest.mark.parametrize("check", (*CHECKS, *MODALITY_CHECKS, *SCORE_CHECKS), ids=lambda check: check.__name__)
def test_toy(check, tmp_path):
    check("toy", tmp_path)


def test_a_registered_model_is_known_everywhere(toy, tmp_path):
    assert entry("toy") is toy and registered()[-1] is toy
    config = AutoConfig.for_model("toy", hidden_size=4)
    assert entry_of(config) is toy and config.modalities == ("speech", "text", "visual")
    assert type(AutoModel.from_config(config)) is toy.model_class()


def test_table_and_collator_hand_over_three_modalities_and_the_transcripts():
    data = toy_split("train")
    batch = DialogueCollator(transcripts=True)([data[0], data[1]])
    assert batch["visual_embeddings"].shape == (2, 4, 3)
    assert batch["visual_mask"].tolist() == [[True, False, True, False], [True, False, True, True]]
    assert batch["transcripts"][0] == data.transcripts[0] + [None]
    model = small_model("toy", torch.float32)
    changed = {**batch, "transcripts": [["something else"] * 4] * 2}
    assert not torch.equal(model(**batch).logits, model(**changed).logits)


def arguments(folder: Path, kind=MisterETrainingArguments, **changes):
    settings = {
        "use_cpu": True,
        "disable_tqdm": True,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "report_to": "none",
    }
    return kind(str(folder), **{**settings, **changes})


def test_trainer_adds_the_terms_that_the_model_names(tmp_path):
    model = small_model("toy", torch.float32)
    data, validation = toy_split("train"), toy_split("validation")
    trainer = MisterETrainer(model=model, args=arguments(tmp_path), train_dataset=data, eval_dataset=validation)
    assert trainer.title == "Toy, seed 42"
    trainer.train()
    entries = [each for each in trainer.state.log_history if "loss" in each]
    assert len(entries) == 3 and all(each["agreement_loss"] > 0 for each in entries)
    assert "contrastive_loss" not in entries[0]
    evaluation = next(each for each in trainer.state.log_history if "eval_loss" in each)
    assert {"eval_weighted_f1", "eval_visual_weighted_f1"} <= set(evaluation)
    assert model.visual_input.mean.any()  # standardised
    view = trainer.predict(validation).predictions
    assert view.logits.shape == (6, 5, 3) and set(view.head_logits) == set(WIDTHS)
    assert view.gate_weights.shape == (6, 5, 3) and view.loss is None


def test_loss_of_the_model_is_trained_with_its_terms(tmp_path):
    """One step goes along the gradient of the loss written out."""
    found = gradient_of_a_step("toy", tmp_path, batch_size=4)
    config = small_config("toy")
    torch.manual_seed(0)
    model = entry("toy").model_class()(config)
    batch = small_batch(model.config, dtype=torch.float32)
    for name, width in WIDTHS.items():
        there = batch[f"{name}_embeddings"][batch[f"{name}_mask"]].double()
        assert there.shape[1] == width
        getattr(model, f"{name}_input").set_statistics(there.mean(0), there.std(0, correction=0))
    batch["transcripts"] = [
        [text if there else None for text, there in zip(texts, mask, strict=True)]
        for texts, mask in zip(batch["transcripts"], batch["text_mask"].tolist(), strict=True)
    ]
    output = model(**batch)
    agreement = model.loss_terms(output, batch["labels"], None)["agreement"]
    (output.loss + 0.3 * agreement).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=2e-6)


def test_a_trainer_without_the_weight_of_a_term_says_so(tmp_path):
    settings = arguments(tmp_path, DialogueTrainingArguments)
    data = toy_split("train")
    trainer = DialogueTrainer(
        model=small_model("toy", torch.float32), args=settings, train_dataset=data, eval_dataset=data
    )
    with pytest.raises(
        ValueError, match="'agreement' needs consistency_weight, a field that DialogueTrainingArguments"
    ):
        trainer.train()


def test_a_model_without_terms_is_trained_by_the_trainer_of_all_models(tmp_path):
    settings = arguments(tmp_path, DialogueTrainingArguments)
    data = [{key: values for key, values in item.items() if "visual" not in key} for item in toy_split("train")]
    trainer = DialogueTrainer(
        model=small_model("sdt", torch.float32), args=settings, train_dataset=data, eval_dataset=data
    )
    trainer.train()
    assert {"eval_weighted_f1", "eval_speech_weighted_f1"} <= set(trainer.evaluate())


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe of the toy model on a corpus of vectors."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        pq.write_table(toy_table(split), folder / f"{split}.parquet")
    path = tmp_path / "recipe.yaml"
    training = {"num_train_epochs": 2, "learning_rate": 0.01, "use_cpu": True, "disable_tqdm": True}
    corpus = {"path": str(folder), "name": "Toy corpus", "labels": list(LABELS.values())}
    model = {"model_type": "toy", "hidden_size": 8}
    path.write_text(yaml.safe_dump({"model": model, "corpus": corpus, "training": training}))
    return path


@dataclass
class OwnArguments(DialogueTrainingArguments):
    agreement_weight: float = 0.0


class OwnTrainer(DialogueTrainer):
    arguments_class = OwnArguments


def test_a_recipe_has_the_fields_of_the_trainer_that_the_model_names(toy, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(toy.model_class(), "loss_term_weights", {"agreement": "agreement_weight"})
    monkeypatch.setitem(registry._ENTRIES, "toy", replace(toy, trainer=f"{__name__}:OwnTrainer"))
    with pytest.raises(ValueError, match="unknown field 'contrastive_weight'"):
        Recipe.load(recipe, ["--contrastive_weight", "1"])
    losses = {}
    for weight in ("0", "0.5"):
        run = tmp_path / weight
        assert cli.main(["train", str(recipe), "--output_dir", str(run), "--agreement_weight", weight]) == 0
        losses[weight] = json.loads((run / "results.json").read_text())["history"][0]
    assert losses["0.5"]["agreement_loss"] > 0 and losses["0.5"]["loss"] > losses["0"]["loss"]
    other = Recipe.load(recipe).baseline("sdt").sections["training"]
    assert other["contrastive_weight"] == other["consistency_weight"] == 0.0 and "agreement_weight" not in other


def test_a_recipe_trains_scores_and_evaluates_it(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", str(recipe), "--output_dir", str(run)]) == 0
    results = json.loads((run / "results.json").read_text())
    assert set(results["test"]) == {"mixture", *WIDTHS}
    columns = pq.read_table(run / "predictions.parquet").column_names
    assert {"visual_probabilities", "gate_weights"} <= set(columns)
    assert "# Toy, " in (run / "README.md").read_text()
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--use_cpu"]) == 0
    assert "\nequal to what results.json holds" in capsys.readouterr().out


WRONG_ENTRIES = {
    "registered already": {},
    "a class is not found": {"name": "z", "model_type": "z", "config": "nowhere:Config"},
    "expected 'module:Class'": {"name": "z", "model_type": "z", "model": "support.toy_model"},
    "whose model_type is 'z', got ToyConfig and 'toy'": {"name": "z", "model_type": "z"},
    "whose config_class is ToyConfig": {"model": ".baselines.mult:MultModel"},
    "OwnArguments lacks consistency_weight": {"trainer": "models_toy:OwnTrainer"},
}


@pytest.mark.parametrize(("message", "changes"), WRONG_ENTRIES.items(), ids=WRONG_ENTRIES)
def test_a_wrong_entry_is_not_registered(toy, message, changes, monkeypatch):
    monkeypatch.setitem(sys.modules, "models_toy", sys.modules[__name__])
    if changes.get("name") is None and changes:
        monkeypatch.delitem(registry._ENTRIES, "toy")
    before = registered()
    with pytest.raises(ValueError, match=message):
        registry.register(replace(toy, **changes))
    assert registered() == before


def test_a_type_of_transformers_is_refused(toy, monkeypatch):
    monkeypatch.setattr(toy.config_class(), "model_type", "bert")
    with pytest.raises(ValueError, match="transformers knows another model of type 'bert'"):
        registry.register(replace(toy, name="z", model_type="bert"))


def test_a_model_without_a_title_is_refused(toy, monkeypatch):
    monkeypatch.delitem(registry._ENTRIES, "toy")
    monkeypatch.delattr(toy.model_class(), "title")
    with pytest.raises(ValueError, match="ToyModel lacks title"):
        registry.register(toy)


@pytest.mark.parametrize("heads", [("mixture",), ("speech", "speech")])
def test_heads_have_names_of_their_own(toy, heads, monkeypatch):
    monkeypatch.setattr(toy.config_class(), "heads", heads)
    with pytest.raises(
        StrictDataclassClassValidationError, match="heads must have different names, none of them 'mixture'"
    ):
        toy.config_class()()


def test_a_term_that_is_not_declared_is_named(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(toy.model_class(), "loss_term_weights", {})
    data = toy_split("train")
    model = small_model("toy", torch.float32)
    trainer = MisterETrainer(model=model, args=arguments(tmp_path), train_dataset=data, eval_dataset=data)
    with pytest.raises(ValueError, match="computes a loss term 'agreement', expected one of those in its"):
        trainer.train()


def test_a_baseline_gets_the_widths_that_the_recipe_leaves_to_its_model(recipe):
    other = Recipe.load(recipe).baseline("mult").model_config()
    assert (other.speech_embedding_dim, other.text_embedding_dim) == (WIDTHS["speech"], WIDTHS["text"])


def test_code_of_a_script_is_not_saved(toy, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(toy.model_class(), "__module__", "__main__")
    small_model("toy", torch.float32).save_pretrained(tmp_path)
    assert "The code of ToyModel is not saved, since it is defined in a script" in caplog.text
    assert "AutoModel" not in json.loads((tmp_path / "config.json").read_text())["auto_map"]
