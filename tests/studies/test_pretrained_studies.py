"""Studies of models that begin from pre-training, on the training dialogues of each run or from a folder."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mister_e_hf import Recipe, cli
from mister_e_hf.studies.ablation import ablate
from mister_e_hf.studies.report.method import method
from mister_e_hf.studies.study_reader import read_study
from mister_e_hf.studies.variants import variants_of
from mister_e_hf.training.experiment import run_experiment, train_model
from mister_e_hf.training.own_pretraining import OWN_FOLDER
from mister_e_hf.training.pretraining import pretrain
from mister_e_hf.vectors.pooled import pool
from support.demo_recipe import DEMO, SHORT

SHORT = [*SHORT, "--pretraining.num_train_epochs", "1", "--pretraining.use_cpu"]
VARIANTS = ["full", "pretrained", "baseline_mister_e"]


def recipe(corpus: Path, *words: str) -> Recipe:
    return Recipe.load(DEMO, ["--corpus", str(corpus), *SHORT, *words])


def capsules(corpus: Path, *words: str) -> Recipe:
    """EMO-Caps, which is compared with MiSTER-E, and its section of pre-training."""
    sections = recipe(corpus).baseline("emo_caps").to_dict()
    sections["model"] |= {"hidden_size": 16}
    sections["training"] |= {"num_train_epochs": 1}
    sections["baselines"] = {"mister_e": {"model": {"hidden_size": 16}, "training": {"num_train_epochs": 1}}}
    sections["pretraining"] = {"num_train_epochs": 1, "use_cpu": True}
    found = Recipe(sections)
    found.override(words)
    return found


@pytest.fixture(scope="module")
def study(demo_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study")
    assert ablate(capsules(demo_folder), out, [0], 2, variants=VARIANTS, jobs=2, report=lambda line: None) == []
    return out


def test_a_study_compares_a_model_with_its_pretrained_one_and_with_another_system(study):
    found = read_study(study)
    assert list(found.stages["development"].systems) == ["full", "pretrained", "baseline_mister_e", *[]]
    assert found.title("baseline_mister_e") == "MiSTER-E" and found.title("full") == "EMO-Caps, full"
    (said,) = [
        paragraph for paragraph in method(found) if "Pre-trained first within each run: pretrained." in paragraph
    ]
    assert "the dialogues that are scored are not seen" in said
    scores = [found.stages["development"].systems[name].probabilities for name in ("full", "pretrained")]
    assert not np.array_equal(*scores)
    runs = [*(study / "development").glob("*/seed-0/fold-*")]
    assert len(runs) == 6 and not [run for run in runs if (run / OWN_FOLDER).exists()]


def test_the_variant_is_the_recipe_with_pretraining_or_without_it(demo_folder):
    found = variants_of(recipe(demo_folder))
    assert found["pretrained"].recipe.value("training.pretrained") == "self" and "without_pretraining" not in found
    assert "baseline_emo_caps" not in found
    found = variants_of(recipe(demo_folder, "--pretrained", "self"))
    assert found["without_pretraining"].recipe.value("training.pretrained") is None and "pretrained" not in found
    assert found["baseline_mult"].recipe.sections["training"].get("pretrained") is None


def test_a_run_pretrains_on_its_own_training_dialogues(demo_folder, tmp_path):
    own = recipe(demo_folder, "--pretrained", "self")
    corpus = own.read_corpus()
    trainer, _ = train_model(own, own.training_arguments(tmp_path / "run", 3), corpus["train"], corpus["validation"])
    stored = json.loads((tmp_path / "run" / OWN_FOLDER / "results.json").read_text())
    assert stored["data"] == {"training": {"splits": ["train"], "dialogues": 16, "turns": corpus["train"].num_turns}}
    assert stored["seed"] == 3 and stored["best_epoch"] is None
    # the same as pre-training by itself, without an epoch that validation chooses, and training from its folder
    last = recipe(demo_folder, "--pretraining.eval_strategy", "no", "--pretraining.load_best_model_at_end", "false")
    pretrain(last, tmp_path / "alone", seed=3)
    files = [tmp_path / place / "model.safetensors" for place in ("alone", f"run/{OWN_FOLDER}")]
    one, other = map(load_file, files)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    begun = recipe(demo_folder, "--pretrained", str(tmp_path / "alone"))
    again, _ = train_model(begun, begun.training_arguments(tmp_path / "b", 3), corpus["train"], corpus["validation"])
    for name, value in trainer.own_model.state_dict().items():
        assert torch.equal(value, again.own_model.state_dict()[name]), name


def test_held_out_dialogues_change_nothing_in_the_pretraining(demo_folder, tmp_path):
    own = capsules(demo_folder, "--pretrained", "self")
    corpus = own.read_corpus()
    found = []
    for number, validation in enumerate((corpus["validation"], corpus["test"])):
        folder = tmp_path / str(number)
        train_model(own, own.training_arguments(folder, 0), corpus["train"], validation)
        found.append((folder / OWN_FOLDER / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_further_corpora_are_read_beside_a_run_s_own_dialogues(demo_folder, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    for split in ("train", "test"):
        table = pq.read_table(demo_folder / f"{split}.parquet")
        names = [f"more-{name}" for name in table["dialogue_id"].to_pylist()]
        pq.write_table(table.set_column(0, "dialogue_id", [names]).drop_columns("labels"), more / f"{split}.parquet")
    own = capsules(demo_folder, "--pretrained", "self", "--pretraining.corpora", str(more))
    results = run_experiment(own, tmp_path / "run", 0)
    assert results["test"]["mixture"]["weighted_f1"] >= 0
    assert results["pretraining"]["dialogues"] == 32
    stored = json.loads((tmp_path / "run" / OWN_FOLDER / "results.json").read_text())
    assert stored["data"]["training"]["dialogues"] == 32 and len(stored["corpora"]) == 2
    assert yaml.safe_load((tmp_path / "run" / "training.yaml").read_text())["pretraining"]["corpora"] == [str(more)]
    same = capsules(demo_folder, "--pretrained", "self", "--pretraining.corpora", str(demo_folder))
    with pytest.raises(ValueError, match="is in two of the corpora that are pooled"):
        run_experiment(same, tmp_path / "same", 0)


def test_a_pool_refuses_other_widths(demo_folder):
    data = recipe(demo_folder).read_corpus()["train"]
    narrow = recipe(demo_folder).read_corpus()["validation"]
    narrow.vectors["text"] = narrow.vectors["text"].picked([0, 1])
    with pytest.raises(ValueError, match=r"The text vectors differ in width \(\d+ in train, 2 in validation\)"):
        pool([data, narrow], "train")
    assert pool([data], "train").labels is None and data.labels is not None


@pytest.mark.slow
def test_a_folder_of_pretraining_is_named_in_the_report(demo_folder, tmp_path):
    folder = tmp_path / "pretrained"
    pretrain(recipe(demo_folder), folder)
    begun = recipe(demo_folder, "--pretrained", str(folder))
    assert ablate(begun, tmp_path / "study", [0], 2, variants=["full"], report=lambda line: None) == []
    (said,) = [paragraph for paragraph in method(read_study(tmp_path / "study")) if str(folder) in paragraph]
    assert "may have seen the vectors of held-out dialogues" in said


def test_a_model_without_pretraining_cannot_pretrain_itself(demo_folder, tmp_path, capsys):
    words = ["train", str(DEMO), "--corpus", str(demo_folder), "--output_dir", str(tmp_path / "run")]
    sections = recipe(demo_folder).baseline("bc_lstm").to_dict()
    (tmp_path / "bc_lstm.yaml").write_text(yaml.safe_dump(sections))
    words[1] = str(tmp_path / "bc_lstm.yaml")
    assert cli.main([*words, "--pretrained", "self"]) == 2
    assert "pre-train" in capsys.readouterr().err
