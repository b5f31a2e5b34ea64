"""What a push says of weights that are not in a checkpoint, and that no path of this machine is pushed."""

import json
import re
from pathlib import Path

import pytest
import yaml

from mister_e_hf import cli
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.hub.checkpoint import pushed_contents, save_checkpoint
from mister_e_hf.inference.stored_stages import load_encoder
from support.model_contract import small_model
from support.small_checkpoint import write_checkpoint
from support.small_encoders import tiny_encoder, write_backbone


@pytest.fixture
def frozen(tmp_path) -> Path:
    """A checkpoint whose text encoder is frozen, so that it holds no weights of its backbone, `backbones/text`."""
    folder = write_checkpoint(tmp_path / "run")
    backbone = write_backbone(tmp_path / "backbones" / "text", "text")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    for part in tiny_encoder(backbone, "text", tuning="frozen", embedding_dim=config["embedding_dim"]):
        part.save_pretrained(folder / "text_encoder")
    return folder


def test_a_dry_run_names_the_weights_that_are_not_pushed(frozen, capsys):
    words = ["push", str(frozen), "org/name", "--dry_run", "--base_model", "text=org/bert"]
    assert cli.main(words) == 0, capsys.readouterr().err
    said = "not pushed: the weights of the base model of text_encoder/; users get those of 'org/bert' from the Hub"
    assert said in capsys.readouterr().out
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_pushed"] == {"text_encoder": "org/bert"}


def test_a_name_that_may_be_of_the_hub_is_shown(frozen, capsys):
    path = frozen / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone": "backbones/text"}))
    assert cli.main(["push", str(frozen), "org/name", "--dry_run"]) == 0, capsys.readouterr().err
    assert "users get those of 'backbones/text' from the Hub" in capsys.readouterr().out


def test_a_backbone_that_is_gone_names_the_encoder_s_folder(frozen):
    backbone = Path(json.loads((frozen / "text_encoder" / "config.json").read_text())["backbone"])
    backbone.rename(backbone.with_name("moved"))
    width = json.loads((frozen / "text_encoder" / "config.json").read_text())["embedding_dim"]
    place = re.escape(f"'{frozen}/text_encoder/config.json'")
    with pytest.raises(OSError, match=rf"write its new place as `backbone` into {place}.*--text_encoder\.save_back"):
        load_encoder(frozen, "text", width)


@pytest.mark.parametrize("modality", MODALITIES)
def test_no_path_of_this_machine_is_pushed(modality, tmp_path, capsys):
    model = write_checkpoint(tmp_path / "run")
    section = MODALITIES[modality].encoder
    recipe = yaml.safe_load((model / "training.yaml").read_text()) if (model / "training.yaml").is_file() else {}
    recipe[section] = {"backbone": "/home/me/models/my-backbone", "training": {"output_dir": "~/runs/mine"}}
    recipe["corpus"] = {"path": "a/b/vectors", "labels": ["joy", "and/or"], "group_pattern": "^Ses.."}
    recipe["training"] = {"pretrained": r"C:\\me\\pretrained", "num_train_epochs": 3, "run_name": "mine"}
    (model / "training.yaml").write_text(yaml.safe_dump(recipe))
    contents = pushed_contents(model, {"text": "org/bert", "speech": "org/whisper"})
    pushed = contents["training.yaml"]
    assert isinstance(pushed, bytes)
    found = yaml.safe_load(pushed)
    assert found[section]["backbone"] in ("my-backbone", "org/bert", "org/whisper")
    assert found[section]["training"]["output_dir"] == "mine"
    assert found["corpus"] == {**recipe["corpus"], "path": "vectors"}
    assert found["training"] == {**recipe["training"], "pretrained": "pretrained"}
    for name, content in contents.items():
        text = content if isinstance(content, bytes) else content.read_bytes()
        assert b"/home/me" not in text and str(tmp_path).encode() not in text, name


@pytest.mark.parametrize(
    ("tuning", "made"), [("full", "fine-tuned from"), ("frozen", "a head on the frozen backbone")]
)
def test_the_card_names_a_local_backbone_by_its_last_part(tmp_path, tuning, made):
    recipe = {"text_encoder": {"backbone": "my/old/models/bert", "tuning": tuning}}
    save_checkpoint(
        tmp_path / "model", small_model("mult"), recipe, {}, encoders={"text": write_text_encoder(tmp_path)}
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"`text_encoder/`, {made} the local model bert:" in card and "my/old" not in card


def write_text_encoder(folder: Path) -> Path:
    backbone = write_backbone(folder / "backbone", "text")
    for part in tiny_encoder(backbone, "text", tuning="full", embedding_dim=4):
        part.save_pretrained(folder / "encoder")
    return folder / "encoder"
