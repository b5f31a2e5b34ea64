"""EGMF on the Hub: its adapter there, the language model by its name and revision; with and without the package."""

import json
import os
import subprocess
import sys

from support.hidden_packages import HIDE
from support.loopback_hub import loopback_hub
from support.tiny_language_models import tiny_language_model

# Each part is a process that is forked before anything of the Hub is imported.
RUN = """
import json, os, sys
import torch, torch._dynamo, torch.distributed.tensor
torch.set_num_threads(1)
if (child := os.fork()) == 0:
    exec(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
exec(sys.argv[2])
"""
TURNS = """
turns = [{"text": "so well", "speech_embedding": [0.5, 1.0], "text_embedding": [1.0, -1.0, 0.5]}, {"text": "grr"}]
task = "conversation-emotion-recognition"
"""
WITH = (
    TURNS
    + """
import shutil
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
from huggingface_hub import HfApi
from mister_e_hf import cli
from mister_e_hf.hub.checkpoint import save_checkpoint
from mister_e_hf.models.egmf.configuration_egmf import EgmfConfig
from mister_e_hf.models.egmf.modeling_egmf import EgmfModel

local = os.environ["LANGUAGE_MODEL"]
language_model = AutoModelForCausalLM.from_pretrained(local)
language_model.push_to_hub("org/lm")
AutoTokenizer.from_pretrained(local).push_to_hub("org/lm")
fields = {"speech_embedding_dim": 2, "text_embedding_dim": 3, "hidden_size": 8, "num_attention_heads": 2}
config = EgmfConfig(**fields, id2label={0: "anger", 1: "joy"}, language_model="org/lm", lora={"r": 2})
model = EgmfModel.from_language_model(config).eval()
for parameter in model.parameters():
    if parameter.requires_grad:
        parameter.data.add_(0.1 * torch.randn_like(parameter))
first = HfApi().model_info("org/lm").sha
assert model.config.language_model_revision == first
save_checkpoint("checkpoint", model)
assert cli.main(["push", "checkpoint", "org/egmf", "--dry_run"]) == 0
assert cli.main(["push", "checkpoint", "org/egmf"]) == 0
for parameter in language_model.parameters():  # the name belongs to other weights now, the revision does not
    parameter.data.zero_()
language_model.push_to_hub("org/lm")
assert HfApi().model_info("org/lm").sha != first
loaded = AutoModel.from_pretrained("org/egmf")
state = loaded.state_dict()
assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
expected = pipeline(task, model=model)(turns, answers=True)
assert pipeline(task, model="org/egmf")(turns, answers=True) == expected
json.dump(expected, open("expected.json", "w"))
"""
)
WITHOUT = (
    HIDE
    + """
hide("mister_e_hf")
"""
    + TURNS
    + """
from transformers import pipeline
erc = pipeline(task, model="org/egmf", trust_remote_code=True)
assert type(erc.model).__module__.startswith("transformers_modules")
assert erc(turns, answers=True) == json.load(open("expected.json"))
"""
)


def test_a_checkpoint_that_names_its_language_model(tmp_path):
    with loopback_hub() as hub:
        environment = os.environ | hub.env(tmp_path / "home") | {"LANGUAGE_MODEL": tiny_language_model("llama")}
        call = subprocess.run(
            [sys.executable, "-c", RUN, WITH, WITHOUT],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=280,
        )
        assert call.returncode == 0, call.stdout + call.stderr
        pushed = set(hub.files("org/egmf"))
        adapter = {"language_model/adapter/adapter_config.json", "language_model/adapter/adapter_model.safetensors"}
        assert adapter | {"language_model/tokenizer.json", "config.json", "README.md"} <= pushed
        assert not {"language_model/model.safetensors", "adapter_config.json", "language_model/config.json"} & pushed
        config = json.loads(hub.read("org/egmf", "config.json"))
        assert config["language_model"] == "org/lm" and config["language_model_revision"] in hub.commits("org/lm")
        card = hub.read("org/egmf", "README.md").decode()
        assert "base_model:\n- org/lm" in card and "whose own licence applies to them" in card and "## Prompt" in card
    size = (tmp_path / "checkpoint" / "language_model" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert f"{size:,}  language_model/adapter/adapter_model.safetensors" in call.stdout
    assert "not pushed: the weights of the base model of language_model/; users get those of 'org/lm'" in call.stdout
    assert "base model: org/lm" in call.stdout
