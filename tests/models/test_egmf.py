"""EGMF's language model: frozen, with LoRA, trained whole; in blocks, with kept prefixes; its checkpoint folder."""

import json
import shutil
import weakref

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.whole_files import UNFINISHED
from mister_e_hf.models.egmf.configuration_egmf import EgmfConfig
from mister_e_hf.models.egmf.modeling_egmf import EgmfModel
from support.model_contract import LABELS, assert_same, outputs_of, rows_of, small_batch
from support.tiny_language_models import WIDTH, tiny_language_model

SIZES = {
    "speech_embedding_dim": 5,
    "text_embedding_dim": 4,
    "visual_embedding_dim": 3,
    "hidden_size": 8,
    "num_attention_heads": 2,
}
LORA = {"r": 2, "alpha": 4, "dropout": 0.0}


def egmf_config(kind="gpt2", **changes):
    return EgmfConfig(
        **{**SIZES, "id2label": LABELS, "language_model": tiny_language_model(kind), "max_length": 400, **changes}
    )


def egmf(kind="gpt2", dtype=torch.float64, **changes):
    """A new model in evaluation mode."""
    config = egmf_config(kind, **changes)  # before the seed, which making a language model changes
    torch.manual_seed(3)
    return EgmfModel.from_language_model(config).to(dtype).eval()


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def step(model, batch):
    """One plain gradient step."""
    model.train()
    model(**batch).loss.backward()
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter -= 0.1 * parameter.grad
    model.zero_grad()
    return model.eval()


# What is trained


