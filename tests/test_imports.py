import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mister_e_hf
from mister_e_hf import UtteranceEncoder
from support.checkpoint_code import BACKBONES, PIPELINE, PROCESSOR, SHARED, STAGE_1, STAGE_2, VIDEO, file_stems
from support.hidden_packages import HIDE
from support.new_process import run_python
from support.package_files import MODULES, PACKAGE, ROOMS, ROOT, file_of, imports, imports_at_the_top, reached
from support.tiny_backbones import tiny_batch, tiny_encoder, tiny_processor, write_backbone


def new_python(code: str, cwd: Path) -> str:
    """What the code prints in a process that has loaded nothing before."""
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=cwd, check=True, capture_output=True, text=True, timeout=200).stdout


def python(code: str, *words, cwd: Path, **environment: str) -> str:
    call = run_python("-c", code, *words, env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment, cwd=cwd)
    assert call.returncode == 0, call.stdout + call.stderr
    return call.stdout


IMPORT = """
import json, sys
import mister_e_hf
dir(mister_e_hf)
heavy = {"torch", "transformers", "datasets", "evaluate", "sklearn", "numpy", "pyarrow", "accelerate", "peft"}
heavy |= {"soundfile", "soxr", "av", "huggingface_hub"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    assert json.loads(new_python(IMPORT, tmp_path)) == []


def test_public_names_exist():
    for name in mister_e_hf.__all__:
        assert getattr(mister_e_hf, name).__name__ == name
    assert set(mister_e_hf.__all__) <= set(dir(mister_e_hf))
    with pytest.raises(AttributeError, match="no attribute 'MisterF'"):
        mister_e_hf.MisterF  # noqa: B018


_MODEL = "from transformers import AutoModel"
# By what all orders of a group begin with.
ORDERS = {
    "import mister_e_hf; import transformers": {
        "alone": [_MODEL],
        "before transformers": ["AutoModel = transformers.AutoModel"],
        "before AutoConfig": ["from transformers import AutoConfig", _MODEL],
        "before PreTrainedModel": ["from transformers import PreTrainedModel, AutoModel"],
        "before Trainer": ["from transformers import Trainer, AutoModel"],
        "before AutoProcessor": ["from transformers import AutoProcessor, AutoModel"],
    },
    "import transformers": {
        "after transformers": ["import mister_e_hf", "AutoModel = transformers.AutoModel"],
        "after AutoConfig": ["from transformers import AutoConfig", "import mister_e_hf", _MODEL],
        "after AutoModel": [_MODEL, "import mister_e_hf"],
        "after PreTrainedModel": ["from transformers import PreTrainedModel", "import mister_e_hf", _MODEL],
        "after Trainer": ["from transformers import Trainer", "import mister_e_hf", _MODEL],
        "after AutoProcessor": ["from transformers import AutoProcessor, AutoModel", "import mister_e_hf"],
    },
    "": {
        "after the model": ["from mister_e_hf import MisterEModel", _MODEL],
        "after a baseline": ["from mister_e_hf.models.baselines.sdt import SdtModel", _MODEL],
        "after a baseline by name": [
            "from mister_e_hf.models import registry",
            "registry.entry('mult').model_class()",
            _MODEL,
        ],
        "after the encoder": ["from mister_e_hf import UtteranceEncoder", _MODEL],
    },
}
# Each order runs in a process of its own, forked after what its group begins with.
FORK = """
import json, os, sys, traceback
import accelerate, datasets

