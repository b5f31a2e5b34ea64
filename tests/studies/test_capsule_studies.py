"""Studies of a model with capsules: what carries its predictions, and what is left without some of them."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the extra `plot`")

from mister_e_hf import Recipe  # noqa: E402
from mister_e_hf.studies.ablation import ablate  # noqa: E402
from mister_e_hf.studies.report.page import write_report  # noqa: E402
from mister_e_hf.studies.report.weight_tables import WEIGHT_TABLE_FIELDS  # noqa: E402
from mister_e_hf.studies.robustness import WITHOUT_CAPSULES, capsule_groups, robustness_table  # noqa: E402
from mister_e_hf.studies.search import search  # noqa: E402
from mister_e_hf.studies.study_reader import read_study  # noqa: E402
from mister_e_hf.training.evaluate import scoring_trainer  # noqa: E402
from support.demo_recipe import DEMO, SHORT  # noqa: E402
from support.model_contract import small_model  # noqa: E402
from support.session_vectors import split  # noqa: E402
from support.small_scores import score_recipe, write_score_corpus  # noqa: E402
from support.small_study import rewrite  # noqa: E402

THREE = ("speech", "text", "speech+text")
GROUPS = ["capsule speech", "capsule text", "capsule speech+text", "capsules with speech", "capsules with text"]
GROUPS += ["capsules of one modality"]


def capsule_recipe(recipe: Recipe) -> Recipe:
    return recipe.baseline("emo_caps").changed({"model.hidden_size": 16, "training.num_train_epochs": 1})


def tables_of(study: Path) -> dict[str, list[dict]]:
    write_report(study)
    stage = json.loads((study / "report.json").read_text())["stages"]["development"]
    return {name: table["records"] for name, table in stage.items()}


@pytest.fixture(scope="module")
def study(demo_folder, tmp_path_factory) -> Path:
    out, recipe = tmp_path_factory.mktemp("study"), Recipe.load(DEMO, ["--corpus", str(demo_folder), *SHORT])
    assert ablate(capsule_recipe(recipe), out, [0], 2, variants=["full"], report=lambda line: None) == []
    return out


def test_weights_are_stored_by_capsule(study):
    rows = pq.read_table(study / "development/full/seed-0/fold-0/predictions.parquet").to_pylist()
    for row in rows:
        assert tuple(row["capsule_weights"]) == THREE and "gate_weights" not in row
        total = sum(row["capsule_weights"].values())
        assert total == pytest.approx(1, abs=1e-5) or total == 0
    full = read_study(study).stages["development"].systems["full"]
    assert tuple(full.part_weights["capsule_weights"]) == THREE
    assert full.gate_weights is None and full.head_noun == "head"
    position = full.part_weights["capsule_weights"]["text"][0]
    stored = {row["utterance_id"]: row["capsule_weights"]["text"] for row in rows}
    assert set(np.float32([*stored.values()])) <= set(position)


def test_the_report_shows_which_capsules_carry_what(study):
    tables = tables_of(study)
    assert not any(name.startswith("gate_by") for name in tables)
    for name in ("capsules_by_emotion", "capsules_by_main_capsule"):
        for record in tables[name]:
            assert {*THREE, "group", "turns"} <= set(record) <= {*THREE, *WEIGHT_TABLE_FIELDS}
            total = sum(record[capsule] for capsule in THREE)
            assert total == pytest.approx(0 if record["group"] == "no modality" else 1, abs=0.1)
    groups = {record["group"]: record for record in tables["capsules_by_main_capsule"]}
    assert groups["right predictions"]["mixture_right"] == 1 and groups["wrong predictions"]["mixture_right"] == 0
    turns = sum(groups[name]["turns"] for name in (*THREE, "no modality") if name in groups)
    assert turns == groups["right predictions"]["turns"] + groups["wrong predictions"]["turns"]
    for name in set(THREE) & set(groups):
        assert groups[name][name] == max(groups[name][capsule] for capsule in THREE)
    assert "Capsule weights by true emotion" in (study / "report.md").read_text()
    page = (study / "report.html").read_text()
    assert "mean weight of each capsule" in page and "mean capsule weight" in page


def test_the_report_shows_the_score_without_capsules(study):
    tables = tables_of(study)
    rows = tables["removed_capsules"]
    assert [row["without"] for row in rows] == GROUPS
    whole = next(record for record in tables["main"] if record["system"] == "full")["weighted_f1"]
    for row in rows:
        assert row["weighted_f1"] - whole == pytest.approx(row["difference"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert not any(WITHOUT_CAPSULES in record["curve"] for record in tables["robustness"])
    # without the capsules of a modality, the model answers as if the modality were absent
    removed = {row["removed"]: row["1"] for row in tables["removed_modalities"]}
    found = {row["without"]: row["weighted_f1"] for row in rows}
    for modality in ("speech", "text"):
        assert found[f"capsules with {modality}"] == pytest.approx(removed[modality])


def test_the_report_shows_which_emotions_are_lost_without_capsules(study):
    tables = tables_of(study)
    rows = tables["emotions_without_capsules"]
    assert [row["without"] for row in rows] == ["nothing", *GROUPS]
    full = read_study(study).stages["development"].systems["full"]
    (classes,) = [record for record in tables["classes"] if record["system"] == "full"]
    labels = [name for name in rows[0] if name not in ("without", "system")]
    assert len(labels) == len(full.probabilities[0, 0]) and [rows[0][name] for name in labels] == pytest.approx(
        [classes[name] for name in labels]
    )
    # weighted by the turns of each emotion, they are the score of the table of all emotions
    turns = np.bincount(read_study(study).stages["development"].labels, minlength=len(labels))
    for row, whole in zip(rows[1:], tables["removed_capsules"], strict=True):
        weighted = np.dot([row[name] for name in labels], turns) / turns.sum()
        assert weighted == pytest.approx(whole["weighted_f1"])
    assert "| capsule speech+text | EMO-Caps, full |" in (study / "report.md").read_text()


def test_rows_without_capsules_are_those_of_the_model_without_them(tmp_path):
    data = split("train")
    model = small_model("emo_caps", torch.float32, speech_embedding_dim=4, text_embedding_dim=4)
    trainer = scoring_trainer(model, tmp_path, use_cpu=True)
    found = {row["curve"]: row["predictions"] for row in robustness_table(trainer, data, draws=1).to_pylist()}
    assert [name.removeprefix(WITHOUT_CAPSULES) for name in found if name.startswith(WITHOUT_CAPSULES)] == GROUPS
    with model.without_capsules(["speech", "speech+text"]), torch.no_grad():
        logits = [model(**{name: values[None] for name, values in item.items()}).logits[0] for item in data]
    assert found[f"{WITHOUT_CAPSULES}capsules with speech"] == torch.cat(logits).argmax(-1).tolist()


def test_groups_of_capsules_differ_and_leave_some():
    modalities = ("speech", "text", "visual")
    seven = tuple("+".join(chosen) for count in (1, 2, 3) for chosen in combinations(modalities, count))
    groups = capsule_groups(seven)
    assert list(groups)[:7] == [f"capsule {name}" for name in seven] and len(groups) == 7 + 3 + 2
    assert groups["capsules with visual"] == ("visual", "speech+visual", "text+visual", "speech+text+visual")
    assert groups["capsules of one modality"] == modalities
    for capsules in (seven, THREE, ("speech", "text"), ("text",), ()):
        groups = capsule_groups(capsules)
        assert len({*groups.values()}) == len(groups) and all(
            0 < len(names) < len(capsules) for names in groups.values()
        )
    assert list(capsule_groups(THREE)) == GROUPS


@pytest.mark.slow
def test_scores_have_the_same_tables(tmp_path):
    corpus = write_score_corpus(tmp_path / "corpus", {"train": 12, "validation": 6, "test": 4})
    out = tmp_path / "study"
    recipe = capsule_recipe(score_recipe(corpus))
    assert ablate(recipe, out, [0], folds=2, variants=["full"], report=lambda line: None) == []
    tables = tables_of(out)
    assert {"capsules_by_true_score", "capsules_by_main_capsule", "removed_capsules"} <= set(tables)
    assert all(record["mixture_error"] >= 0 for record in tables["capsules_by_main_capsule"])
    assert "emotions_without_capsules" not in tables
    assert [row["without"] for row in tables["removed_capsules"]] == GROUPS and "mae" in tables["removed_capsules"][0]


def test_edited_weights_are_refused(study, tmp_path):
    path = tmp_path / "study"
    path.mkdir()
    for file in study.rglob("*"):
        if file.is_file() and file.suffix in (".yaml", ".json", ".parquet"):
            (path / file.relative_to(study)).parent.mkdir(parents=True, exist_ok=True)
            (path / file.relative_to(study)).write_bytes(file.read_bytes())
    table = path / "development/full/seed-0/fold-0/predictions.parquet"
    rewrite(table, lambda columns: columns | {"capsule_weights": [dict.fromkeys(THREE, 0.5)] * len(columns["label"])})
    with pytest.raises(ValueError, match=r"capsule_weights of turn 0 must be from 0 to 1 and sum to 1"):
        read_study(path)
    rewrite(table, lambda columns: columns | {"capsule_weights": [[0.5, 0.5]] * len(columns["label"])})
    with pytest.raises(ValueError, match=r"capsule_weights must hold a number for each capsule by name, got list"):
        read_study(path)


def test_the_search_has_a_space_of_its_own(demo_folder, tmp_path):
    recipe = capsule_recipe(Recipe.load(DEMO, ["--corpus", str(demo_folder), *SHORT]))
    found = search(recipe, tmp_path / "search", 1, ["emo_caps"], folds=2, report=lambda line: None)
    assert [trial["settings"] for trial in found["emo_caps"]] == [{}] and found["emo_caps"][0]["weighted_f1"] > 0
