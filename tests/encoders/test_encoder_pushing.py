from pathlib import Path

import pytest

from support.loopback_hub import loopback_hub
from support.new_process import run_python

# By way of the Hub, each side in a process of its own


PUSH = """
import sys
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file

from mister_e_hf import MisterEConfig, MisterEModel, MisterEProcessor
from mister_e_hf.hub.checkpoint import push_checkpoint, save_checkpoint
from support.tiny_backbones import TEXTS, tiny_encoder, write_backbone

folder = Path(sys.argv[1])
HfApi().create_repo("org/base")
HfApi().upload_folder(repo_id="org/base", folder_path=write_backbone(folder / "base", "bert"))
encoder = tiny_encoder("org/base", "bert", tuning="lora", revision="main")
unnamed = tiny_encoder("org/base", "bert")
processor = MisterEProcessor.from_backbone("org/base", "text", prompt="Say: {text}")
HfApi().upload_folder(repo_id="org/base", folder_path=write_backbone(folder / "other", "bert", seed=1))

encoder.push_to_hub("org/pushed")
encoder.save_pretrained(folder / "saved", push_to_hub=True, repo_id="org/saved")
processor.save_pretrained(folder / "saved")
sizes = {"hidden_size": 8, "attention_dim": 6, "fusion_num_layers": 1}
stage_2 = MisterEConfig(speech_embedding_dim=3, text_embedding_dim=6, **sizes)
save_checkpoint(folder / "checkpoint", MisterEModel(stage_2), encoders={"text": folder / "saved"})
push_checkpoint(folder / "checkpoint", "org/checkpoint")

batch = dict(processor(TEXTS))
with torch.no_grad():
    save_file({**batch, "expected": encoder(**batch).logits}, folder / "expected.safetensors")
print(encoder.config.backbone_revision, unnamed.config.backbone_revision)
"""
WITHOUT_PACKAGE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mister_e_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
options = {"trust_remote_code": True}
"""
WITH_PACKAGE = """
import mister_e_hf

options = {}
"""
LOAD = """
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModel

batch = load_file(sys.argv[1] + "/expected.safetensors")
expected = batch.pop("expected")
for repo_id, where in (
    ("org/pushed", {}),
    ("org/saved", {}),
    ("org/checkpoint", {"subfolder": "text_encoder"}),
):
    encoder = AutoModel.from_pretrained(repo_id, **where, **options)
    with torch.no_grad():
        assert torch.equal(encoder(**batch).logits, expected), repo_id
print(type(encoder).__module__.partition(".")[0], encoder.config.backbone, encoder.config.backbone_revision)
"""
LOAD_PARTS = """
from peft import PeftModel
from transformers import AutoProcessor

from support.tiny_backbones import TEXTS

where = {"subfolder": "text_encoder"}
for name, values in AutoProcessor.from_pretrained("org/checkpoint", **where)(TEXTS).items():
    assert torch.equal(values, batch[name]), name
base = AutoModel.from_pretrained("org/base", revision=encoder.config.backbone_revision, dtype=torch.float32)
encoder.backbone = PeftModel.from_pretrained(base, "org/checkpoint", subfolder="text_encoder/adapter").base_model.model
with torch.no_grad():
    assert torch.equal(encoder.eval()(**batch).logits, expected)
"""


@pytest.mark.slow
def test_an_encoder_and_its_backbone_are_loaded_from_the_hub(tmp_path):
    with loopback_hub() as hub:

        def python(code: str, home: str) -> list[str]:
            call = run_python("-c", code, tmp_path, env=hub.env(tmp_path / home), cwd=Path(__file__).parents[1])
            assert call.returncode == 0, call.stdout + call.stderr
            return call.stdout.split()

        pinned = python(PUSH, "pusher")
        commits = hub.commits("org/base")  # an empty one, the backbone, another backbone in its place
        assert len(commits) == 3 and pinned == [commits[1]] * 2
        adapter = {f"adapter/adapter_{part}" for part in ("config.json", "model.safetensors")}
        for repo_id in ("org/pushed", "org/saved"):
            assert adapter | {"config.json", "model.safetensors", "backbones.py"} <= set(hub.files(repo_id))
        assert {f"text_encoder/{name}" for name in adapter} < set(hub.files("org/checkpoint"))
        assert not [name for name in hub.files("org/checkpoint") if name.endswith((".bin", ".pt"))]
        loaded = python(WITH_PACKAGE + LOAD + LOAD_PARTS, "user")
        assert loaded == ["mister_e_hf", "org/base", commits[1]]
        remote = python(WITHOUT_PACKAGE + LOAD, "stranger")
        assert remote == ["transformers_modules", "org/base", commits[1]]
