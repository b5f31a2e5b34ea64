"""Damaged and hostile files of a checkpoint: errors name the file, and no code of it is run."""

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    pipeline,
)

from mister_e_hf import (
    ConversationEmotionPipeline,
    MisterEModel,
    UtteranceEncoder,
)
from support.small_checkpoint import write_checkpoint
from support.small_encoders import RATE, tiny_encoder, tone, write_backbone
from support.small_pipeline import TASK, assert_same


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pipeline") / "run")


@pytest.fixture(scope="module")
def pipe(folder) -> ConversationEmotionPipeline:
    return pipeline(TASK, model=folder)


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def damaged(content: bytes) -> dict[str, bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return {
        "cut off": content[: len(content) // 2],
        "cut off in its header": content[:20],
        "empty": b"",
        "huge header": struct.pack("<Q", 2**60) + content[8:],
        "other header": content[:8] + bytes(byte ^ 0xFF for byte in content[8:40]) + content[40:],
        "other offsets": content[:8] + content[8 : 8 + length].replace(b"[0,", b"[4,", 1) + content[8 + length :],
        "other shapes": content[:8]
        + content[8 : 8 + length].replace(b'"shape":[', b'"shape":[9', 1)
        + content[8 + length :],
    }


PLACES = {"": MisterEModel, "speech_encoder": UtteranceEncoder, "text_encoder": UtteranceEncoder}


def load(folder: Path, place: str):
    return PLACES[place].from_pretrained(folder, **({"subfolder": place} if place else {}))


@pytest.mark.parametrize("place", PLACES)
def test_damaged_weights_are_named(folder, tmp_path, place):
    broken = copy_of(folder, tmp_path / "broken")
    path = broken / place / "model.safetensors"
    for kind, content in damaged(path.read_bytes()).items():
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(
            OSError, match=f"'{re.escape(str(path))}' is damaged, or was truncated.*Save or download it again"
        ):
            load(broken, place)
            pytest.fail(kind)
        turn = {"text": "a"} if place == "text_encoder" else {"audio": tone(1, 200), "sampling_rate": RATE}
        with pytest.raises((OSError, ValueError), match=re.escape(f"'{path}' is damaged")):
            pipeline(TASK, model=broken)([turn])


def test_damaged_adapter_and_backbone_are_named(tmp_path):
    backbone = write_backbone(tmp_path / "backbone", "text")
    tiny_encoder(backbone, "text", tuning="lora")[0].save_pretrained(tmp_path / "encoder")
    adapter = tmp_path / "encoder" / "adapter" / "adapter_model.safetensors"
    for path in (adapter, backbone / "model.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        with pytest.raises(OSError, match=f"'{re.escape(str(path))}' is damaged"):
            UtteranceEncoder.from_pretrained(tmp_path / "encoder")
        path.write_bytes(whole)
    assert UtteranceEncoder.from_pretrained(tmp_path / "encoder").config.tuning == "lora"


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json", "config.json"])
def test_damaged_files_beside_the_weights_are_named(folder, tmp_path, name):
    broken = copy_of(folder, tmp_path / "broken")
    (broken / "text_encoder" / name).unlink()
    (broken / "text_encoder" / name).write_text('{"model_type": ')
    with pytest.raises((OSError, ValueError), match=re.escape(f"{broken}/text_encoder")):
        pipeline(TASK, model=broken)([{"text": "a"}])


class Harm:
    """What unpickling runs."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def with_pickle(folder: Path, place: str, mark: Path, keep_weights: bool) -> Path:
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.bin"):
        torch.save({"weight": Harm(mark)}, folder / place / name)
    if not keep_weights:
        (folder / place / "model.safetensors").unlink()
    return folder


def set_config(folder: Path, place: str, **fields):
    path = folder / place / "config.json"
    config = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(config | fields))


@pytest.mark.parametrize("place", PLACES)
def test_a_pickle_is_refused(folder, tmp_path, place):
    broken = with_pickle(copy_of(folder, tmp_path / "broken"), place, tmp_path / "mark", keep_weights=False)
    where = re.escape(str(broken / place).rstrip("/"))
    with pytest.raises(
        OSError, match=f"'{where}' has no model.safetensors. Weights are read from safetensors only: .* is a pickle"
    ):
        load(broken, place)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("shard", ["../elsewhere/model.safetensors", "/elsewhere/model.safetensors", "model.bin"])
@pytest.mark.parametrize("place", ["", "text_encoder"])
def test_shards_lie_in_their_folder_as_safetensors(folder, tmp_path, place, shard):
    broken = with_pickle(copy_of(folder, tmp_path / "broken"), place, tmp_path / "mark", keep_weights=True)
    names = load_file(broken / place / "model.safetensors")
    shutil.copytree(broken / place, (broken / place).parent / "elsewhere")
    (broken / place / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (broken / place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=f"index.json' names '{shard}', which is not a safetensors file of its own folder"
    ):
        load(broken, place)
    assert not (tmp_path / "mark").exists()


SAYINGS = {
    "remote code": {"trust_remote_code": True},
    "weights of another name": {"transformers_weights": "pytorch_model.bin"},
    "weights elsewhere": {"transformers_weights": "../elsewhere/model.safetensors"},
    "pickles": {"use_safetensors": False},
    "no check": {"weights_only": False},
    "code of an Auto class": {"auto_map": {"AutoModel": "harm.Harm", "AutoConfig": "harm.Harm"}},
    "a pipeline": {"custom_pipelines": {TASK: {"impl": "harm.Harm", "pt": ["AutoModel"]}}},
    "an adapter": {"adapter": "../elsewhere"},
    "a subfolder": {"subfolder": "../elsewhere"},
    "another home": {"_name_or_path": "../elsewhere"},
}


@pytest.mark.parametrize("place", ["", "text_encoder"])
@pytest.mark.parametrize("saying", SAYINGS)
def test_configurations_run_no_code(folder, pipe, tmp_path, place, saying):
    broken = with_pickle(copy_of(folder, tmp_path / "broken"), place, tmp_path / "mark", keep_weights=True)
    for target in {broken, broken / place}:
        (target / "harm.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Harm: pass\n")
    set_config(broken, place, **SAYINGS[saying])
    # refused by name, or without an effect
    try:
        found = pipeline(TASK, model=broken)([{"text": "well"}])
    except ValueError as error:
        assert f"has no field '{next(iter(SAYINGS[saying]))}'" in str(error)
    else:
        assert_same(found, pipe([{"text": "well"}]), 0)
    assert not (tmp_path / "mark").exists()


def test_a_backbone_s_name_is_looked_up_and_no_more(tmp_path):
    """Whatever a checkpoint calls its backbone: a name on the Hub or a folder, whose weights are read as weights."""
    backbone = write_backbone(tmp_path / "backbone", "text")
    tiny_encoder(backbone, "text")[0].save_pretrained(tmp_path / "encoder")
    shutil.copytree(backbone, tmp_path / "elsewhere")
    set_config(tmp_path / "encoder", "", backbone=str(tmp_path / "elsewhere"))
    assert UtteranceEncoder.from_pretrained(tmp_path / "encoder").config.backbone == str(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "model.safetensors").unlink()
    torch.save({"weight": Harm(tmp_path / "mark")}, tmp_path / "elsewhere" / "pytorch_model.bin")
    (tmp_path / "elsewhere" / "harm.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Harm: pass\n")
    set_config(tmp_path / "elsewhere", "", auto_map={"AutoModel": "harm.Harm"}, model_type="bert")
    for name in (str(tmp_path / "elsewhere"), "../elsewhere", "pytorch_model.bin"):
        set_config(tmp_path / "encoder", "", backbone=name)
        with pytest.raises(Exception):  # noqa: B017
            UtteranceEncoder.from_pretrained(tmp_path / "encoder", local_files_only=True)
    assert not (tmp_path / "mark").exists()
