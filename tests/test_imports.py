import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mister_e_hf
from mister_e_hf import UtteranceEncoder
from tiny_backbones import tiny_batch, tiny_encoder, tiny_processor, write_backbone

PACKAGE = Path(mister_e_hf.__file__).parent
# The files that go to the Hub with a model.
STAGE_1 = (
    "errors",
    "configuration_labelled",
    "configuration_utterance_encoder",
    "modeling_utterance_encoder",
    "backbones",
    "backbone_kinds",
    "backbone_trial",
    "adapters",
    "pooling",
    "loading",
    "losses",
    "remote_code",
)
STAGE_2 = (
    "errors",
    "configuration_labelled",
    "configuration_mister_e",
    "modeling_mister_e",
    "loading",
    "losses",
    "remote_code",
    "turns",
)
PIPELINE = (
    "pipeline_mister_e",
    "stored_stages",
    "processing_mister_e",
    "processor_files",
    "transcripts",
    "audio",
    "audio_layout",
    "audio_objects",
    "subtitles",
    "text_files",
    "raw_turns",
    "turn_vectors",
    "transcripts",
)


def python(code: str, *words, cwd: Path, **environment: str) -> str:
    call = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
    )
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
    assert json.loads(python(IMPORT, cwd=tmp_path)) == []


def test_public_names_are_there_and_no_others():
    for name in mister_e_hf.__all__:
        assert getattr(mister_e_hf, name).__name__ == name
    assert set(mister_e_hf.__all__) <= set(dir(mister_e_hf))
    with pytest.raises(AttributeError, match="no attribute 'MisterF'"):
        mister_e_hf.MisterF  # noqa: B018


ORDERS = {
    "alone": "import mister_e_hf; from transformers import AutoModel",
    "before transformers": "import mister_e_hf; import transformers; AutoModel = transformers.AutoModel",
    "after transformers": "import transformers; import mister_e_hf; AutoModel = transformers.AutoModel",
    "before AutoConfig": "import mister_e_hf; from transformers import AutoConfig; from transformers import AutoModel",
    "after AutoConfig": "from transformers import AutoConfig; import mister_e_hf; from transformers import AutoModel",
    "after AutoModel": "from transformers import AutoModel; import mister_e_hf",
    "before PreTrainedModel": "import mister_e_hf; from transformers import PreTrainedModel, AutoModel",
    "after PreTrainedModel": "from transformers import PreTrainedModel; import mister_e_hf; from transformers import AutoModel",
    "before Trainer": "import mister_e_hf; from transformers import Trainer, AutoModel",
    "after Trainer": "from transformers import Trainer; import mister_e_hf; from transformers import AutoModel",
    "before AutoProcessor": "import mister_e_hf; from transformers import AutoProcessor, AutoModel",
    "after AutoProcessor": "from transformers import AutoProcessor, AutoModel; import mister_e_hf",
    "after the model": "from mister_e_hf import MisterEModel; from transformers import AutoModel",
    "after a baseline": "from mister_e_hf.baselines.sdt import SdtModel; from transformers import AutoModel",
    "after a baseline by name": "from mister_e_hf import baselines; baselines.baseline_model('mult'); from transformers import AutoModel",
    "after the encoder": "from mister_e_hf import UtteranceEncoder; from transformers import AutoModel",
}
# Each order in a process of its own, forked where all that transformers builds on is loaded already and it itself is not.
FORK = """
import json, os, sys, traceback
import accelerate, datasets, scipy.stats, torch._dynamo, torch.distributed.tensor, torch.onnx

assert not {"transformers", "mister_e_hf"} & {name.partition(".")[0] for name in sys.modules}
stage_2, stage_1 = sys.argv[2:]
for name, order in json.loads(sys.argv[1]).items():
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
            from mister_e_hf.baselines import BASELINES, baseline_model
            for name in BASELINES:
                config = AutoConfig.for_model(f"erc_{name}", speech_embedding_dim=2, text_embedding_dim=2)
                assert type(AutoModel.from_config(config)) is baseline_model(name)
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


def test_auto_classes_know_ours_in_every_order_of_import(saved, saved_encoder, tmp_path):
    printed = python(FORK, json.dumps(ORDERS), saved, saved_encoder("full")[0], cwd=tmp_path)
    assert printed.splitlines() == [f"{name}: done" for name in ORDERS], printed


# Hides packages from import and from the look-ups by which transformers finds out what is installed.
ONLY_TORCH_AND_TRANSFORMERS = """
import sys

