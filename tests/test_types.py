"""Public names have types and completion, and objects say what they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jedi
import pytest
import torch

import mister_e_hf
from mister_e_hf import DialogueCollator, Recipe, read_corpus
from mister_e_hf.corpora.demo import LABELS, write_demo_corpus
from support.small_encoders import tiny_encoder, write_backbone

SOURCE = Path(mister_e_hf.__file__).parents[1]
# Of other libraries mypy reads what a configuration is made of, and nothing else: torch alone would take a minute.
MYPY = """
[mypy]
ignore_missing_imports = True
follow_imports = skip
""" + "".join(
    f"[mypy-{name}]\nfollow_imports = silent\n"
    for name in (
        "mister_e_hf.*",
        "huggingface_hub.dataclasses",
        "transformers",
        "transformers.configuration_utils",
        "transformers.integrations.heterogeneity.*",
        "transformers.modeling_rope_utils",
        "transformers.utils",
        "transformers.utils.hub",
    )
)


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> str:
    """What mypy says of each public name, and of a few uses."""
    folder = tmp_path_factory.mktemp("types")
    lines = [f"from mister_e_hf import {', '.join(mister_e_hf.__all__)}"]
    lines += [f"reveal_type({name})" for name in mister_e_hf.__all__]
    lines += ['reveal_type(Recipe.load("x"))', 'reveal_type(read_corpus("x"))', "MisterEConfig(hiden_size=3)"]
    (folder / "use.py").write_text("\n".join(lines) + "\n")
    (folder / "mypy.ini").write_text(MYPY)
    call = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", "cache", "use.py"],
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return call.stdout


def test_every_public_name_has_a_type(checked):
    revealed = re.findall(r'Revealed type is "(.*)"', checked.replace("builtins.", ""))  # which mypy 1 spells out
    assert len(revealed) == len(mister_e_hf.__all__) + 2, checked
    for name, kind in zip(mister_e_hf.__all__, revealed, strict=False):
        assert kind != "Any" and kind.startswith(("def (", "Overload(")), (name, kind)
        assert "->" in kind and (name[0].islower() or kind.endswith(f".{name}")), (name, kind)
    assert revealed[-2:] == [
        "mister_e_hf.training.recipe.Recipe",
        "dict[str, mister_e_hf.vectors.dialogue_vectors.DialogueVectors]",
    ]


def test_misspelt_field_of_a_configuration_is_a_type_error(checked):
    assert 'error: Unexpected keyword argument "hiden_size" for "MisterEConfig"; did you mean "hidden_size"' in checked


@pytest.mark.parametrize("code", ["from mister_e_hf import {}", "import mister_e_hf\nmister_e_hf.{}"])
def test_public_names_complete_in_an_editor(code):
    found = {completion.name for completion in jedi.Script(code.format("")).complete()}
    assert set(mister_e_hf.__all__) <= found
    assert {"MisterEConfig", "MisterEModel"} <= {each.name for each in jedi.Script(code.format("Mi")).complete()}


def test_members_complete_in_an_editor():
    completions = jedi.Script("from mister_e_hf import Recipe\nRecipe.lo").complete()
    assert [completion.name for completion in completions] == ["load"]


# repr


def test_repr_of_a_split(tmp_path):
    label2id = {name: index for index, name in enumerate(LABELS)}
    folder = write_demo_corpus(tmp_path / "demo")
    data = read_corpus(folder, label2id)["test"]
    shown = repr(data)
    assert shown.startswith("DialogueVectors({\n    split: test\n    num_dialogues: 100\n")
    assert f"    num_turns: {data.num_turns}\n" in shown
    assert f"    text: {data.num_turns} vectors of width 32\n" in shown
    assert f"    speech: {int(data.present['speech'].sum())} vectors of width 24\n" in shown
    for name, index in label2id.items():
        assert f"{name} {(data.labels == index).sum()}" in shown
    assert repr(data.vectors["text"]) == f"VectorColumn(num_rows={data.num_turns}, width=32, dtype={torch.float32})"


def test_repr_of_a_recipe():
    shown = repr(Recipe.load("demo"))
    assert shown.startswith("Recipe('") and "demo.yaml')\nmodel:\n" in shown and "  hidden_size: 48\n" in shown
    assert "learning_rate: 0.003" in shown


def test_repr_of_a_collator_and_a_processor(tmp_path):
    assert repr(DialogueCollator()).startswith("DialogueCollator(fields=['speech_embeddings', 'text_embeddings'")
    _, text = tiny_encoder(write_backbone(tmp_path / "text", "text"), "text")
    assert re.fullmatch(r"MisterEProcessor\(text for bert: \w+, max_tokens=\d+\)", repr(text))
    _, speech = tiny_encoder(write_backbone(tmp_path / "speech", "speech"), "speech")
    expected = "MisterEProcessor(speech for wavlm: Wav2Vec2FeatureExtractor, window_seconds="
    assert repr(speech).startswith(expected) and "\n" not in repr(speech)