def test_frozen_language_model_is_bit_equal_after_a_step_and_guides_the_pseudo_tokens():
    model = egmf()
    assert not [name for name in trained(model) if name.startswith("language_model.")]
    before = {name: values.clone() for name, values in model.language_model.state_dict().items()}
    batch = small_batch(model.config)
    model.train()
    assert not model.language_model.training
    model(**batch).answer_loss.backward()
    assert all(trained(model)[name].grad.any() for name in ("pseudo_tokens.project.weight", "pseudo_tokens.scale"))
    step(model, batch)
    assert_same(model.language_model.state_dict(), before, 0.0)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_lora_starts_as_the_base_and_alone_is_trained_in_the_language_model(kind):
    model, base = egmf(kind, lora=LORA), egmf(kind)
    batch = small_batch(model.config)
    atol = 1e-10 if kind == "gpt2" else 2e-6
    assert_same(outputs_of(model, batch), outputs_of(base, batch), atol)
    names = [name for name in trained(model) if name.startswith("language_model.")]
    assert names and all("lora_" in name for name in names)
    frozen = {name: values.clone() for name, values in model.named_parameters() if name not in trained(model)}
    step(model, batch)
    assert all(torch.equal(dict(model.named_parameters())[name], values) for name, values in frozen.items())
    assert any(model.get_parameter(name).any() for name in names if "lora_B" in name)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_merged_lora_is_the_same_model(kind):
    model = egmf(kind, lora=LORA)
    batch = small_batch(model.config)
    base = outputs_of(model, batch)["logits"]
    step(model, batch)
    expected = outputs_of(model, batch)
    assert not torch.allclose(expected["logits"], base)
    layers = [module for module in model.language_model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.merge()
    assert layers and all(layer.merged for layer in layers)
    assert_same(outputs_of(model, batch), expected, 1e-6)
    for layer in layers:
        layer.unmerge()
    assert_same(outputs_of(model, batch), expected, 1e-6)


def test_scale_of_pseudo_tokens_is_that_of_the_embeddings():
    for kind in ("gpt2", "gemma3_text"):  # Gemma's layer multiplies its table
        model = egmf(kind, dtype=torch.float32)
        table = model.language_model.get_input_embeddings()
        expected = table(torch.arange(table.num_embeddings)).square().mean().sqrt()
        torch.testing.assert_close(model.pseudo_tokens.scale, expected)
        tokens = model.pseudo_tokens(torch.randn(50, 8))
        assert tokens.shape == (50, 4, WIDTH)
        torch.testing.assert_close(tokens.square().mean((-1, -2)).sqrt(), expected.expand(50), rtol=1e-3, atol=1e-4)
        assert torch.linalg.matrix_rank(tokens[0]) == 4  # not multiples of one vector


def test_every_parameter_is_on_the_graph_in_every_setting():
    for changes in (
        {"lora": LORA},
        {"use_pseudo_tokens": False, "auxiliary_weight": 0},
        {"shuffle_pseudo_tokens": True, "pseudo_position": "first"},
        {"balance_weight": 0.1},
    ):
        model = egmf(**changes).train()
        for batch in (small_batch(model.config), small_batch(model.config, absent=1.0)):
            model(**batch).loss.backward()
            assert all(parameter.grad is not None for parameter in trained(model).values())
            batch["labels"][:] = -100
            assert model(**batch).loss.item() == 0


# How it is read


@pytest.mark.parametrize("changes", [{}, {"lora": LORA}, {"pseudo_position": "first", "train_language_model": True}])
def test_blocks_of_any_size_give_the_same(changes):
    found = []
    for rows in (1, 3, 100):
        model = egmf(rows_per_forward=rows, **changes)
        batch = small_batch(model.config)
        parts = [rows_of(batch, [row]) for row in range(4)]
        grads = []
        for batches in ([batch], parts):
            model.zero_grad()
            for each in batches:
                model(**each, num_items_in_batch=15).loss.backward()
            grads.append({name: parameter.grad.clone() for name, parameter in trained(model).items()})
        assert_same(grads[0], grads[1])
        found.append((outputs_of(model, batch), grads[0]))
    for outputs, gradients in found[1:]:
        assert_same(outputs, found[0][0])
        assert_same(gradients, found[0][1])


@pytest.mark.parametrize("changes", [{}, {"lora": LORA}])
def test_memory_does_not_grow_with_the_turns_that_the_language_model_reads(changes):
    """Of the scores, nothing of a block is kept when the next one is read; nor for the gradient."""

    def kept(turns: int, rows: int) -> int:
        """Bytes that are kept for the gradient."""
        model = egmf(rows_per_forward=rows, **changes).train()
        batch, logits, storages = small_batch(model.config, [turns]), [], {}
        batch["transcripts"] = [["yes"] * turns]

        def count(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        def before(*_):
            assert len(logits) < 2 or logits[-2]() is None

        model.language_model.register_forward_pre_hook(before)
        model.language_model.register_forward_hook(lambda *given: logits.append(weakref.ref(given[-1].logits)))
        outputs_of(model.eval(), batch)
        assert len(logits) >= -(-turns // rows)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model.train()(**batch).loss
        found = sum(storages.values())
        loss.backward()
        assert model.pseudo_tokens.scale.grad.isfinite()
        return found

    blocks, at_once = (kept(40, rows) - kept(20, rows) for rows in (4, 40))
    assert 0 < blocks < 0.2 * at_once


@pytest.mark.parametrize("numeric_weight", [None, 0.0, 1.0])
@pytest.mark.parametrize("rows", [2, 100])
def test_training_reads_what_its_loss_needs(numeric_weight, rows):
    """Turns with a label alone, and of them the right answers alone, unless expected scores have a loss."""
    scores = {"id2label": {0: "sentiment"}, "problem_type": "regression", "score_range": [-3.0, 3.0]}
    changes = {} if numeric_weight is None else scores | {"numeric_weight": numeric_weight}
    model = egmf(lora=LORA, dropout=0.0, rows_per_forward=rows, class_weights=None, **changes)
    batch = small_batch(model.config)
    if numeric_weight is None:
        batch["labels"][0, 1:] = -100
        scored = batch["labels"] != -100
    else:
        batch["labels"] = torch.randn(*batch["labels"].shape, 1).double().clamp(-3, 3)
        batch["labels"][0, 1:] = torch.nan
        scored = batch["attention_mask"] & ~batch["labels"].isnan().all(-1)
    found = []
    for training in (False, True):
        model.zero_grad()
        output = model.train(training)(**batch)
        output.loss.backward()
        found.append((output, {name: parameter.grad.clone() for name, parameter in trained(model).items()}))
    (expected, gradients), (output, in_training) = found
    torch.testing.assert_close(output.loss, expected.loss)
    assert_same(in_training, gradients)
    assert expected.logits[batch["attention_mask"]].any(-1).all()
    assert (output.logits is None) == (not numeric_weight)
    if numeric_weight:
        torch.testing.assert_close(output.logits[scored], expected.logits[scored])
        assert not output.logits[~scored].any()


def test_loss_is_that_of_the_language_model_for_the_right_answer_and_of_the_head():
    model = egmf(lora=LORA)
    batch = small_batch(model.config)
    output = model(**batch)
    scored = batch["labels"] != -100
    right = output.logits[scored].gather(-1, batch["labels"][scored][:, None])
    torch.testing.assert_close(output.answer_loss, -right.mean())
    head = torch.nn.functional.cross_entropy(output.fusion_logits[scored], batch["labels"][scored])
    torch.testing.assert_close(output.loss, output.answer_loss + 0.3 * head)


def test_pseudo_tokens_are_shuffled_within_a_dialogue_alone():
    own, other = egmf(), egmf(shuffle_pseudo_tokens=True)
    batch = small_batch(own.config, absent=0.0)
    outputs = [model(**batch).logits for model in (own, other)]
    assert torch.equal(outputs[0][1, :1], outputs[1][1, :1])  # a dialogue of one turn
    assert not torch.allclose(outputs[0][0], outputs[1][0])
    words = egmf(use_pseudo_tokens=False)
    changed = {**batch, "speech_embeddings": batch["speech_embeddings"] + 1}
    assert torch.equal(words(**batch).logits, words(**changed).logits)


def test_expected_scores_of_a_uniform_and_a_certain_answer():
    scores = {"id2label": {0: "sentiment"}, "problem_type": "regression", "score_range": [-3.0, 3.0]}
    model = egmf("llama", **scores)
    assert len(model.answers.token_ids) == 61 and len(model.tree.tokens) < 61
    uniform = torch.zeros(1, 1, 61).double()
    torch.testing.assert_close(model._scores(uniform), torch.zeros(1, 1).double(), rtol=0, atol=1e-12)
    certain = torch.full((61, 1, 61), -1e4).double()
    certain[range(61), 0, range(61)] = 7.0
    torch.testing.assert_close(model._scores(certain)[:, 0], torch.tensor(model.answers.values).double())
    batch = small_batch(model.config)
    batch["labels"] = torch.randn(*batch["labels"].shape, 1).double().clamp(-3, 3)
    output = model(**batch)
    assert output.logits.abs().max() <= 3
    mean = (output.logits - batch["labels"])[batch["attention_mask"]].abs().mean()
    torch.testing.assert_close(output.numeric_loss, mean)


# Kept prefixes


def test_kept_prefixes_give_the_same_and_are_read_once(tmp_path, monkeypatch):
    model = egmf()
    batch = small_batch(model.config)
    expected, loss = outputs_of(model, batch), model(**batch).loss
    store = model.keep_prefixes(tmp_path / "store", torch.float64)
    assert_same(outputs_of(model, batch), expected)
    files = {path.name for path in store.folder.glob("*/*")}
    assert 0 < len(files) <= 15 and store.size() > 0
    again = egmf()
    again.keep_prefixes(tmp_path / "store", torch.float64)
    monkeypatch.setattr("mister_e_hf.models.egmf.asked_turns.read_prefix", None)  # nothing is read again
    assert_same(outputs_of(again, batch), expected)
    torch.testing.assert_close(again(**batch).loss, loss)
    step(again, batch)
    assert {path.name for path in store.folder.glob("*/*")} == files
    half = egmf()
    half.keep_prefixes(tmp_path / "half")
    monkeypatch.undo()
    torch.testing.assert_close(half(**batch).logits, expected["logits"], rtol=0, atol=0.02)


def test_kept_prefixes_are_refused_where_they_would_be_wrong(tmp_path):
    for changes in ({"lora": LORA}, {"train_language_model": True}, {"pseudo_position": "first"}):
        with pytest.raises(InputError, match="Only a language model that is not trained"):
            egmf(**changes).keep_prefixes(tmp_path / "store")
    egmf().keep_prefixes(tmp_path / "store")
    with pytest.raises(InputError, match="holds the prompts of another language model"):
        egmf("llama").keep_prefixes(tmp_path / "store")
    with pytest.raises(InputError, match="is not empty"):
        egmf().keep_prefixes(tiny_language_model("llama"))
    unfinished = tmp_path / "begun" / f"{UNFINISHED}-of-another-process-store.json"
    unfinished.parent.mkdir()
    unfinished.touch()
    egmf().keep_prefixes(unfinished.parent)
    model, store = egmf(), tmp_path / "store"
    batch = small_batch(model.config)
    model.keep_prefixes(store)
    model(**batch)
    next(store.glob("*/*.safetensors")).write_bytes(b"{")
    with pytest.raises(OSError, match="is damaged"):
        model(**batch)


# The checkpoint folder


@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": LORA}, {"lora": LORA, "save_language_model": True}, {"train_language_model": True}],
    ids=str,
)
def test_folder_holds_what_was_trained_and_loads_bit_equal(tmp_path, changes):
    model = egmf(dtype=torch.float32, **changes)
    batch = small_batch(model.config, dtype=torch.float32)
    step(model, batch)
    model.save_pretrained(tmp_path)
    inside = tmp_path / "language_model"
    own = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert own == {"config.json", "model.safetensors", "language_model"}
    assert not any(key.startswith("language_model.") for key in load_file(tmp_path / "model.safetensors"))
    assert not (inside / "adapter_config.json").exists()
    assert (inside / "adapter" / "adapter_config.json").exists() == ("lora" in changes)
    assert (inside / "model.safetensors").exists() == model.config.holds_language_model
    assert AutoTokenizer.from_pretrained(inside)("joy")["input_ids"] == model.tokenizer("joy")["input_ids"]
    again = EgmfModel.from_pretrained(tmp_path)
    assert_same(again.state_dict(), model.state_dict(), 0.0)
    assert_same(outputs_of(again, batch), outputs_of(model, batch), 0.0)
    assert sorted(trained(again)) == sorted(trained(model))
    if model.config.holds_language_model:
        plain = AutoModelForCausalLM.from_pretrained(inside)
        assert type(plain) is type(model.language_model)
    other = egmf(dtype=torch.float32, **changes)
    other.load_trained_weights(tmp_path)
    assert_same(outputs_of(other, batch), outputs_of(model, batch), 0.0)


def test_a_base_model_out_of_reach_is_said_in_one_line(tmp_path):
    place = tmp_path / "base"
    shutil.copytree(tiny_language_model("llama"), place)
    model = EgmfModel.from_language_model(egmf_config("llama", language_model=str(place)))
    model.save_pretrained(tmp_path / "saved")
    place.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="is trained on the language model .*base' .*could not be loaded") as raised:
        EgmfModel.from_pretrained(tmp_path / "saved")
    assert "\n" not in str(raised.value)
    batch = small_batch(model.config, dtype=torch.float32)
    again = EgmfModel.from_pretrained(tmp_path / "saved", language_model=str(tmp_path / "moved"))
    assert_same(outputs_of(again, batch), outputs_of(model.eval(), batch), 0.0)
    with pytest.raises(InputError, match="is another language model"):
        EgmfModel.from_pretrained(tmp_path / "saved", language_model=tiny_language_model("gpt2"))


# Language models


def test_types_that_are_not_tested_are_tried(caplog):
    egmf("mistral", dtype=torch.float32)
    assert "mistral is not among the language models that are tested" in caplog.text
    with pytest.raises(InputError, match="A bloom language model cannot be used: .* Tested are llama, qwen2"):
        egmf("bloom")


def test_what_is_not_a_causal_language_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="language_model must name a causal language model"):
        EgmfModel.from_language_model(EgmfConfig(id2label=LABELS))
    with pytest.raises(InputError, match="Folder 'nowhere/at/all' does not exist"):
        EgmfModel.from_language_model(egmf_config(language_model="nowhere/at/all"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(InputError, match="is of type 'resnet', not a causal language model"):
        EgmfModel.from_language_model(egmf_config(language_model=str(tmp_path)))
    with pytest.raises(InputError, match=r"lora\.target_modules '\.\*nothing' matches no module"):
        egmf(lora={"target_modules": ".*nothing"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 3}}, "lora has no field 'rank'; expected r, alpha, dropout, target_modules"),
        ({"lora": {"r": 0}}, "lora.r must be a whole number of at least 1"),
        ({"lora": LORA, "train_language_model": True}, "lora must be null"),
        ({"context_turns": -1}, "context_turns must not be negative"),
        ({"num_pseudo_tokens": 0}, "num_pseudo_tokens must be at least 1"),
        ({"label_words": {"rage": "angry"}}, "label_words names 'rage'"),
        ({"score_range": [1.0, -1.0]}, "score_range must be the lowest and the highest score"),
        ({"language_model_dtype": "int8"}, "language_model_dtype must be one of float64"),
        ({"language_model_config": {"model_type": "llama", "auto_map": {}}}, "no code of its own"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(StrictDataclassError, match=message):
        egmf_config(**changes)