folder, stored, visible, *modules = sys.argv[1:]
HIDDEN = {"mister_e_hf", "datasets", "peft", "sklearn", "pandas", "pyarrow", "evaluate", "accelerate", "soundfile", "soxr"}
HIDDEN -= set(visible.split())

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
for name in HIDDEN:
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} is not hidden")

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
assert not HIDDEN & {name.partition(".")[0] for name in sys.modules}
model.save_pretrained(folder + "_again")
AutoModel.from_pretrained(folder + "_again", trust_remote_code=True)
"""


def assert_works_without_the_package(folder, model, batch, modules, tmp_path, visible=""):
    with torch.no_grad():
        output = model(**batch)
    stored = tmp_path / "stored.safetensors"
    save_file({**batch, **{f"output.{name}": value for name, value in output.items()}}, stored)
    words = (folder, stored, visible, *modules)
    loaded = python(ONLY_TORCH_AND_TRANSFORMERS, *words, cwd=tmp_path, HF_HOME=str(tmp_path / "cache"))
    assert loaded.split() == sorted(modules)


def test_checkpoint_works_where_only_torch_and_transformers_are_installed(saved, tiny_model, make_batch, tmp_path):
    model = tiny_model(dtype=torch.float32)
    batch = make_batch([3, 5], model.config, dtype=torch.float32, absent=0.3)
    assert {path.stem for path in saved.glob("*.py")} == {*STAGE_2, *STAGE_1, *PIPELINE}
    assert_works_without_the_package(saved, model, batch, STAGE_2, tmp_path)


@pytest.mark.parametrize(("tuning", "visible"), [("full", ""), ("lora", "peft accelerate")])
def test_encoder_works_where_only_torch_and_transformers_are_installed(saved_encoder, tmp_path, tuning, visible):
    """And peft, where LoRA is."""
    folder, encoder = saved_encoder(tuning)
    batch = tiny_batch(tmp_path / "base", "bert") | {"labels": torch.tensor([0, 2, 1])}
    assert {path.stem for path in folder.glob("*.py")} == {
        *STAGE_1,
        "processing_mister_e",
        "processor_files",
        "transcripts",
    }
    assert_works_without_the_package(folder, encoder, batch, STAGE_1, tmp_path, visible)


def imports(path: Path) -> tuple[set[str], set[str]]:
    """What a file imports anywhere in it: packages from outside, and modules of ours by their name below the package."""
    outside, ours = set(), set()
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            below = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == PACKAGE.name else []
            names = [node.module, *below]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([PACKAGE.name, *here[: len(here) - node.level + 1], *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names] + [base]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package != PACKAGE.name:
                outside.add(package)
            elif module := module_of(rest):
                ours.add(module)
    return outside - set(sys.stdlib_module_names), ours


def module_of(name: str) -> str | None:
    """The longest beginning of a dotted name that is a module of ours: names inside a module are none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:end])
    return None


def file_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"


def reached(module: str) -> tuple[set[str], set[str]]:
    """What a module imports, itself or by way of others of ours. Not by way of `hub`: a push needs the package, and tries for it."""
    outside, ours, waiting = set(), set(), {module}
    while waiting:
        current = waiting.pop()
        ours.add(current)
        more_outside, more_ours = imports(file_of(current))
        outside |= more_outside
        waiting |= more_ours - ours - {"hub"}
    return outside, ours


MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
)


def test_walk_sees_imports():
    assert imports(PACKAGE / "modeling_mister_e.py") == (
        {"torch", "transformers"},
        {"configuration_mister_e", "errors", "loading", "losses", "turns", "remote_code", "hub"},
    )
    assert reached("modeling_mister_e")[1] == set(STAGE_2)
    assert "peft" in imports(PACKAGE / "adapters.py")[0]  # inside a function
    assert {"losses", "collator", "hub"} <= imports(PACKAGE / "trainer.py")[1]
    assert "datasets" in imports(PACKAGE / "hub_datasets.py")[0]  # inside a function
    assert {*STAGE_1, *STAGE_2} < set(MODULES) and "corpora.demo" in MODULES


@pytest.mark.parametrize("module", ["losses", "turns"])
def test_losses_and_turns_import_torch_alone(module):
    assert reached(module) == ({"torch"}, {module} | ({"errors"} if module == "turns" else set()))


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("configuration_")])
def test_configurations_do_not_import_torch(module):
    outside, ours = reached(module)
    assert outside <= {"transformers", "huggingface_hub"}
    assert all(name.startswith("configuration_") or name in ("errors", "remote_code") for name in ours)


