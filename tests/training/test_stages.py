import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from mister_e_hf import UtteranceEncoder, cli, read_corpus
from mister_e_hf.corpora.dialogues import load_dialogues
from mister_e_hf.hub.checkpoint import ENCODER_FILES, PUSHED_FILES
from mister_e_hf.training import stages
from mister_e_hf.training.encoder_experiment import train_encoder
from mister_e_hf.training.recipe import Recipe
from support.hidden_packages import HIDE
from support.loopback_hub import loopback_hub
from support.new_process import run_python
from support.small_demo import RECIPE, SHORT, run_small_demo

ROOT = Path(__file__).parents[2]
# The outputs of stage 1 and stage 2 where only torch, transformers and safetensors can be imported.
WITHOUT_THE_PACKAGE = (
    HIDE
    + """
import sys

hide("mister_e_hf", "datasets", "pyarrow", "soundfile", "soxr", "accelerate", "sklearn")
from transformers import AutoModel

repo = sys.argv[1]
model = AutoModel.from_pretrained(repo, trust_remote_code=True)
for modality in ("speech", "text"):
    encoder = AutoModel.from_pretrained(repo, subfolder=f"{modality}_encoder", trust_remote_code=True)
    assert encoder.config.modality == modality and type(encoder).__module__.startswith("transformers_modules.")
print(type(model).__name__, type(encoder).__name__)
"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return run_small_demo(tmp_path_factory.mktemp("stages") / "run")


def words(run: Path, corpus: Path | None = None) -> list[str]:
    backbones = [
        word
        for modality in ("speech", "text")
        for word in (f"--{modality}_encoder.backbone", str(run / "demo" / "backbones" / modality))
    ]
    return [
        str(RECIPE),
        "--corpus",
        str(corpus or run / "demo" / "corpus"),
        "--output_dir",
        str(run),
        *SHORT,
        *backbones,
    ]


def test_folder_holds_every_stage_and_each_loads_alone(run):
    assert {path.name for path in (run / "speech_encoder").iterdir()} == {
        *("config.json", "model.safetensors", "processor_config.json", "preprocessor_config.json")
    }
    assert {path.name for path in (run / "text_encoder").iterdir()} == {
        *("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
    }
    model = AutoModel.from_pretrained(run)
    assert model.config.speech_embedding_dim == 32
    for modality in ("speech", "text"):
        encoder = AutoModel.from_pretrained(run, subfolder=f"{modality}_encoder")
        assert type(encoder) is UtteranceEncoder and encoder.config.modality == modality
        assert AutoProcessor.from_pretrained(run, subfolder=f"{modality}_encoder").modality == modality
        trained = AutoModel.from_pretrained(stages.encoder_folder(run, modality))
        for name, weight in trained.state_dict().items():
            assert torch.equal(weight, encoder.state_dict()[name]), name


def test_code_of_the_card_makes_the_vectors(run):
    card = (run / "README.md").read_text().replace("REPOSITORY", str(run))
    audio, texts = [np.zeros(8000, dtype=np.float32)], ["really"]
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 4
    for snippet in snippets[2:]:
        names = {"audio": audio, "transcripts": texts}
        exec(snippet, names)
        assert names["vectors"].shape == (1, 32)
    assert "vectors of audio are computed with `speech_encoder/`" in card and str(run / "demo") not in card


def test_vectors_are_those_of_the_encoders_in_the_folder(run):
    corpus = read_corpus(run / "vectors")
    table = pq.read_table(next((run / "vectors").glob("test-*.parquet"))).to_pylist()
    encoder = AutoModel.from_pretrained(run, subfolder="text_encoder").eval()
    processor = AutoProcessor.from_pretrained(run, subfolder="text_encoder")
    with torch.no_grad():
        vectors = encoder(**processor(table[0]["texts"])).embeddings
    torch.testing.assert_close(corpus["test"][0]["text_embeddings"], vectors, rtol=0, atol=1e-5)


def test_finished_stages_are_skipped(run):
    files = [*run.rglob("results.json"), *run.rglob("*.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert cli.main(["train", *words(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before and len(before) > 6


def test_checkpoint_includes_the_encoders_of_its_vectors(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run / "encoders", folder / "encoders")
    embed = [*words(run)[:3], "--output_dir", str(folder), *words(run)[5:], "--out", str(tmp_path / "vectors")]
    assert cli.main(["embed", *embed]) == 0
    command = [str(RECIPE), "--corpus", str(tmp_path / "vectors"), "--output_dir", str(folder), *SHORT]
    assert 0 == cli.main(["train", *command, "--text_embedding_dim", "7"])  # of a recipe for other vectors
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    for modality in ("speech", "text"):
        weights = f"{modality}_encoder/model.safetensors"
        assert (folder / weights).read_bytes() == (run / weights).read_bytes()


def test_checkpoint_excludes_encoders_of_other_vectors(run, tmp_path):
    folder = shutil.copytree(run / "encoders", tmp_path / "run" / "encoders").parent
    for results in folder.rglob("results.json"):
        results.write_text(results.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    assert 0 == cli.main(["train", str(RECIPE), "--corpus", str(run / "vectors"), "--output_dir", str(folder), *SHORT])
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*_encoder"))


def test_a_corpus_of_vectors_trains_stage_2_alone(run, tmp_path):
    command = [str(RECIPE), "--corpus", str(run / "vectors"), "--output_dir", str(tmp_path / "run"), *SHORT]
    assert cli.main(["train", *command]) == 0
    assert not (tmp_path / "run" / "encoders").exists() and not (tmp_path / "run" / "text_encoder").exists()
    assert (tmp_path / "run" / "results.json").is_file()


def test_commands_train_and_embed(run, tmp_path, capsys):
    assert cli.main(["train", *words(run)]) == 0
    assert "mixture" in capsys.readouterr().out
    assert cli.main(["embed", *words(run), "--out", str(tmp_path / "vectors")]) == 0
    first, again = read_corpus(run / "vectors"), read_corpus(tmp_path / "vectors")
    for split in first:
        for modality in ("speech", "text"):
            expected = first[split].vectors[modality].rows(0, first[split].num_turns)
            assert torch.equal(again[split].vectors[modality].rows(0, again[split].num_turns), expected)


def test_embedding_with_trained_encoders_needs_no_backbone(run, tmp_path):
    recipe = Recipe.load(RECIPE, ["--corpus", str(run / "demo" / "corpus")])
    assert "backbone" not in recipe.sections["text_encoder"]
    found = read_corpus(stages.embed(recipe, run, tmp_path / "vectors"), splits=("test",))["test"]
    assert torch.equal(found[0]["text_embeddings"], read_corpus(run / "vectors")["test"][0]["text_embeddings"])


def test_embedding_needs_trained_encoders(run, tmp_path):
    recipe = Recipe.load(RECIPE, words(run)[5:])
    with pytest.raises(FileNotFoundError, match="No trained encoder of speech .* train it first"):
        stages.embed(recipe, tmp_path, corpus=run / "demo" / "corpus")
    recipe = Recipe({"corpus": {"labels": ["a", "b"], "path": "x"}})
    with pytest.raises(ValueError, match="no section of an encoder"):
        stages.embed(recipe, tmp_path)


def test_cross_fitted_vectors_need_the_training_corpus(run, tmp_path):
    recipe = Recipe.load(RECIPE, [*words(run)[1:3], *words(run)[5:], "--text_encoder.folds", "2"])
    with pytest.raises(FileNotFoundError, match="No trained encoder of text in '.*folds/0-of-2'; train it first"):
        stages.embed(recipe, run, tmp_path / "vectors")
    copy = tmp_path / "run"
    shutil.copytree(run / "encoders", copy / "encoders")
    train_encoder(recipe, "text", stages.encoder_folder(copy, "text"))
    crossed = read_corpus(stages.embed(recipe, copy, tmp_path / "vectors"))
    plain = read_corpus(run / "vectors")
    for split, data in crossed.items():
        for modality in ("speech", "text"):
            pair = [corpus[split].vectors[modality].rows(0, data.num_turns) for corpus in (crossed, plain)]
            assert torch.equal(*pair) == ((split, modality) != ("train", "text"))
    fewer = load_dialogues(run / "demo" / "corpus")
    fewer["train"] = fewer["train"].select(range(5))
    with pytest.raises(ValueError, match="this corpus has others; set folds to 0"):
        stages.embed(recipe, copy, tmp_path / "fewer", corpus=fewer)


def test_an_encoder_without_a_backbone_raises_before_training(run, tmp_path, capsys):
    words = [str(RECIPE), "--corpus", str(run / "demo" / "corpus"), "--output_dir", str(tmp_path / "run")]
    assert cli.main(["train", *words]) == 2
    assert "no speech_encoder.backbone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_pushed_folder_loads_without_the_package(run, tmp_path):
    with loopback_hub() as hub:
        environment = os.environ | hub.env(tmp_path / "home")

        def python(code: str, *arguments: str) -> str:
            call = run_python("-c", code, *arguments, env=environment)
            assert call.returncode == 0, call.stdout + call.stderr
            return call.stdout

        python(
            "import sys; from mister_e_hf.hub.checkpoint import push_checkpoint; "
            "push_checkpoint(sys.argv[1], 'org/run')",
            str(run),
        )
        pushed = set(hub.files("org/run")) - {".gitattributes"}
        allowed = {path.relative_to(run).as_posix() for name in PUSHED_FILES for path in run.glob(name)}
        for encoder in ("speech_encoder", "text_encoder"):
            allowed |= {
                path.relative_to(run).as_posix() for name in ENCODER_FILES for path in (run / encoder).glob(name)
            }
        assert pushed == allowed
        assert {"speech_encoder/model.safetensors", "modeling_utterance_encoder.py", "turns.py"} <= pushed
        assert python(WITHOUT_THE_PACKAGE, "org/run").split() == ["MisterEModel", "UtteranceEncoder"]


def test_encoder_results_describe_the_encoder(run):
    for modality in ("speech", "text"):
        results = json.loads((stages.encoder_folder(run, modality) / "results.json").read_text())
        assert results["modality"] == modality
        assert 0 < results["trained_parameters"] <= results["parameters"]
        assert set(results["test"]["intervals"]) >= {"weighted_f1"}
