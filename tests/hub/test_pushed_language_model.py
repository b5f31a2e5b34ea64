"""A push of a checkpoint whose model reads with a language model, which the folder names or holds."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mister_e_hf.hub.checkpoint import pushed_contents, weights_elsewhere
from mister_e_hf.hub.language_models import language_model_sentence
from support.model_contract import small_model


def write(folder: Path, name: str, **fields) -> Path:
    """A folder with a model of another kind, whose configuration names a language model."""
    small_model("bc_lstm").float().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"language_model": name, "language_model_revision": "abc", **fields}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "training.yaml").write_text(yaml.safe_dump({"model": {"language_model": name}}))
    return folder


def as_json(content) -> dict:
    return json.loads(content if isinstance(content, bytes) else content.read_text())


def test_a_language_model_of_the_hub_is_named_as_it_is(tmp_path):
    contents = pushed_contents(write(tmp_path / "c", "org/small-lm"))
    assert as_json(contents["config.json"])["language_model_revision"] == "abc"
    assert weights_elsewhere(contents) == {"language_model": "org/small-lm"}


def test_a_local_language_model_needs_its_name_on_the_hub(tmp_path):
    folder = write(tmp_path / "c", str(tmp_path / "lm"))
    with pytest.raises(ValueError, match=r"local folder, '.*lm', .*--base_model language_model=ORGANISATION/NAME"):
        pushed_contents(folder)
    contents = pushed_contents(folder, {"language_model": "org/small-lm"})
    config = as_json(contents["config.json"])
    assert (config["language_model"], config["language_model_revision"]) == ("org/small-lm", None)
    assert yaml.safe_load(contents["training.yaml"])["model"]["language_model"] == "org/small-lm"
    assert weights_elsewhere(contents) == {"language_model": "org/small-lm"}
    assert all(str(tmp_path).encode() not in each for each in contents.values() if isinstance(each, bytes))


def test_a_checkpoint_that_holds_it_needs_no_name(tmp_path):
    contents = pushed_contents(write(tmp_path / "c", str(tmp_path / "lm"), save_language_model=True))
    assert as_json(contents["config.json"])["language_model"] == "lm" and weights_elsewhere(contents) == {}


def test_a_model_without_a_language_model_has_none_to_name(tmp_path):
    small_model("bc_lstm").float().save_pretrained(tmp_path / "c")
    with pytest.raises(ValueError, match="has no language model, so 'org/small-lm' is not its base model"):
        pushed_contents(tmp_path / "c", {"language_model": "org/small-lm"})


def test_the_card_says_how_the_language_model_is_used():
    def sentence(**fields) -> str:
        usual = {"train_language_model": False, "lora": None, "holds_language_model": False}
        return language_model_sentence(SimpleNamespace(**{"language_model": "org/lm", **usual, **fields}))

    assert "[org/lm](https://huggingface.co/org/lm), with LoRA, whose weights are downloaded" in sentence(lora={})
    assert "as it is, whose weights are part of this checkpoint" in sentence(holds_language_model=True)
    assert "`lm`, as it is, whose weights are in a folder on the machine" in sentence(language_model="/here/lm")
    assert sentence(language_model=None) == "" == language_model_sentence(SimpleNamespace())