def test_model_imports_torch_and_transformers_alone():
    outside, ours = reached("modeling_mister_e")
    assert outside <= {
        "torch",
        "transformers",
        "huggingface_hub",
        "safetensors",
    }  # the last two come with transformers
    assert ours == set(STAGE_2)


BASELINE_MODULES = [name for name in MODULES if name.partition(".")[0] == "baselines"]


@pytest.mark.parametrize("module", BASELINE_MODULES)
def test_baselines_import_what_the_model_does(module):
    outside, ours = reached(module)
    assert outside <= {"torch", "transformers", "huggingface_hub", "safetensors"}
    assert ours <= {*STAGE_2, *BASELINE_MODULES}


def test_baselines_configurations_do_not_import_torch():
    assert reached("baselines") == (set(), {"baselines", "errors"})
    outside, ours = reached("baselines.configuration")
    assert outside <= {"transformers", "huggingface_hub"}
    assert ours == {"baselines.configuration", "configuration_labelled", "errors", "remote_code"}


def test_pipeline_needs_no_corpus_and_no_trainer():
    outside, ours = reached("pipeline_mister_e")
    assert not {"datasets", "pyarrow", "accelerate", "sklearn", "scipy"} & outside
    assert ours == {*PIPELINE, *STAGE_1, "turns"}


def test_encoder_imports_torch_and_transformers_alone_and_its_adapters_peft():
    outside, ours = reached("modeling_utterance_encoder")
    assert outside == {"torch", "transformers", "huggingface_hub", "safetensors", "peft", "regex"}
    assert [path.stem for path in PACKAGE.rglob("*.py") if "peft" in imports(path)[0]] == ["adapters"]
    assert ours == set(STAGE_1)
    assert reached("backbones") == ({"torch", "transformers"}, {"backbones", "backbone_kinds", "errors"})


def test_processor_needs_no_model_and_no_corpus():
    outside, ours = reached("processing_mister_e")
    assert outside == {"torch", "transformers", "numpy", "huggingface_hub", "safetensors"}
    own = {"processing_mister_e", "processor_files", "transcripts"}
    assert ours == {*own, "backbone_kinds", "errors", "loading", "remote_code"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.partition(".")[0] == "corpora"])
def test_corpora_never_import_torch(module):
    outside, ours = reached(module)
    assert not {"torch", "transformers", "safetensors"} & outside
    shared = {"audio", "audio_layout", "audio_objects", "errors", "files", "licences", "plain_text", "progress"}
    shared |= {"text_files", "subtitles"}
    assert all(name.partition(".")[0] == "corpora" for name in ours - shared)


def imports_at_the_top(path: Path) -> set[str]:
    """Packages from outside that a file imports whenever it is imported itself."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
        else:  # such as try, with imports in it
            inside = ast.walk(node) if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ImportFrom) else []
            assert not any(isinstance(part, ast.Import | ast.ImportFrom) for part in inside)
    return names - set(sys.stdlib_module_names)


def test_audio_imports_little():
    assert reached("audio") == (
        {"av", "numpy", "soundfile", "soxr"},
        {"audio", "audio_layout", "audio_objects", "errors"},
    )
    assert imports_at_the_top(PACKAGE / "audio.py") == {"numpy", "soundfile", "soxr"}


def test_the_command_line_imports_what_a_command_needs_when_it_runs():
    for path in (PACKAGE / "cli").glob("*.py"):
        assert imports_at_the_top(path) == set()
    assert {"corpora.store", "corpora.publishing", "corpora.summary"} <= imports(PACKAGE / "cli" / "corpus.py")[1]


HEAVY = """
import sys
import datasets  # 4.2 brings torch by itself
brought = set(sys.modules)
import mister_e_hf
builders = [mister_e_hf.Iemocap, mister_e_hf.Meld, mister_e_hf.CmuMosi, mister_e_hf.DialogueFolder, mister_e_hf.load_audio]
print(*sorted({"torch", "transformers", "sklearn", "av"} & (set(sys.modules) - brought)))
"""


def test_corpora_load_without_torch(tmp_path):
    assert python(HEAVY, cwd=tmp_path).split() == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_scripts_the_tests_or_the_command_line(module):
    outside, ours = imports(file_of(module))
    assert not {"scripts", "tests"} & outside
    assert module.partition(".")[0] in ("cli", "__main__") or not any(name.partition(".")[0] == "cli" for name in ours)
