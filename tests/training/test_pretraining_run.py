"""mister-e pretrain: from recipe and corpora to a folder that train --pretrained begins from."""

import json
import logging
import math
import os
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, pipeline

import mister_e_hf
from mister_e_hf import MisterEForPreTraining, MisterEModel
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.modalities import TASK
from mister_e_hf.cli.commands import main
from mister_e_hf.corpora.demo import LABELS, SPEECH_DIM, TEXT_DIM, demo_corpus
from mister_e_hf.hub.checkpoint import checkpoint_files, pushed_contents
from mister_e_hf.inference.doctor import examine
from mister_e_hf.training.evaluate import evaluate_checkpoint
from mister_e_hf.training.experiment import run_experiment, run_seeds
from mister_e_hf.training.pretraining import pretrain
from mister_e_hf.training.recipe import Recipe
from support.loopback_hub import loopback_hub
from support.new_process import run_python

MODEL = {
    "speech_embedding_dim": SPEECH_DIM,
    "text_embedding_dim": TEXT_DIM,
    "hidden_size": 12,
    "context_num_layers": 1,
    "fusion_num_layers": 1,
    "attention_dim": 12,
    "gate_hidden_size": 4,
}
SHORT = {"num_train_epochs": 2, "use_cpu": True, "disable_tqdm": True}


def recipe(corpus: Path | None = None, **changes) -> Recipe:
    sections = {
        "model": dict(MODEL),
        "corpus": {"path": None if corpus is None else str(corpus)},
        "training": {**SHORT, "learning_rate": 1e-3, "contrastive_weight": 0.0},
        "pretraining": {**SHORT, "learning_rate": 1e-3, "per_device_train_batch_size": 4},
    }
    made = Recipe({name: values for name, values in sections.items() if values})
    for name, value in changes.items():
        made.set(name.replace("__", "."), value)
    return made


