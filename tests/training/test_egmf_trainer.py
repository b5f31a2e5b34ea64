"""Training of EGMF: its two learning rates, LoRA in its checkpoints, and kept prefixes."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from mister_e_hf.base.errors import InputError
from mister_e_hf.models.egmf.modeling_egmf import EgmfModel
from mister_e_hf.training.checkpoints import finished_checkpoints
from mister_e_hf.training.egmf_trainer import EgmfTrainer, EgmfTrainingArguments
from support.egmf_training import LORA, dialogues, epochs, gradient, new_model, trained
from support.forks import run_processes
from support.gradient_steps import assert_close
from support.model_contract import assert_same


def scores_of(trainer: EgmfTrainer) -> list[float]:
    return [entry["eval_weighted_f1"] for entry in trainer.state.log_history if "eval_weighted_f1" in entry]


def files_of(folder) -> set[str]:
    return {path.name for path in folder.glob("*/*.safetensors")}


# Steps


@pytest.mark.parametrize("changes", [{"lora": LORA, "balance_weight": 0.1}, {"train_language_model": True}], ids=str)
def test_accumulated_micro_batches_give_the_step_of_the_whole_batch(tmp_path, changes):
    whole = gradient(tmp_path, new_model(**changes))
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert_close(gradient(tmp_path, new_model(**changes), **parts), whole)
    assert any(change.any() for name, change in whole.items() if name.startswith("language_model."))


def test_two_processes_take_the_step_of_one(tmp_path):
    expected = gradient(tmp_path, new_model(lora=LORA))
    run_processes(2, "egmf_training.py", tmp_path)
    assert_close(load_file(tmp_path / "change.safetensors"), expected)


@pytest.mark.parametrize("changes", [{"lora": LORA}, {"train_language_model": True}, {}], ids=str)
def test_the_language_model_has_a_learning_rate_of_its_own(tmp_path, changes):
    model = new_model(**changes)
    given = {"use_cpu": True, "learning_rate": 1e-3, "language_model_learning_rate": 1e-5, "weight_decay": 0.1}
    arguments = EgmfTrainingArguments(str(tmp_path), **given)
    trainer = EgmfTrainer(model=model, args=arguments, train_dataset=dialogues(), eval_dataset=dialogues())
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(each)]: group for group in groups for each in group["params"]}
    assert found.keys() == trained(model).keys() and sum(len(group["params"]) for group in groups) == len(found)
    of_the_model = [name for name in found if name.startswith("language_model.")]
    assert bool(of_the_model) == bool(changes)
    assert all(found[name]["lr"] == (1e-5 if name in of_the_model else 1e-3) for name in found)
    assert all(found[name]["weight_decay"] == 0.0 for name in found if name.endswith("bias"))
    assert all(group["weight_decay"] == 0.1 for name, group in found.items() if "lora_" in name)


def test_lora_in_bfloat16_takes_nearly_the_step_of_float32(tmp_path):
    found = [gradient(tmp_path, new_model("llama", lora=LORA), bf16=bf16) for bf16 in (False, True)]
    whole, half = (torch.cat([change.flatten() for change in each.values()]) for each in found)
    assert not torch.equal(half, whole) and torch.nn.functional.cosine_similarity(half, whole, dim=0) > 0.99


# Epochs


class Stop(TrainerCallback):
    """Breaks training off as a kill would, with an exception, before the third epoch is saved."""

    def on_evaluate(self, args, state, control, **kwargs):
        if state.epoch == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [{"lora": LORA | {"dropout": 0.2}}, {"train_language_model": True}], ids=str)
def test_a_run_that_resumes_equals_the_uninterrupted_one(tmp_path, changes):
    changes |= {"dropout": 0.3}
    whole = epochs(tmp_path / "whole", new_model(**changes))
    with pytest.raises(KeyboardInterrupt):
        epochs(tmp_path / "broken", new_model(**changes), callbacks=[Stop()])
    checkpoint = finished_checkpoints(tmp_path / "broken")[-1]
    assert (checkpoint / "language_model" / "adapter").is_dir() == ("lora" in changes)
    torch.manual_seed(123)
    resumed = epochs(tmp_path / "broken", new_model(**changes), resume=str(checkpoint))
    assert_same(resumed.model.state_dict(), whole.model.state_dict(), 0.0)
    assert scores_of(resumed) == scores_of(whole)


class Worsen(TrainerCallback):
    """Remembers what is trained after each epoch, and spoils it before the third."""

    def __init__(self):
        self.epochs = []

    def on_epoch_begin(self, args, state, control, model, **kwargs):
        if len(self.epochs) == 2:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 3.0 * parameter.requires_grad * torch.randn_like(parameter)

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.epochs.append(trained(model))


@pytest.mark.parametrize("changes", [{"lora": LORA}, {"train_language_model": True}], ids=str)
def test_the_best_epoch_is_what_remains_with_its_language_model(tmp_path, changes):
    seen = Worsen()
    trainer = epochs(tmp_path, new_model(**changes), callbacks=[seen], metric_for_best_model="eval_loss")
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = min(range(4), key=losses.__getitem__)
    assert best < 3  # or the test shows nothing
    assert_same(trained(trainer.model), seen.epochs[best], 0.0)
    trainer.save_model(tmp_path / "saved")
    again = EgmfModel.from_pretrained(tmp_path / "saved")
    assert_same(again.state_dict(), trainer.model.state_dict(), 0.0)


# Kept prefixes


def test_training_with_kept_prefixes_is_that_without_them(tmp_path):
    store = tmp_path / "store"
    expected = gradient(tmp_path, new_model())
    found = gradient(tmp_path, new_model(), prefix_folder=str(store))
    assert_close(found, expected, 2e-3)  # they are kept in half precision
    files = files_of(store)
    assert 0 < len(files) <= 15
    again = gradient(tmp_path, new_model(), prefix_folder=str(store))
    assert_same(again, found, 0.0)
    assert files_of(store) == files


def test_epochs_read_what_the_first_one_kept(tmp_path, monkeypatch):
    store = str(tmp_path / "store")
    first = epochs(tmp_path / "first", new_model(), prefix_folder=store)
    monkeypatch.setattr("mister_e_hf.models.egmf.asked_turns.read_prefix", None)  # nothing is read again
    second = epochs(tmp_path / "second", new_model(), prefix_folder=store)
    assert_same(second.model.state_dict(), first.model.state_dict(), 0.0)
    assert scores_of(second) == scores_of(first)


def test_other_words_are_read_and_kept_beside_the_first(tmp_path):
    store = tmp_path / "store"
    gradient(tmp_path, new_model(), prefix_folder=str(store))
    files, data = files_of(store), dialogues()
    turn = max(turn for turn in range(7) if data[2]["text_mask"][turn])
    data[2]["transcripts"][turn] += "no"
    expected = gradient(tmp_path, new_model(), data)
    assert_close(gradient(tmp_path, new_model(), data, prefix_folder=str(store)), expected, 2e-3)
    assert files < files_of(store)


def test_kept_prefixes_of_another_model_or_dtype_are_refused(tmp_path):
    store = str(tmp_path / "store")
    gradient(tmp_path, new_model(), prefix_folder=store)
    for model in (new_model("llama"), new_model(language_model_dtype="bfloat16")):
        with pytest.raises(InputError, match="holds the prompts of another language model"):
            gradient(tmp_path, model, prefix_folder=store)
    other = new_model()
    with torch.no_grad():
        next(other.language_model.parameters())[-1, -1] += 0.5  # one weight
    with pytest.raises(InputError, match="holds the prompts of another language model"):
        gradient(tmp_path, other, prefix_folder=store)
    with pytest.raises(InputError, match="Only a language model that is not trained"):
        gradient(tmp_path, new_model(lora=LORA), prefix_folder=store)


def test_a_damaged_store_is_named(tmp_path):
    store = tmp_path / "store"
    gradient(tmp_path, new_model(), prefix_folder=str(store))
    path = next(store.glob("*/*.safetensors"))
    for content in (b"", b"{", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(OSError, match=f"{path.name}' is damaged .*; remove it, and it is computed again"):
            gradient(tmp_path, new_model(), prefix_folder=str(store))
    save_file({"layers": torch.zeros(2, 2, 2, 3, 8)}, path)
    with pytest.raises(OSError, match=f"{path.name}' is damaged"):
        gradient(tmp_path, new_model(), prefix_folder=str(store))
    path.unlink()
    gradient(tmp_path, new_model(), prefix_folder=str(store))
    assert path.is_file()
    (store / "store.json").write_text("{")
    with pytest.raises(InputError, match=r"store\.json"):
        gradient(tmp_path, new_model(), prefix_folder=str(store))


def test_a_store_cannot_be_a_file_or_another_folder(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="file' is a file, expected a folder"):
        gradient(tmp_path, new_model(), prefix_folder=str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"is not empty, and has no store\.json"):
        gradient(tmp_path / "run", new_model(), prefix_folder=str(tmp_path))


def test_a_language_model_in_bfloat16_keeps_its_own_precision(tmp_path):
    store = tmp_path / "store"
    changes = {"language_model_dtype": "bfloat16"}
    found = gradient(tmp_path, new_model("llama", **changes), prefix_folder=str(store))
    kept = load_file(next(store.glob("*/*.safetensors")))["layers"]
    assert kept.dtype == torch.bfloat16
    expected = gradient(tmp_path, new_model("llama"))
    whole, half = (torch.cat([change.flatten() for change in each.values()]) for each in (expected, found))
    assert whole.dtype == half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half, whole, dim=0) > 0.98
