"""The pipeline in fresh processes: every order of import, from disk and Hub, with and without the package."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import (
    pipeline,
)

from mister_e_hf import (
    ConversationEmotionPipeline,
)
from support.hidden_packages import HIDE
from support.loopback_hub import TOKEN, loopback_hub
from support.new_process import run_python
from support.small_checkpoint import write_checkpoint
from support.small_pipeline import TASK, numbers, write_recordings


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pipeline") / "run")


@pytest.fixture(scope="module")
def pipe(folder) -> ConversationEmotionPipeline:
    return pipeline(TASK, model=folder)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("sounds"))


# Each child is a process of its own, into which neither transformers nor this package was imported.
CHILDREN = """
import json, os, sys, traceback

known = {name.partition(".")[0] for name in sys.modules}
assert not {"transformers", "mister_e_hf", "huggingface_hub"} & known
told = json.loads(sys.argv[1])
for step in json.loads(sys.argv[2]):
    children = {}
    for name, code in step.items():
        if (child := os.fork()) == 0:
            try:
                exec(code, names := dict(told))
                with open(name + ".json", "w") as file:
                    json.dump(names["found"], file)
            except BaseException:
                print(name, traceback.format_exc(), flush=True)
                os._exit(1)
            os._exit(0)
        children[child] = name
    failed = [name for child, name in children.items() if os.waitpid(child, 0)[1]]
    assert not failed, failed
    for name in children.values():
        with open(name + ".json") as file:
            told[name] = json.load(file)
"""
CLASS_FIRST = """
from mister_e_hf import ConversationEmotionPipeline, MisterEModel

found = {"first": ConversationEmotionPipeline(MisterEModel.from_pretrained(first))(turns)}
from huggingface_hub import HfApi
from transformers import pipeline
from mister_e_hf.hub.checkpoint import push_checkpoint

assert type(pipeline(task, model=first)) is ConversationEmotionPipeline
shas = [HfApi().model_info(push_checkpoint(folder, "org/name")).sha for folder in (first, second)]
push_checkpoint(second, "org/secret", private=True)
push_checkpoint(first, "org/moving")
found = {"found": found, "shas": shas}
"""
PACKAGE_FIRST = """
import mister_e_hf
from transformers import pipeline

moving = pipeline(task, model="org/moving")
mister_e_hf.MisterEModel.from_pretrained(second).push_to_hub("org/moving")
found = {
    "first": pipeline(task, model=first)(turns),
    "second": pipeline(task, model="org/name")(turns),
    "first as pushed": pipeline(task, model="org/name", revision=pushed["shas"][0])(turns),
    "first before the push": moving(turns),
    "second after the push": pipeline(task, model="org/moving")(turns),
}
assert not any(name.startswith("transformers_modules") for name in __import__("sys").modules)
"""
PACKAGE_LAST = """
import os
os.environ.pop("HF_TOKEN")
from transformers import AutoModel, pipeline
import mister_e_hf

found = {
    "first": pipeline(task, model=first)(turns),
    "first by object": pipeline(task, model=AutoModel.from_pretrained("org/name", revision=pushed["shas"][0]))(turns),
    "second with a token": pipeline(task, model="org/secret", token=token)(turns),
}
assert not any(name.startswith("transformers_modules") for name in __import__("sys").modules)
found["first by its own code"] = pipeline(task, model=first, trust_remote_code=True)(turns)
"""
WITHOUT_THE_PACKAGE = (
    HIDE
    + """
import sys

hidden = hide(
    "mister_e_hf", "datasets", "pyarrow", "pandas", "sklearn", "scipy", "accelerate", "peft", "evaluate", "av"
)
from transformers import pipeline

found = {
    "first": pipeline(task, model=first, trust_remote_code=True)(turns),
    "second": pipeline(task, model="org/name", trust_remote_code=True)(turns),
    "first as pushed": pipeline(task, model="org/name", revision=pushed["shas"][0], trust_remote_code=True)(turns),
    "second without a task": pipeline(model="org/name", trust_remote_code=True)(turns),
}
try:
    pipeline(task, model=first, trust_remote_code=False)
    raise AssertionError("its code was run")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
assert not hidden & {name.partition(".")[0] for name in sys.modules}
"""
)


@pytest.mark.slow
def test_it_loads_in_every_order_from_disk_and_hub_and_without_the_package(folder, pipe, sounds, tmp_path):
    second = write_checkpoint(tmp_path / "second", seed=2)
    turns = [
        {"audio": str(sounds / "clip.wav"), "text": "so you see"},
        {"text": "well"},
        {"audio": str(sounds / "clip.wav")},
    ]
    expected = {"first": pipe(turns), "second": pipeline(TASK, model=second)(turns)}
    assert not np.allclose(numbers(expected["first"]), numbers(expected["second"]), atol=0.01)
    told = {"first": str(folder), "second": str(second), "turns": turns, "task": TASK, "token": TOKEN}
    children = {"before": PACKAGE_FIRST, "after": PACKAGE_LAST, "without": WITHOUT_THE_PACKAGE}
    with loopback_hub() as hub:
        steps = json.dumps([{"pushed": CLASS_FIRST}, children])
        call = run_python("-c", CHILDREN, json.dumps(told), steps, env=hub.env(tmp_path / "home"), cwd=tmp_path)
    assert call.returncode == 0, call.stdout + call.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("pushed", *children)}
    found["pushed"] = found["pushed"]["found"]
    for child, results in found.items():
        for name, result in results.items():
            difference = np.abs(numbers(result) - numbers(expected[name.partition(" ")[0]])).max()
            assert difference < 1e-5, (child, name)
