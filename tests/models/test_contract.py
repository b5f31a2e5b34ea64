"""
The contract of a conversation model, for every registered model; its checks are in `support/model_contract.py`,
`modality_contract.py` and `score_contract.py`.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mister_e_hf.base.errors import InputError
from mister_e_hf.models.registry import RegisteredModel, entry, entry_of, register, registered
from support.distributed_contract import gradient_of_a_step
from support.forks import run_processes
from support.hidden_packages import HIDE
from support.modality_contract import MODALITY_CHECKS, choices
from support.model_contract import CHECKS, assert_same, outputs_of, small_batch, small_model
from support.new_process import run_python
from support.score_contract import SCORE_CHECKS

NAMES = [each.name for each in registered()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", (*CHECKS, *MODALITY_CHECKS, *SCORE_CHECKS), ids=lambda check: check.__name__)
def test_model(check, name, tmp_path):
    check(name, tmp_path)


def test_models_take_the_choices_of_modalities_that_they_say():
    one_to_three = ("emo_caps", "egmf_fusion", "egmf", "logistic_regression", "bc_lstm", "dialogue_rnn", "mult")
    assert {name: len(choices(name)) for name in NAMES} == {"mister_e": 4, **dict.fromkeys(one_to_three, 7), "sdt": 1}


def python(*words, **environment: str) -> str:
    call = run_python(*words, env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment)
    assert call.returncode == 0, call.stdout + call.stderr
    return call.stdout


def test_two_processes_give_the_gradient_of_one(tmp_path):
    run_processes(2, "distributed_contract.py", tmp_path, *NAMES)
    for name in NAMES:
        expected = gradient_of_a_step(name, tmp_path / "alone", batch_size=4)
        assert_same(load_file(tmp_path / f"{name}.safetensors"), expected, 2e-6)


# Hides everything but torch and transformers, then loads each checkpoint with the code beside it.
WITHOUT_THE_PACKAGE = (
    HIDE
    + """
import json, sys

hidden = hide("mister_e_hf", "datasets", "peft", "sklearn", "pandas", "pyarrow", "evaluate", "accelerate")
import torch
from safetensors.torch import load_file
from transformers import AutoModel

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    stored = load_file(f"{folder}/stored.safetensors")
    expected = {name.removeprefix("output."): stored.pop(name) for name in list(stored) if name.startswith("output.")}
    stored |= json.load(open(f"{folder}/transcripts.json"))
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    view = model.view(model(**stored))
    heads = {f"head {name}": logits for name, logits in (view.head_logits or {}).items()}
    found = {"logits": view.logits, **heads}
    found |= {name: getattr(view, name) for name in expected if name.endswith("_weights")}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    view.loss.backward()
    model.save_pretrained(folder + "_again")
    AutoModel.from_pretrained(folder + "_again", trust_remote_code=True)
assert not hidden & {name.partition(".")[0] for name in sys.modules}
"""
)


def test_checkpoints_load_with_their_own_code_without_the_package(tmp_path):
    folders = []
    for name in NAMES:
        model, folder = small_model(name, torch.float32), tmp_path / name
        model.save_pretrained(folder)
        batch = small_batch(model.config, dtype=torch.float32)
        outputs = {f"output.{key}": values.clone() for key, values in outputs_of(model, batch).items()}
        words = {key: batch.pop(key) for key in [*batch] if key == "transcripts"}
        (folder / "transcripts.json").write_text(json.dumps(words))
        save_file(batch | outputs, folder / "stored.safetensors")
        folders.append(folder)
    python("-c", WITHOUT_THE_PACKAGE, *folders, HF_HOME=str(tmp_path / "cache"))


# Stage 2 of every model runs where LoRA's library is not installed.
WITHOUT_PEFT = """
import json, sys

sys.modules["peft"] = None
from support.distributed_contract import gradient_of_a_step

for name in sys.argv[2:]:
    gradient_of_a_step(name, f"{sys.argv[1]}/{name}", batch_size=4)
assert not [name for name in sys.modules if name.startswith("peft.")]
"""


@pytest.mark.slow
def test_stage_2_runs_without_peft(tmp_path):
    python("-c", WITHOUT_PEFT, tmp_path, *NAMES, PYTHONPATH=str(Path(__file__).parents[1]))


# The registry


def test_unknown_models_are_named():
    expected = ", ".join(NAMES)
    with pytest.raises(InputError, match=f"Unknown model 'lstm'; expected one of {expected}"):
        entry("lstm")
    types = ", ".join(each.model_type for each in registered())
    with pytest.raises(InputError, match=f"Unknown model type 'bert'; expected one of {types}"):
        entry_of("bert")
    with pytest.raises(InputError, match="'sdt' or of type 'erc_sdt' is registered already"):
        register(RegisteredModel("sdt", "erc_sdt", "", ""))


@pytest.mark.parametrize("name", NAMES)
def test_registered_settings_are_fields_of_the_model_and_its_training(name):
    from mister_e_hf.training.recipe_sections import training_fields

    known = {
        "model": entry(name).config_class().own_fields(),
        "training": training_fields(entry(name).model_type),
    }
    assert set(entry(name).training) <= set(known["training"])
    changed = [field for ablation in entry(name).ablations.values() for field in ablation.changes]
    for field in (*entry(name).search_space, *changed):
        section, _, own = field.partition(".")
        assert own in known[section], field
    assert json.dumps(entry(name).search_space)
