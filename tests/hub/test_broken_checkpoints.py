"""Damaged, hostile or broken checkpoints: every command reports them in one line that names file and field."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import pipeline

from mister_e_hf import MisterEConfig, MisterEModel, MisterEProcessor, UtteranceEncoder, cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.modalities import TASK
from mister_e_hf.hub.checkpoint import pushed_contents, save_checkpoint
from mister_e_hf.vectors.store import write_vectors
from support.tiny_backbones import LABELS, tiny_encoder, tiny_processor, write_backbone

TURNS = "dialogue_id,order,text\nd,0,hello there\nd,1,no\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a checkpoint of two stages, `c`; vectors, `v`; and a table of turns, `turns.csv`."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    base = write_backbone(folder / "base", "bert")
    encoder = tiny_encoder(base, "bert", tuning="lora")
    config = MisterEConfig(
        speech_embedding_dim=4,
        text_embedding_dim=encoder.config.embedding_dim,
        hidden_size=8,
        attention_dim=6,
        id2label=LABELS,
    )
    recipe = {"corpus": {"path": "v"}, "text_encoder": {"backbone": str(base)}}
    encoder.save_pretrained(folder / "encoder")
    tiny_processor(base, "bert").save_pretrained(folder / "encoder")
    save_checkpoint(folder / "c", MisterEModel(config), recipe, encoders={"text": folder / "encoder"})
    (folder / "turns.csv").write_text(TURNS)
    for split in ("train", "validation", "test"):
        labels = [list(LABELS.values()), ["joy", "anger"]]
        ids = [f"{split}_0", f"{split}_1"]
        table = pa.table(
            {
                "dialogue_id": ids,
                "utterance_ids": [[f"u{turn}" for turn in range(len(turns))] for turns in labels],
                "labels": labels,
            }
        )
        count = sum(map(len, labels))
        widths = {"speech": 4, "text": encoder.config.embedding_dim}
        features = {f"{name}_features": torch.randn(count, width) for name, width in widths.items()}
        write_vectors(folder / "v", split, table, **features)
    return folder


@pytest.fixture
def spoiled(whole, tmp_path) -> Callable[[Callable[[Path], None]], Path]:
    def make(spoil: Callable[[Path], None]) -> Path:
        folder = Path(shutil.copytree(whole / "c", tmp_path / "c"))
        spoil(folder)
        return folder

    return make


@pytest.fixture
def refused(whole, capfd, monkeypatch) -> Callable[..., str]:
    """The one line in which a command refuses a checkpoint."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(command: str, folder: Path) -> str:
        words = {
            "evaluate": ["evaluate", folder, "--corpus", whole / "v", "--use_cpu"],
            "predict": ["predict", whole / "turns.csv", "--model", folder],
            "doctor": ["doctor", folder],
            "push": ["push", folder, "org/name", "--dry_run", "--base_model", "text=org/tiny"],
        }[command]
        status = cli.main([str(word) for word in words])
        printed, error = capfd.readouterr()
        assert status == 2 and "Traceback" not in error
        if command == "doctor":
            return "\n".join(line for line in printed.splitlines() if line.startswith("BAD"))
        (line,) = [line for line in error.splitlines() if "error:" in line]
        return line

    return run


def changed(file: str, **fields) -> Callable[[Path], None]:
    def spoil(folder: Path):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return spoil