assert not {"transformers", "mister_e_hf"} & {name.partition(".")[0] for name in sys.modules}
first, orders, stage_2, stage_1 = sys.argv[1:]
exec(first)
for name, order in json.loads(orders).items():
    child = os.fork()
    if child == 0:
        try:
            exec(order)
            import mister_e_hf
            from transformers import AutoConfig, AutoProcessor
            assert type(AutoConfig.from_pretrained(stage_2)) is mister_e_hf.MisterEConfig
            assert type(AutoModel.from_pretrained(stage_2)) is mister_e_hf.MisterEModel
            assert type(AutoModel.from_config(AutoConfig.from_pretrained(stage_2))) is mister_e_hf.MisterEModel
            assert type(AutoConfig.for_model("mister_e", hidden_size=6)) is mister_e_hf.MisterEConfig
            assert type(AutoConfig.from_pretrained(stage_1)) is mister_e_hf.UtteranceEncoderConfig
            assert type(AutoModel.from_pretrained(stage_1)) is mister_e_hf.UtteranceEncoder
            assert type(AutoModel.from_config(AutoConfig.from_pretrained(stage_1))) is mister_e_hf.UtteranceEncoder
            from mister_e_hf.models.registry import registered
            for each in registered():
                fields = {"speech_embedding_dim": 2, "text_embedding_dim": 2}
                if "hidden_size" in each.config_class().own_fields():
                    fields["hidden_size"] = 48
                if "language_model_config" in each.config_class().own_fields():
                    tiny = {"vocab_size": 9, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 8}
                    fields["language_model_config"] = {"model_type": "gpt2", **tiny}
                config = AutoConfig.for_model(each.model_type, **fields)
                assert type(AutoModel.from_config(config)) is each.model_class()
            assert type(AutoProcessor.from_pretrained(stage_1)) is mister_e_hf.MisterEProcessor
        except BaseException:
            print(f"{name}: {traceback.format_exc()}", flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(f"{name}: done", flush=True)
"""


@pytest.fixture
def saved(tiny_model, tmp_path) -> Path:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def saved_encoder(tmp_path):
    """Folder and model of a stage-1 encoder of text."""
    base = write_backbone(tmp_path / "base", "bert")

    def make(tuning: str) -> tuple[Path, UtteranceEncoder]:
        encoder = tiny_encoder(base, "bert", tuning=tuning, layer="weighted_sum", pooling="attentive_statistics")
        encoder.save_pretrained(tmp_path / tuning)
        tiny_processor(base, "bert").save_pretrained(tmp_path / tuning)
        return tmp_path / tuning, encoder

    return make


@pytest.mark.parametrize("first", ORDERS)
def test_auto_classes_know_our_models_in_every_order_of_imports(saved, saved_encoder, tmp_path, first):
    orders = json.dumps({name: "; ".join(lines) for name, lines in ORDERS[first].items()})
    printed = python(FORK, first, orders, saved, saved_encoder("full")[0], cwd=tmp_path)
    assert printed.splitlines() == [f"{name}: done" for name in ORDERS[first]], printed


ONLY_TORCH_AND_TRANSFORMERS = (
    HIDE
    + """
import sys

folder, stored, visible, *modules = sys.argv[1:]
packages = ["mister_e_hf", "datasets", "peft", "sklearn", "pandas", "pyarrow", "evaluate", "accelerate"]
packages += ["soundfile", "soxr"]
hidden = hide(*(name for name in packages if name not in visible.split()))
import torch
from safetensors.torch import load_file
from transformers import AutoModel

torch.set_num_threads(1)
stored = load_file(stored)
expected = {name.removeprefix("output."): stored.pop(name) for name in list(stored) if name.startswith("output.")}
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
loss = model(**stored).loss
loss.backward()
with torch.no_grad():
    output = model(**stored)
for name, value in expected.items():
    torch.testing.assert_close(output[name], value, rtol=0, atol=1e-6)
loaded = {name.rpartition(".")[2] for name in sys.modules if name.startswith("transformers_modules.")}
print(*sorted(loaded & set(modules)))
assert type(model).__module__.startswith("transformers_modules.")
assert not hidden & {name.partition(".")[0] for name in sys.modules}
model.save_pretrained(folder + "_again")
AutoModel.from_pretrained(folder + "_again", trust_remote_code=True)
"""
)


def assert_works_without_the_package(folder, model, batch, modules, tmp_path, visible=""):
    with torch.no_grad():
        output = model(**batch)
    stored = tmp_path / "stored.safetensors"
    save_file({**batch, **{f"output.{name}": value for name, value in output.items()}}, stored)
    words = (folder, stored, visible, *modules)
    loaded = python(ONLY_TORCH_AND_TRANSFORMERS, *words, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"))
    assert loaded.split() == sorted(modules)


def test_checkpoint_works_with_only_torch_and_transformers(saved, tiny_model, make_batch, tmp_path):
    model = tiny_model(dtype=torch.float32)
    batch = make_batch([3, 5], model.config, dtype=torch.float32, absent=0.3)
    assert {path.stem for path in saved.glob("*.py")} == file_stems(*STAGE_2, *STAGE_1, *PIPELINE)
    assert_works_without_the_package(saved, model, batch, file_stems(*STAGE_2), tmp_path)


@pytest.mark.parametrize(("tuning", "visible"), [("full", ""), ("lora", "peft accelerate")])
def test_encoder_works_with_only_torch_and_transformers(saved_encoder, tmp_path, tuning, visible):
    """LoRA also needs peft."""
    folder, encoder = saved_encoder(tuning)
    batch = tiny_batch(tmp_path / "base", "bert") | {"labels": torch.tensor([0, 2, 1])}
    assert {path.stem for path in folder.glob("*.py")} == file_stems(*STAGE_1, *PROCESSOR)
    assert_works_without_the_package(folder, encoder, batch, file_stems(*STAGE_1), tmp_path, visible)


def test_imports_are_found_also_inside_functions():
    model = imports(file_of("models.mister_e.modeling_mister_e"))
    assert model[0] == {"torch", "transformers"}
    assert {"models.mister_e.configuration_mister_e", "base.losses", "models.turns"} <= model[1]
    assert "hub.checkpoint" in imports(file_of("models.stored_models"))[1]  # inside a function
    assert "peft" in imports(file_of("encoders.adapters"))[0]  # inside a function
    assert {"base.losses", "vectors.collator"} <= imports(file_of("training.dialogue_trainer"))[1]
    assert "datasets" in imports(file_of("corpora.hub_datasets"))[0]  # inside a function
    assert {*STAGE_1, *STAGE_2, *PIPELINE} < set(MODULES)


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_rooms_import_one_way(module):
    room = module.partition(".")[0]
    allowed = ROOMS[: ROOMS.index(room) + 1]
    imported = {name.partition(".")[0] for name in imports(file_of(module))[1] if name in MODULES}
    assert imported <= {*allowed}


def test_every_folder_is_a_room():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    flat = {path.name for path in PACKAGE.glob("*.py")}
    assert flat == {"__init__.py", "__main__.py", "_registration.py"}


SIZES = {"src": 400, "scripts": 400, "tests": 600}


@pytest.mark.parametrize("folder", SIZES)
def test_no_file_is_too_long(folder):
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert lines and not {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > SIZES[folder]}


@pytest.mark.parametrize("module", ["base.losses", "models.turns"])
def test_losses_and_turns_import_only_torch(module):
    turns = {"base.devices", "base.errors", "models.turn_attention", "models.turn_recurrence"}
    others = {"models.turns": turns, "base.losses": {"base.modalities"}}
    assert reached(module) == ({"torch"}, {module, *others[module]})


CONFIGURATIONS = [name for name in MODULES if name.rpartition(".")[2].startswith("configuration")]


@pytest.mark.parametrize("module", CONFIGURATIONS)
def test_configurations_do_not_import_torch(module):
    outside, ours = reached(module)
    assert outside <= {"transformers", "huggingface_hub"}
    answers = {f"models.egmf.{name}" for name in ("answers", "text_tokens", "wording")}  # without torch, too
    assert ours <= {*CONFIGURATIONS, *answers, "base.errors", "base.modalities", "base.remote_code"}


MODELS = [name for name in MODULES if name.startswith("models.") and name != "models.mister_e.convert_reference"]


@pytest.mark.parametrize("module", MODELS)
def test_models_import_only_torch_and_transformers(module):
    outside, ours = reached(module)
    language = module.startswith("models.egmf.")  # a language model with LoRA
    # transformers requires the last three; peft is loaded when LoRA is used
    allowed = {"torch", "transformers", "huggingface_hub", "safetensors", "regex"} | ({"peft"} if language else set())
    assert outside <= allowed
    files = {"encoders.adapters", "hub.loading", "base.installation", "base.whole_files"} if language else set()
    assert ours <= {*SHARED, *MODELS, "hub.pretrained", "base.devices", *files}


def test_model_imports_the_files_of_its_checkpoint():
    assert reached("models.mister_e.modeling_mister_e")[1] == set(STAGE_2)


def test_registry_of_models_imports_no_model():
    names = ("configuration_conversation", "modeling_conversation", "pretraining")
    models = {f"models.{name}" for name in names}  # for type checkers
    others = {"base.errors", "hub.pretrained", "models.ablations"}
    assert imports(file_of("models.registry"))[1] & {*MODULES} == others | models


def test_pipeline_needs_neither_corpora_nor_trainers():
    outside, ours = reached("inference.pipeline_conversation_emotion")
    assert not {"datasets", "pyarrow", "accelerate", "sklearn", "scipy"} & outside
    turns = {"models.turns", "models.turn_attention", "models.turn_recurrence", "base.devices"}
    assert ours == {*PIPELINE, *STAGE_1, *turns, "models.configuration_conversation"}


def test_encoder_imports_only_torch_and_transformers_and_its_adapters_peft():
    outside, ours = reached("encoders.modeling_utterance_encoder")
    assert outside == {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "peft", "regex", "av"}
    assert [path.stem for path in PACKAGE.rglob("*.py") if "peft" in imports(path)[0]] == ["adapters"]
    assert ours == set(STAGE_1)


def test_processor_needs_neither_models_nor_corpora():
    outside, ours = reached("encoders.processing_utterance_encoder")
    assert outside == {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "av"}
    configuration = {"encoders.configuration_utterance_encoder", "base.configuration_labelled"}
    shared = {"base.errors", "base.modalities", "hub.loading", "base.remote_code"}
    assert ours == {*PROCESSOR, *BACKBONES, *configuration, *shared}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("corpora.")])
def test_corpora_never_import_torch(module):
    outside, ours = reached(module)
    assert not {"torch", "transformers", "safetensors"} & outside
    assert {name.partition(".")[0] for name in ours} <= {"base", "media", "corpora"}


def test_audio_imports_little():
    assert reached("media.audio") == (
        {"av", "numpy", "soundfile", "soxr"},
        {f"media.{name}" for name in ("audio", "audio_layout", "audio_objects", "media_files")}
        | {"base.errors", "base.interrupts"},
    )
    assert imports_at_the_top(file_of("media.audio")) == {"numpy", "soundfile", "soxr"}


def test_video_imports_little():
    assert reached("media.video") == ({"av", "numpy"}, {*VIDEO, "base.errors"})
    assert {name for part in VIDEO for name in imports_at_the_top(file_of(part))} == {"numpy"}


def test_commands_import_what_they_need_when_they_run():
    for path in (PACKAGE / "cli").glob("*.py"):
        assert imports_at_the_top(path) == set()
    assert {"corpora.store", "corpora.publishing", "corpora.summary"} <= imports(PACKAGE / "cli" / "corpus.py")[1]


HEAVY = """
import sys
import datasets  # 4.2 brings torch by itself
brought = set(sys.modules)
import mister_e_hf
for name in ("Iemocap", "Meld", "CmuMosi", "DialogueFolder", "load_audio"):
    getattr(mister_e_hf, name)
print(*sorted({"torch", "transformers", "sklearn", "av"} & (set(sys.modules) - brought)))
"""


def test_corpora_load_without_torch(tmp_path):
    assert new_python(HEAVY, tmp_path).split() == []


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_scripts_tests_or_the_command_line(module):
    outside, ours = imports(file_of(module))
    assert not {"scripts", "tests"} & outside
    assert module.partition(".")[0] in ("cli", "__main__") or not any(name.partition(".")[0] == "cli" for name in ours)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_tests_share_code_only_in_support(path):
    other_tests = re.findall(
        r"^ *(?:from|import) +(?:\w+\.)*test_\w+.*", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert other_tests == []
