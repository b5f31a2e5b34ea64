import json
from pathlib import Path

import pytest

from mister_e_hf import Recipe, cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.models.registry import registered
from mister_e_hf.studies.search import _earlier_trials, draw_settings, search
from mister_e_hf.studies.variants import compared_systems
from support.demo_recipe import DEMO, SHORT
from support.small_recipes import here

CONFIGS = Path(__file__).parents[2] / "hub_configs"


@pytest.mark.parametrize("name", [each.name for each in registered()])
def test_every_value_of_a_search_space_fits_its_recipe(name, tmp_path):
    recipe = Recipe.load(CONFIGS / "mister-e-iemocap6-small.yaml")
    if name == "egmf":  # needs a language model
        recipe = Recipe.load(CONFIGS / "egmf-mosi-small.yaml", here("egmf-mosi-small"))
    if name not in (known := compared_systems(recipe)):  # neither the recipe's own model nor a baseline
        widths = {field: recipe.value(f"model.{field}") for field in ("speech_embedding_dim", "text_embedding_dim")}
        known = compared_systems(Recipe({**recipe.to_dict(), "model": {"model_type": name, **widths}}))
    model, recipe = known[name]
    assert model.name == name and model.search_space
    for field, values in model.search_space.items():
        for value in values:
            changed = recipe.changed({field: value})
            changed.model_config()
            changed.training_arguments(tmp_path, 0)


def test_settings_are_drawn_once_and_reproducibly():
    own = {"training.learning_rate": 1e-3, "model.dropout": 0.4}
    recipe = Recipe.load(CONFIGS / "mister-e-iemocap6-small.yaml").baseline("bc_lstm").changed(own)
    space = {"training.learning_rate": [1e-3, 1e-4], "model.dropout": [0.1, 0.2, 0.4]}
    drawn = draw_settings(recipe, space, 4)
    assert drawn[0] == {}
    assert len({str(settings) for settings in drawn}) == 4
    assert drawn == draw_settings(recipe, space, 4)
    assert drawn == draw_settings(recipe, space, 5)[:4]
    everything = draw_settings(recipe, space, 100)
    assert len(everything) == 6
    assert own not in everything  # what the recipe has already


def test_a_search_scores_all_held_out_turns_and_resumes(demo_folder, tmp_path, capsys):
    words = ["--corpus", str(demo_folder), *SHORT]
    recipe, out, lines = Recipe.load(DEMO, words), tmp_path / "search", []
    options = {"systems": ["logistic_regression"], "folds": 2, "jobs": 2, "report": lines.append}
    found = search(recipe, out, 2, **options)
    assert json.loads((out / "search.json").read_text()) == found
    trials = found["logistic_regression"]
    assert {trial["trial"] for trial in trials} == {0, 1}
    assert trials[0]["weighted_f1"] >= trials[1]["weighted_f1"] > 0
    rate = next(trial["settings"]["training.learning_rate"] for trial in trials if trial["trial"] == 1)
    run = json.loads((out / "logistic_regression" / "trial-1" / "fold-0" / "results.json").read_text())
    assert run["history"][-1]["eval_num_utterances"] < recipe.read_corpus()["train"].num_turns
    assert f"learning_rate: {rate}" in (out / "logistic_regression" / "trial-1" / "fold-0" / "run.yaml").read_text()
    assert len(lines) == 4
    command = ["search", str(DEMO), *words, "--out", str(out), "--trials", "2", "--folds", "2"]
    assert cli.main([*command, "--systems", "logistic_regression"]) == 0
    shown = capsys.readouterr()
    assert "4 of 4 runs are finished already" in shown.err
    assert f"training.learning_rate {rate}" in shown.out
    assert shown.out.startswith("Weighted F1 of all held-out turns in per cent; the best of each system first\n")
    assert cli.main(["report", str(out)]) == 2
    assert f"every trial and its score is in '{out / 'search.json'}'" in capsys.readouterr().err
    assert cli.main([*command, "--systems", "logistic_regression", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"trials": found, "folder": str(out)}
    assert cli.main([*command, "--systems", "bc-lstm"]) == 2
    assert "Unknown system 'bc-lstm'" in capsys.readouterr().err
    (out / "search.json").unlink()
    longer = json.loads(json.dumps(search(recipe, out, 3, **options)))
    assert [trial for trial in search(recipe, out, 1, **options)["logistic_regression"]] == longer[
        "logistic_regression"
    ]
    with pytest.raises(
        ValueError, match="holds a search with other settings: recipe.training.learning_rate is .* there and 0.5 here"
    ):
        search(recipe.changed({"training.learning_rate": 0.5}), out, 2, **options)
    with pytest.raises(ValueError, match="trials must be a whole number from 1, got 0"):
        search(recipe, out, 0, **options)


@pytest.mark.parametrize("text", ["", "[]", '{"a": [{}]}', '{"a": [{"trial": 0, "weighted_f1": "high"}]}'])
def test_errors_name_damaged_trials(text, tmp_path):
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(InputError, match=r"search.json'"):
        _earlier_trials(tmp_path / "search.json", "weighted_f1")
