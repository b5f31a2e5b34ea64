"""EGMF and what it cannot read: transcripts, labels and language models that others made."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mister_e_hf.base.errors import InputError
from mister_e_hf.models.egmf.answers import Answers
from mister_e_hf.models.egmf.asked_turns import Reader
from mister_e_hf.models.egmf.configuration_egmf import EgmfConfig
from mister_e_hf.models.egmf.language_model import longest_prompt
from mister_e_hf.models.egmf.language_model_fingerprint import language_model_fingerprint
from mister_e_hf.models.egmf.modeling_egmf import EgmfModel
from mister_e_hf.models.egmf.text_tokens import TextTokens
from mister_e_hf.models.egmf.token_probabilities import log_probabilities
from support.model_contract import LABELS, small_batch
from support.tiny_language_models import CONFIGS, byte_tokenizer, tiny_language_model

SIZES = {"speech_embedding_dim": 5, "text_embedding_dim": 4, "visual_embedding_dim": 3}
SIZES |= {"hidden_size": 8, "num_attention_heads": 2}
REGRESSION = {"problem_type": "regression", "id2label": {0: "valence", 1: "arousal"}}


def new_model(place: str, **changes) -> EgmfModel:
    fields = {**SIZES, "id2label": LABELS, "language_model": place, "max_length": 400, **changes}
    return EgmfModel.from_language_model(EgmfConfig(**fields)).eval()


def saved(folder: Path, kind: str, size: float = 0.1, **changes) -> str:
    """The folder of another tiny language model, with weights of about this size added."""
    torch.manual_seed(5)
    config = AutoConfig.for_model(kind, **changes, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(size * torch.randn_like(parameter))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


# Transcripts


@pytest.mark.parametrize(
    ("transcripts", "message"),
    [
        ([["yes"] * 7] * 3, "transcripts must be 4 lists of 7 strings or None"),
        ([["yes"] * 7] * 5, "transcripts must be 4 lists of 7 strings or None"),
        ([["yes"] * 3] * 4, "transcripts must be 4 lists of 7 strings or None"),
        ([["yes"] * 9] * 4, "transcripts must be 4 lists of 7 strings or None"),
        (["a transcript"] * 4, "transcripts must be 4 lists of 7 strings or None"),
        ([None] * 4, "transcripts must be 4 lists of 7 strings or None"),
        ([[float("nan")] * 7] * 4, "transcripts must be strings, or None where a turn has none, got nan"),
    ],
    ids=["few", "many", "short", "long", "strings", "none", "nan"],
)
def test_transcripts_that_are_not_those_of_the_turns_raise(transcripts, message):
    model = new_model(tiny_language_model("gpt2"))
    batch = small_batch(model.config, dtype=torch.float32)
    with pytest.raises(InputError, match=message):
        model(**batch | {"transcripts": transcripts})


def test_half_of_a_surrogate_pair_is_read_as_an_unknown_letter():
    tokens = TextTokens(byte_tokenizer())
    assert tokens("a\ud83db") == tokens("a\ufffdb")
    assert tokens("a\ud83d\ude00b") == tokens("a😀b")
    with pytest.raises(InputError, match="The tokenizer cannot write the answer"):
        Answers(EgmfConfig(id2label={0: "\ud800", 1: "joy"}), byte_tokenizer())


# Answers


@pytest.mark.parametrize(("ends", "step"), [([-3.0, 3.0], 1e-30), ([-1e300, 1e300], 1e-300)])
def test_a_grid_of_more_steps_than_a_decimal_counts_is_refused(ends, step):
    with pytest.raises(StrictDataclassError, match="score_step must divide score_range into 1 to 1,000 steps"):
        EgmfConfig(**REGRESSION, score_range=ends, score_step=step)


def test_targets_are_asked_for_by_different_words():
    with pytest.raises(StrictDataclassError, match="The targets 'valence' and 'arousal' are both called 'Mood'"):
        EgmfConfig(**REGRESSION, label_words={"valence": "mood", "arousal": "Mood"})
    with pytest.raises(StrictDataclassError, match="The target 'valence' has no word"):
        EgmfConfig(**REGRESSION, label_words={"valence": " "})


def test_gradient_of_logits_in_any_order_in_memory():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 2, dtype=torch.float64, generator=generator).permute(2, 1, 0).requires_grad_()
    places, tokens = torch.tensor([0, 0, 2]), torch.tensor([[1, 2, 0], [4, 3, 2]])
    (found,) = torch.autograd.grad(log_probabilities(logits, places, tokens).square().sum(), logits)
    plain = logits.log_softmax(-1)[torch.arange(2)[:, None], places, tokens]
    (expected,) = torch.autograd.grad(plain.square().sum(), logits)
    torch.testing.assert_close(found, expected)


# Language models


def test_tokens_without_an_embedding_are_refused(tmp_path):
    place = saved(tmp_path, "llama", **{**CONFIGS["llama"], "vocab_size": 285})
    with pytest.raises(InputError, match="writes tokens up to 295, and the llama language model has embeddings up to"):
        new_model(place)


@pytest.mark.parametrize("special", [True, False])
def test_words_that_were_added_without_an_embedding_are_refused(special, tmp_path):
    place = saved(tmp_path, "llama", **CONFIGS["llama"])
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"added{number}" for number in range(9)], special_tokens=special)
    tokenizer.save_pretrained(place)
    if special:  # such tokens are never written
        new_model(place)
        return
    with pytest.raises(
        InputError, match="writes tokens up to 304, and the llama language model has embeddings up to 2"
    ):
        new_model(place)


@pytest.mark.parametrize("kind", ["mistral", "phi3", "starcoder2"])
def test_a_window_of_all_layers_bounds_the_prompts(kind, tmp_path):
    model = new_model(saved(tmp_path, kind, **{**CONFIGS["mistral"], "sliding_window": 220}))
    assert longest_prompt(model.language_model, model.config) == 220
    said = ["it was a very long day, and nobody knows what to say about it"] * 3
    prompts = model.prompts.prompts(said, [{"speech"}] * 3, range(3))
    found = Reader(model.language_model, model.tree, 4).answer_likelihoods(prompts, None)[:, 0]
    for prompt, row in zip(prompts, found, strict=True):
        for ids, value in zip(model.answers.token_ids, row, strict=True):
            whole = torch.tensor([[*prompt.before, *prompt.after[0], *ids]])
            with torch.no_grad():
                scores = model.language_model(input_ids=whole).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
            torch.testing.assert_close(value, scores[range(len(ids)), ids].sum(), atol=1e-4, rtol=0)


def test_layers_that_see_only_a_part_of_a_long_prompt_are_noticed(tmp_path):
    sizes = {"vocab_size": 300, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 512}
    layers = {"window_size": 24, "attention_types": [[["global", "local"], 1]]}
    place = saved(tmp_path, "gpt_neo", size=0.3, **sizes, **layers)
    with pytest.raises(InputError, match="A gpt_neo language model cannot be used: a log-likelihood .* differs by"):
        new_model(place)


def test_another_depth_of_the_language_model_is_noticed(tmp_path):
    place = saved(tmp_path / "language", "llama", **CONFIGS["llama"])
    new_model(place).save_pretrained(tmp_path / "model")
    saved(tmp_path / "language", "llama", **{**CONFIGS["llama"], "num_hidden_layers": 3})
    with pytest.raises(InputError, match="is another language model than the one that .* was trained on"):
        EgmfModel.from_pretrained(tmp_path / "model")


def test_another_language_model_of_the_same_size_is_noticed(tmp_path):
    place = saved(tmp_path / "language", "llama", **CONFIGS["llama"])
    model, folder = new_model(place, lora={"r": 2}), tmp_path / "model"
    model.save_pretrained(folder)
    for dtype in ("float32", "bfloat16", "float16"):  # the same weights, rounded or not
        EgmfModel.from_pretrained(folder, dtype=dtype)
    saved(tmp_path / "language", "llama", size=0.2, **CONFIGS["llama"])
    with pytest.raises(
        InputError, match="'.*language' has other weights than when '.*model' was trained on it. Put th"
    ):
        EgmfModel.from_pretrained(folder)
    with pytest.raises(
        InputError, match="'.*model' was trained on other weights of the language model '.*language' t"
    ):
        new_model(place, lora={"r": 2}).load_trained_weights(folder)
    assert EgmfModel.from_pretrained(folder, language_model_fingerprint=None).config.lora == {"r": 2}
    config = json.loads((folder / "config.json").read_text())
    del config["language_model_fingerprint"]  # as older folders
    (folder / "config.json").write_text(json.dumps(config))
    EgmfModel.from_pretrained(folder)
    new_model(place, lora={"r": 2}).load_trained_weights(folder)


def test_a_fingerprint_knows_a_small_change_and_not_the_names():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **CONFIGS["llama"]))
    found = language_model_fingerprint(model)
    model.model.layers = torch.nn.ModuleList(reversed(model.model.layers))  # the same weights under other names
    assert language_model_fingerprint(model) == found
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 1.00001
    assert language_model_fingerprint(model) != found


def test_what_is_not_a_causal_language_model_is_named(tmp_path):
    def message(place) -> str:
        with pytest.raises((InputError, OSError)) as raised:
            new_model(str(place))
        return str(raised.value)

    (tmp_path / "empty").mkdir()
    assert "'empty' has no config.json with a model_type; expected a causal" in message(tmp_path / "empty").replace(
        f"{tmp_path}/", ""
    )
    bert = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    place = saved(tmp_path / "bert", "bert", **bert, intermediate_size=16)
    assert message(place).endswith("is of type 'bert', not a causal language model")
    place = saved(tmp_path / "headless", "llama", **CONFIGS["llama"])
    AutoModel.from_pretrained(place).save_pretrained(place)
    assert "(missing: lm_head.weight). A causal language model is expected whole" in message(place)
    place = Path(saved(tmp_path / "speechless", "llama", **CONFIGS["llama"]))
    (place / "tokenizer.json").unlink()
    assert "speechless' holds no whole tokenizer: tokenizer.json is missing" in message(place)


def test_the_embeddings_of_the_language_model_do_not_get_lora():
    for kind, name in (("llama", "model.embed_tokens"), ("gpt2", "transformer.wte")):
        with pytest.raises(InputError, match=f"lora.target_modules matches '{name}', the embeddings of the language"):
            new_model(tiny_language_model(kind), lora={"target_modules": ".*(embed_tokens|wte)"})


@pytest.mark.parametrize("name", ["", "tokenizer.json", "tokenizer_config.json"])
def test_a_checkpoint_without_its_tokenizer_is_one_line(name, tmp_path):
    new_model(tiny_language_model("llama"), lora={"r": 2}).save_pretrained(tmp_path)
    path = tmp_path / "language_model" / name
    path.unlink() if name else shutil.rmtree(path)
    expected = f"language_model' holds no whole tokenizer: {name or 'tokenizer_config.json'} is missing; save, copy or"
    with pytest.raises(OSError, match=expected):
        EgmfModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "language_model/adapter/adapter_model.safetensors"])
def test_a_damaged_checkpoint_is_named(name, tmp_path):
    model = new_model(tiny_language_model("llama"), lora={"r": 2})
    model.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\0" * 100)
    for load in (model.load_trained_weights, EgmfModel.from_pretrained):
        with pytest.raises(OSError, match=f"{Path(name).name}.* is damaged"):
            load(tmp_path)