def write(folder: Path, seed: int, labelled: bool = True, **changes) -> Path:
    folder.mkdir()
    for split, table in demo_corpus(seed, sizes={"train": 8, "validation": 4, "test": 4}).items():
        ids = [f"{folder.name}-{name}" for name in table["dialogue_id"].to_pylist()]
        table = table.set_column(table.column_names.index("dialogue_id"), "dialogue_id", [ids])
        if not labelled:
            table = table.drop_columns([name for name in table.column_names if name in ("labels", "texts")])
        pq.write_table(changes.get("change", lambda each: each)(table), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> tuple[Path, Path]:
    """A corpus with labels, and another without."""
    folder = tmp_path_factory.mktemp("corpora")
    return write(folder / "labelled", 1), write(folder / "bare", 2, labelled=False)


@pytest.fixture(scope="module")
def pretrained(corpora, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    pretrain(recipe(), folder, list(map(str, corpora)))
    return folder


def test_a_pretrained_folder_holds_a_model_its_card_and_its_results(pretrained):
    results = json.loads((pretrained / "results.json").read_text(encoding="utf-8"))
    assert results["data"] == {
        "training": {"splits": ["train"], "dialogues": 16, "turns": results["data"]["training"]["turns"]},
        "validation": {"splits": ["validation"], "dialogues": 8, "turns": results["data"]["validation"]["turns"]},
    }
    assert [corpus["name"] for corpus in results["corpora"]] == ["labelled", "bare"]
    best = min(results["history"], key=lambda entry: entry["eval_loss"])
    assert results["best_epoch"] == best["epoch"]
    assert results["validation"]["loss"] == pytest.approx(best["eval_loss"], rel=1e-6)
    model = AutoModelForPreTraining.from_pretrained(pretrained)
    assert type(model) is MisterEForPreTraining and (model.text_input.std != 1).any()
    card = (pretrained / "README.md").read_text(encoding="utf-8")
    for said in ("No label was read", "labelled", "bare", "Training (train)", "`mask_rate` 0.15", "without heads"):
        assert said in card
    assert "Test dialogues" not in card
    rows = re.findall(r"^\| (\w.*?) \|", card, flags=re.MULTILINE)
    losses = ["Reconstruction loss", "Reconstruction loss of speech", "Reconstruction loss of text"]
    assert rows == [*losses, "InfoNCE", "InfoNCE of a model that finds nothing"]
    stored = Recipe.load(pretrained / "training.yaml")
    assert stored.sections["pretraining"]["mask_rate"] == 0.15 and stored.sections["model"] == MODEL


def test_a_finished_run_is_skipped_and_another_is_refused(pretrained, corpora, caplog):
    before = (pretrained / "model.safetensors").stat().st_mtime_ns
    names = list(map(str, corpora))
    results = pretrain(recipe(), pretrained, names)
    assert results["seed"] == 0 and (pretrained / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="mask_rate"):
        pretrain(recipe(pretraining__mask_rate=0.3), pretrained, names)
    with pytest.raises(InputError, match="corpora"):
        pretrain(recipe(), pretrained, names[:1])


def test_a_run_that_was_killed_ends_with_the_same_weights(pretrained, corpora, tmp_path, monkeypatch):
    from mister_e_hf.training.pretraining_trainer import PretrainingTrainer

    compute = PretrainingTrainer.compute_loss

    def killed(self, *args, **kwargs):
        if self.state.global_step == 5 and self.model.training:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    names = list(map(str, corpora))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PretrainingTrainer, "compute_loss", killed)
        pretrain(recipe(), tmp_path / "run", names)
    assert not (tmp_path / "run" / "config.json").exists()
    results = pretrain(recipe(), tmp_path / "run", names)
    assert results["training_seconds"] is None  # it resumed
    first, second = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_begins_from_it_with_every_seed_and_keeps_its_statistics(pretrained, corpora, tmp_path):
    begun = recipe(corpora[0], training__pretrained=str(pretrained), training__num_train_epochs=1)
    run_seeds(begun, tmp_path, [0, 1])
    expected = load_file(pretrained / "model.safetensors")
    for seed in (0, 1):
        found = load_file(tmp_path / f"seed-{seed}" / "model.safetensors")
        for name in ("speech_input.mean", "speech_input.std", "text_input.mean", "text_input.std"):
            assert torch.equal(found[name], expected[name])
        model = AutoModel.from_pretrained(tmp_path / f"seed-{seed}")
        assert type(model) is MisterEModel and not model.begins_from_pretraining
    heads = [load_file(tmp_path / f"seed-{seed}" / "model.safetensors")["gate.dense.weight"] for seed in (0, 1)]
    assert not torch.equal(*heads)
    card = (tmp_path / "seed-1" / "README.md").read_text(encoding="utf-8")
    assert "pre-trained without labels, on 16 dialogues (train) of labelled and bare." in card
    contents = pushed_contents(tmp_path / "seed-0")
    assert str(pretrained.parent).encode() not in contents["training.yaml"]
    changed = load_file(pretrained / "model.safetensors")
    record = (tmp_path / "seed-0" / "run.yaml").read_text(encoding="utf-8")
    assert "pretrained_weights" in record and changed


def test_a_model_begins_with_the_pretrained_weights(pretrained, corpora):
    torch.manual_seed(0)
    model = recipe(corpora[0], training__pretrained=str(pretrained)).model()
    expected = load_file(pretrained / "model.safetensors")
    shared = [name for name in model.state_dict() if name in expected]
    assert shared and all(torch.equal(model.state_dict()[name], expected[name]) for name in shared)
    # experts may be left out
    fewer = recipe(corpora[0], training__pretrained=str(pretrained), model__experts=["text", "fusion"]).model()
    assert torch.equal(fewer.text_expert.skip.weight, expected["text_expert.skip.weight"])


WRONG = {
    "hidden size": ({"model__hidden_size": 24}, "it has hidden_size 12 and not 24"),
    "width": ({"model__speech_embedding_dim": 7}, "it has speech_embedding_dim 16 and not 7"),
    "causal": ({"model__causal": True}, "it has causal False and not True"),
    "several": ({"model__hidden_size": 24, "model__context_num_layers": 2}, "hidden_size 12 and not 24, context_num"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_pretrained_model_that_does_not_fit_is_refused(pretrained, corpora, changes, message):
    begun = recipe(corpora[0], training__pretrained=str(pretrained), **changes)
    message = message.replace("16", str(SPEECH_DIM))
    with pytest.raises(InputError, match=f"training.pretrained .* does not fit the model of this recipe.*{message}"):
        begun.model()


def test_what_is_not_a_pretrained_model_is_refused(pretrained, corpora, tmp_path, capsys):
    MisterEModel(recipe(corpora[0]).model_config()).save_pretrained(tmp_path / "tuned")
    with pytest.raises(InputError, match="tuned' is not a pre-training model"):
        recipe(corpora[0], training__pretrained=str(tmp_path / "tuned")).model()
    with pytest.raises(InputError, match="Folder '.*nothing' does not exist"):
        recipe(corpora[0], training__pretrained=str(tmp_path / "nothing")).model()
    other = Recipe({"model": {"model_type": "erc_bc_lstm"}, "corpus": {"path": str(corpora[0])}})
    other.set("training.pretrained", str(pretrained))
    with pytest.raises(InputError, match="of type 'mister_e', but the model of this recipe is 'erc_bc_lstm'"):
        other.model()
    with pytest.raises(InputError, match="'bc_lstm' has no pre-training; models that have it: mister_e"):
        pretrain(other, tmp_path / "other", [str(corpora[0])])
    # a baseline is another model, which does not begin from it
    begun = recipe(corpora[0], training__pretrained=str(pretrained))
    assert "pretrained" not in begun.baseline("sdt").sections["training"]


def test_damaged_results_of_a_pretraining_are_found_before_training(pretrained, corpora, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "half")
    (folder / "results.json").write_bytes((pretrained / "results.json").read_bytes()[:300])
    with pytest.raises(InputError, match="results.json' is not valid JSON"):
        recipe(corpora[0], training__pretrained=str(folder)).model()
    (folder / "results.json").write_text('{"corpora": [], "data": {"training": 3}}', encoding="utf-8")
    recipe(corpora[0], training__pretrained=str(folder)).model()


def test_a_run_does_not_write_over_what_it_begins_from(pretrained, corpora, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "downloaded")
    (folder / "run.yaml").unlink()  # as on the Hub
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    begun = recipe(corpora[0], training__pretrained=str(folder))
    with pytest.raises(InputError, match="is the folder of training.pretrained"):
        run_experiment(begun, folder, 0)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(begun.to_dict()), encoding="utf-8")
    assert main(["train", str(tmp_path / "recipe.yaml"), "--output_dir", str(folder), "--seeds", "0", "1"]) == 2
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_pretrained_folder_predicts_nothing(pretrained, corpora, capsys):
    with pytest.raises(InputError, match="it is a pre-training model, which predicts nothing"):
        evaluate_checkpoint(pretrained, corpora[0])
    with pytest.raises(InputError, match="The heads of this MisterEModel are new"):
        pipeline(TASK, model=str(pretrained))
    capsys.readouterr()
    for words in (["predict", str(corpora[0]), "--model", str(pretrained)], ["evaluate", str(pretrained)]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "it is a pre-training model, which predicts nothing" in error and len(error.splitlines()) == 1
    model = AutoModel.from_pretrained(pretrained)
    with pytest.raises(InputError, match="The heads of this MisterEModel are new"):
        model.push_to_hub("ORG/name")
    with torch.no_grad():  # a step of training
        for parameter in model.parameters():
            parameter.add_(0.01)
    pipeline(TASK, model=model)


def test_the_doctor_tries_a_pretrained_folder_out(pretrained, tmp_path):
    found = list(examine(pretrained))
    assert all(fine for fine, _ in found)
    lines = [line for _, line in found]
    assert lines[1].startswith(f"'{pretrained}': MiSTER-E, pre-trained; ")
    assert lines[2] == "predicts nothing until it is fine-tuned: mister-e train RECIPE --pretrained FOLDER"
    assert lines[3] == "errors of three random turns are finite"
    broken = shutil.copytree(pretrained, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["pretraining.decoders.text.2.bias"].fill_(math.nan)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    (unsound,) = [line for fine, line in examine(broken) if not fine]
    assert "are broken: NaN" in unsound and "pretraining.decoders.text.2.bias" in unsound


def test_a_push_holds_what_loads_the_model(pretrained, tmp_path):
    files = set(checkpoint_files(pretrained))
    assert {"config.json", "model.safetensors", "README.md", "training.yaml", "results.json"} <= files
    assert {"pretraining.py", "pretraining_mister_e.py", "modeling_mister_e.py"} <= files
    contents = pushed_contents(pretrained)
    for name in ("results.json", "training.yaml", "README.md"):
        content = contents[name] if isinstance(contents[name], bytes) else contents[name].read_bytes()
        assert str(pretrained.parents[1]).encode() not in content


PUSHED = """
import sys
import torch
import yaml
from transformers import AutoModelForPreTraining
from mister_e_hf import cli
assert cli.main(["push", sys.argv[1], "org/pretrained", "--dry_run"]) == 0
assert cli.main(["push", sys.argv[1], "org/pretrained"]) == 0
here, there = (AutoModelForPreTraining.from_pretrained(each).state_dict() for each in (sys.argv[1], "org/pretrained"))
assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
begun = ["train", sys.argv[2], "--pretrained", "org/pretrained", "--output_dir", sys.argv[3]]
assert cli.main(begun) == 0
assert cli.main(["push", sys.argv[3], "org/tuned", "--dry_run"]) == 0
"""


def test_a_pretrained_folder_is_pushed_and_trained_from_by_its_id(pretrained, corpora, tmp_path):
    begun = recipe(corpora[0])
    begun.set("corpus.labels", list(LABELS))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(begun.to_dict()))
    with loopback_hub() as hub:
        words = ("-c", PUSHED, str(pretrained), str(tmp_path / "recipe.yaml"), str(tmp_path / "run"))
        done = run_python(*words, env=os.environ | {"HF_HOME": str(tmp_path / "home")} | hub.env(tmp_path / "home"))
        assert done.returncode == 0, done.stderr
        assert {"model.safetensors", "README.md", "pretraining_mister_e.py"} <= set(hub.files("org/pretrained"))
    assert "pushed to org/pretrained" in done.stdout
    assert Recipe.load(tmp_path / "run/training.yaml").sections["training"]["pretrained"] == "org/pretrained"


def test_splits_are_those_that_are_named(corpora, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        results = pretrain(recipe(), tmp_path / "all", [str(corpora[1])], ("train", "validation", "test"))
    assert results["validation"] is None and results["best_epoch"] is None
    assert results["data"]["training"]["dialogues"] == 16
    assert "Test dialogues are trained on" in caplog.text and "The last epoch is kept" in caplog.text
    card = (tmp_path / "all" / "README.md").read_text(encoding="utf-8")
    assert "**Test dialogues were among those it was trained on**" in card
    with pytest.raises(InputError, match="Unknown split 'dev'"):
        pretrain(recipe(), tmp_path / "dev", [str(corpora[1])], ("dev",))


def test_corpora_that_cannot_be_pretrained_on_are_refused(corpora, tmp_path):
    def silent(table):
        absent = [[False] * len(ids) for ids in table["utterance_ids"].to_pylist()]
        if "has_audio" in table.column_names:
            table = table.drop_columns(["has_audio"])
        return table.append_column("has_audio", [absent])

    mute = write(tmp_path / "mute", 3, labelled=False, change=silent)
    with pytest.raises(
        InputError, match="No turn of the corpora has a speech vector, so nothing can be learned from it; leave"
    ):
        pretrain(recipe(), tmp_path / "run", [str(mute)])
    with pytest.raises(InputError, match="speech_embedding_dim = 7"):
        pretrain(recipe(model__speech_embedding_dim=7), tmp_path / "run", [str(corpora[0])])
    with pytest.raises(InputError, match="contrastive_weight is 0.5"):
        pretrain(recipe(model__experts=["text"]), tmp_path / "run", [str(corpora[0])])
    with pytest.raises(InputError, match="recipe: no corpus given"):
        pretrain(recipe(), tmp_path / "run")
    # one corpus may lack a modality that another has
    results = pretrain(recipe(), tmp_path / "both", [str(mute), str(corpora[0])])
    assert results["data"]["training"]["dialogues"] == 16


def test_the_command_pretrains(corpora, tmp_path, capsys):
    file = tmp_path / "small.yaml"
    lines = "\n".join(f"  {name}: {value}" for name, value in MODEL.items())
    file.write_text(f"model:\n{lines}\npretraining:\n  learning_rate: 0.001\n", encoding="utf-8")
    words = ["pretrain", str(file), "--corpus", *map(str, corpora), "--output_dir", str(tmp_path / "run")]
    words += ["--num_train_epochs", "1", "--mask_rate", "0.3", "--use_cpu"]
    assert main(words) == 0
    captured = capsys.readouterr()
    terms = r"reconstruction \d\.\d{4}, the mean 1; InfoNCE \d\.\d{4}"
    line = rf"epoch 1 of 1: loss [\d.]+ \({terms}\), validation loss [\d.]+ \({terms}, chance \d\.\d{{4}}\)\n"
    assert re.search(line, captured.err) and re.search(rf"trained, validation loss .* \({terms}, chance", captured.err)
    assert "1 if each is guessed as the mean" in captured.out
    assert "reconstruction loss" in captured.out and f"in {tmp_path / 'run'}" in captured.out
    stored = Recipe.load(tmp_path / "run" / "training.yaml").sections["pretraining"]
    assert stored["mask_rate"] == 0.3 and stored["learning_rate"] == 0.001
    assert main([*words, "--hidden_sizes", "3"]) == 2
    assert "unknown field 'hidden_sizes'" in capsys.readouterr().err


def test_public_names():
    assert mister_e_hf.MisterEForPreTraining and mister_e_hf.PretrainingTrainer and mister_e_hf.read_pooled