def replaced(file: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(content) and None


def shards(content: str) -> Callable[[Path], None]:
    def spoil(folder: Path):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return spoil


def weights(change: Callable[[torch.Tensor], torch.Tensor], file: str = "model.safetensors") -> Callable[[Path], None]:
    def spoil(folder: Path):
        state = {name: change(tensor) for name, tensor in load_file(folder / file).items()}
        save_file(state, folder / file, metadata={"format": "pt"})

    return spoil


def cut(file: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size - 9)


DEEP = "[" * 50_000
STAGE_2 = {
    "labels disagree": (changed("config.json", label2id={"a": 0}), "config.json.*label2id"),
    "labels with a gap": (changed("config.json", id2label={"0": "a", "2": "b"}, label2id=None), "config.json.*number"),
    "label without a name": (
        changed("config.json", id2label={"0": "a", "1": " "}, label2id=None),
        "every label a name",
    ),
    "temperature NaN": (changed("config.json", calibration_temperature=float("nan")), "calibration_temperature"),
    "temperature of nearly 0": (changed("config.json", calibration_temperature=1e-300), "calibration_temperature"),
    "size of no machine": (changed("config.json", hidden_size=10**30), "hidden_size must be at most"),
    "dtype": (changed("config.json", dtype="os.system"), "config.json.*dtype must be one of"),
    "quantization": (changed("config.json", quantization_config="x"), "quantization_config must be a mapping"),
    "unknown field": (changed("config.json", hiden_size=8), "config.json.*Did you mean 'hidden_size'"),
    "another model": (changed("config.json", model_type="bert"), "config.json.*'bert'"),
    "an encoder": (changed("config.json", model_type="mister_e_utterance_encoder"), "encoder of stage 1"),
    "no JSON": (replaced("config.json", "{"), "config.json' is not valid JSON"),
    "a list": (replaced("config.json", "[]"), "config.json' must hold a JSON object"),
    "nested": (replaced("config.json", DEEP), "config.json.*nested too deeply"),
    "key given twice": (replaced("config.json", '{"dtype": 1, "dtype": 2}'), "config.json.*'dtype' appears twice"),
    "index a list": (shards("[]"), "index.json' must hold a JSON object"),
    "index of numbers": (shards('{"metadata": {}, "weight_map": {"a": 5}}'), "index.json' names 5"),
    "index of a pickle": (shards('{"metadata": {}, "weight_map": {"a": "p.bin"}}'), "index.json' names 'p.bin'"),
    "index elsewhere": (shards('{"metadata": {}, "weight_map": {"a": "../x.safetensors"}}'), "index.json' names"),
    "weights cut off": (cut("model.safetensors"), "model.safetensors' is damaged"),
    "weights of NaN": (weights(lambda tensor: tensor * torch.nan), "NaN, infinite"),
    "one weight infinite": (
        weights(lambda tensor: tensor.index_fill(0, torch.tensor([0]), torch.inf) if tensor.dim() == 3 else tensor),
        "infinite.* of ",
    ),
    "weights that overflow": (weights(lambda tensor: tensor * 1e30), "so large"),
    "whole numbers": (weights(lambda tensor: tensor.to(torch.int8)), "model.safetensors'.*floating-point.*I8"),
    "complex numbers": (weights(lambda tensor: tensor.to(torch.complex64)), "floating-point.*C64"),
    "numbers of 8 bits": (weights(lambda tensor: tensor.to(torch.float8_e4m3fn)), "floating-point.*F8"),
    "no deviation": (weights(lambda tensor: tensor * (not (tensor == 1).all())), "std' must be positive"),
}


@pytest.mark.parametrize(("spoil", "message"), STAGE_2.values(), ids=STAGE_2)
def test_stage_2_is_refused_alike_by_every_command(spoiled, refused, spoil, message):
    folder = spoiled(spoil)
    for command in ("evaluate", "predict"):
        line = refused(command, folder)
        assert re.search(message, line), f"{command}: {line}"
        assert str(folder) in line


RUN = {
    "no YAML": (replaced("training.yaml", "a: ["), "training.yaml"),
    "a Python tag": (replaced("training.yaml", "!!python/object/apply:os.system [x]"), "training.yaml"),
    "an unknown field": (replaced("training.yaml", "corpus: {paht: x}"), "training.yaml.*unknown field 'paht'"),
    "a path that is none": (replaced("training.yaml", "corpus: {path: 5}"), "training.yaml.*corpus.path"),
    "results no JSON": (replaced("results.json", ""), "results.json' is not valid JSON"),
    "results a list": (replaced("results.json", "[]"), "results.json' must hold"),
    "scores of no split": (replaced("results.json", '{"test": 5}'), "results.json': test must be"),
}


@pytest.mark.parametrize(("spoil", "message"), RUN.values(), ids=RUN)
def test_what_a_run_stored_is_refused_by_file(spoiled, refused, spoil, message):
    line = refused("evaluate", spoiled(spoil))
    assert re.search(message, line), line


TEXT = "text_encoder/config.json"
PROCESSOR = "text_encoder/processor_config.json"
ADAPTER = "text_encoder/adapter/adapter_model.safetensors"
STAGE_1 = {
    "of speech": (changed(TEXT, modality="speech"), "text_encoder.*do not belong together"),
    "a model of stage 2": (changed(TEXT, model_type="mister_e"), "config.json.*load it with AutoModel"),
    "backbone a list": (changed(TEXT, backbone_config=[1]), "text_encoder/config.json.*backbone_config"),
    "backbone null": (changed(TEXT, backbone_config=None), "text_encoder.*no backbone_config"),
    "backbone unknown": (changed(TEXT, backbone_config={"model_type": "zzz"}), "text_encoder/config.json.*'zzz'"),
    "backbone not there": (changed(TEXT, backbone="nope/nope"), "Folder 'nope/nope' does not exist"),
    "a list": (replaced(TEXT, "[]"), "text_encoder/config.json' must hold"),
    "processor with more": (changed(PROCESSOR, more=1), "processor_config.json' has the unknown field 'more'"),
    "processor a list": (replaced(PROCESSOR, "[]"), "processor_config.json' must hold"),
    "processor of words": (changed(PROCESSOR, max_tokens="many"), "processor_config.json': max_tokens"),
    "processor of another": (changed(PROCESSOR, backbone_type="gpt2"), "do not belong together"),
    "tokenizer cut off": (replaced("text_encoder/tokenizer.json", "{"), "tokenizer.json' is not valid JSON"),
    "tokenizer a list": (replaced("text_encoder/tokenizer_config.json", "[]"), "tokenizer_config.json' must hold"),
    "weights of NaN": (weights(lambda tensor: tensor * torch.nan, "text_encoder/model.safetensors"), "NaN, infinite"),
    "adapter of NaN": (weights(lambda tensor: tensor * torch.nan, ADAPTER), "NaN, infinite.*lora"),
    "adapter of whole numbers": (weights(lambda tensor: tensor.to(torch.int32), ADAPTER), "adapter_model.*floating"),
    "adapter cut off": (cut(ADAPTER), "adapter_model.safetensors' is damaged"),
}


@pytest.mark.parametrize(("spoil", "message"), STAGE_1.values(), ids=STAGE_1)
def test_an_encoder_is_refused_alike_by_every_command(spoiled, refused, spoil, message):
    folder = spoiled(spoil)
    for command in ("predict", "doctor"):
        line = refused(command, folder)
        assert re.search(message, line), f"{command}: {line}"


def test_in_python_broken_weights_are_refused_too(spoiled):
    folder = spoiled(weights(lambda tensor: tensor * torch.nan))
    for load in (MisterEModel.from_pretrained, lambda name: pipeline(TASK, model=str(name))):
        with pytest.raises(ValueError, match="NaN, infinite, or so large"):
            load(folder)


def test_half_precision_and_double_are_weights(spoiled):
    for dtype in (torch.float16, torch.float64):
        folder = spoiled(weights(lambda tensor, dtype=dtype: tensor.to(dtype)))
        MisterEModel.from_pretrained(folder)
        shutil.rmtree(folder)


def test_what_another_class_loads_is_named(whole):
    with pytest.raises(InputError, match="'mister_e_utterance_encoder', not 'mister_e': load it with AutoModel"):
        MisterEModel.from_pretrained(whole / "c" / "text_encoder")
    with pytest.raises(InputError, match="'bert', not 'mister_e', which is not a model of this package"):
        MisterEModel.from_pretrained(whole / "base")
    with pytest.raises(InputError, match="'mister_e', not 'mister_e_utterance_encoder': load it with AutoModel"):
        UtteranceEncoder.from_pretrained(whole / "c")


def test_nobody_is_asked_to_run_the_code_of_a_checkpoint(spoiled, refused, monkeypatch, tmp_path):
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked"))

    def theirs(folder: Path):
        (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        mapped = {name: "theirs.Theirs" for name in ("AutoConfig", "AutoModel")}
        changed("config.json", model_type="theirs", auto_map=mapped)(folder)

    folder = spoiled(theirs)
    for command in ("evaluate", "predict", "doctor"):
        assert "'theirs'" in refused(command, folder) and "trust_remote_code" not in refused(command, folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["runs/nope", "./nope", "a/b/c", "/nope"])
def test_a_path_that_is_not_there_is_named_at_once(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for load in (MisterEModel.from_pretrained, UtteranceEncoder.from_pretrained, MisterEProcessor.from_pretrained):
        with pytest.raises(InputError, match=f"Folder '{name}' does not exist"):
            load(name)


@pytest.mark.parametrize("split", ["../v/test", "a/b", "..", ""])
def test_a_split_is_a_name(whole, capsys, split):
    assert cli.main(["evaluate", str(whole / "c"), "--corpus", str(whole / "v"), "--split", split, "--use_cpu"]) == 2
    assert "--split takes the name of a split" in capsys.readouterr().err


def test_a_relative_corpus_is_found_where_the_run_was_trained(whole, spoiled, capsys, monkeypatch, tmp_path):
    from mister_e_hf.vectors.store import read_corpus

    label2id = {name: index for index, name in LABELS.items()}
    fingerprint = read_corpus(whole / "v", label2id, splits=("test",))["test"].fingerprint()
    stored = replaced("results.json", json.dumps({"data_fingerprints": {"test": fingerprint}}))
    folder = spoiled(stored)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["evaluate", str(folder), "--use_cpu"]) == 2
    assert "pass --corpus" in capsys.readouterr().err
    shutil.copytree(whole / "v", tmp_path / "v")
    assert cli.main(["evaluate", str(folder), "--use_cpu"]) == 0
    assert capsys.readouterr().out.startswith("test  ")


# What is pushed

PUSHED = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights cut off": (cut("model.safetensors"), "model.safetensors' is damaged"),
    "weights of NaN": (weights(lambda tensor: tensor * torch.nan), "NaN, infinite"),
    "an encoder's weights cut off": (
        cut("text_encoder/model.safetensors"),
        "text_encoder/model.safetensors' is damaged",
    ),
    "an encoder without weights": (
        lambda folder: (folder / "text_encoder/model.safetensors").unlink(),
        "text_encoder' has no model.safetensors",
    ),
    "an adapter cut off": (cut(ADAPTER), "adapter_model.safetensors' is damaged"),
    "no adapter": (
        lambda folder: (folder / ADAPTER).unlink(),
        "text_encoder' has no adapter/adapter_model.safetensors",
    ),
    "a card that is no YAML": (replaced("README.md", "---\na: [\n---\n"), "README.md' is not a model card"),
    "a card in another encoding": (
        lambda folder: (folder / "README.md").write_bytes(b"---\na: \xff\n---\n"),
        "README.md' is not",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), PUSHED.values(), ids=PUSHED)
def test_what_nobody_could_load_is_not_pushed(spoiled, refused, spoil, message):
    line = refused("push", spoiled(spoil))
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push", "c", "bad name/", "--dry_run"], "'bad name/' is not a valid repository name"),
        (["predict", "turns.csv", "--model", "c", "--revision", "v1"], "--revision is of a model on the Hub"),
        (["evaluate", "c", "--revision", "v1"], "--revision is of a model on the Hub"),
        (["predict", "turns.csv", "--model", "c", "--transcriber", "/nope"], "unknown model '/nope'"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(whole, capsys, monkeypatch, words, message):
    monkeypatch.chdir(whole)
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_stored_scores_of_another_kind_are_not_equal():
    from mister_e_hf.training.evaluate import _agree

    assert not _agree({"a": 0.5}, {"a": "high"}) and not _agree([[1, 2], [3, 4]], [[1, 2], [3]])
    assert not _agree([1, 2], [1, 2, 3]) and _agree([[1, 2]], [[1, 2]])


def test_a_base_model_of_this_machine_is_not_pushed_unnamed(whole):
    message = r"text_encoder/ is a local folder.*--base_model text=.*--text_encoder\.save_backbone true"
    with pytest.raises(InputError, match=message):
        pushed_contents(whole / "c")
    contents = pushed_contents(whole / "c", {"text": "org/tiny"})
    texts = {name: text if isinstance(text, bytes) else text.read_bytes() for name, text in contents.items()}
    assert json.loads(texts[TEXT])["backbone"] == "org/tiny"
    assert json.loads(texts["text_encoder/adapter/adapter_config.json"])["base_model_name_or_path"] == "org/tiny"
    assert yaml.safe_load(texts["training.yaml"])["text_encoder"]["backbone"] == "org/tiny"
    assert b"- org/tiny" in texts["README.md"]
    assert not [name for name, text in texts.items() if str(whole).encode() in text]


@pytest.mark.parametrize(("name", "value"), [("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")])
def test_a_push_without_a_network_says_so_once(whole, capsys, monkeypatch, name, value):
    monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    words = ["push", str(whole / "c"), "org/name", "--base_model", "text=org/tiny"]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("The Hub cannot be reached") == 1
    assert cli.main([*words, "--dry_run"]) == 0
    assert re.search("the card says:(.*\n)+  base model: .*org/tiny", capsys.readouterr().out)
