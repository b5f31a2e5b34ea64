import json
import math
import pathlib
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from transformers import AutoConfig, AutoModel, pipeline

from mister_e_hf import Recipe, cli
from mister_e_hf.corpora.demo import LABELS, write_demo_corpus
from mister_e_hf.models import baselines
from mister_e_hf.models.baselines import BASELINES, baseline_config, baseline_model
from mister_e_hf.models.baselines.dialogue_rnn import DialogueRecurrence
from mister_e_hf.models.baselines.layers import sinusoidal_positions
from mister_e_hf.models.turns import TurnLayout

ROOT = pathlib.Path(__file__).parents[2]
ATTENTION = ("mult", "sdt")
RECURRENT = ("bc_lstm", "dialogue_rnn")
LENGTHS = [3, 6, 1]


def tiny_config(name: str, **changes):
    settings = {
        "speech_embedding_dim": 5,
        "text_embedding_dim": 4,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "id2label": {0: "anger", 1: "joy", 2: "neutral"},
    }
    known = {*baseline_config(name).own_fields(), "id2label"}
    return baseline_config(name)(**{field: value for field, value in settings.items() if field in known}, **changes)


def tiny_baseline(name: str, dtype: torch.dtype = torch.float64, **changes):
    """In evaluation mode, with no parameter and no buffer at its neutral value."""
    torch.manual_seed(0)
    model = baseline_model(name)(tiny_config(name, **changes))
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    for module in model.modules():
        if hasattr(module, "set_statistics"):
            module.set_statistics(0.3 * torch.randn_like(module.mean), 0.5 + torch.rand_like(module.std))
    return model.to(dtype).eval()


def spread(batch: dict, total: int, content: float) -> tuple[dict, torch.Tensor]:
    """The same dialogues with padding at the front, in between and at the end; and where their turns stand now, by dialogue."""
    rows, turns = batch["attention_mask"].shape
    generator = torch.Generator().manual_seed(1)
    places = torch.stack([torch.randperm(total, generator=generator)[:turns].sort().values for _ in range(rows)])
    wide = {}
    for name, values in batch.items():
        fill = content if values.is_floating_point() else 1 if name == "labels" else name != "attention_mask"
        wide[name] = torch.full((rows, total, *values.shape[2:]), fill, dtype=values.dtype)
        for row in range(rows):
            wide[name][row, places[row]] = values[row]
    for modality in ("speech", "text"):
        absent = wide["attention_mask"] & ~wide[f"{modality}_mask"]
        wide[f"{modality}_embeddings"][absent] = content
    return wide, places


each = pytest.mark.parametrize("name", BASELINES)


# What goes in and comes out


@each
def test_logits_have_a_row_per_turn_and_are_zero_at_padding(name, make_batch):
    model = tiny_baseline(name)
    batch = make_batch(LENGTHS, model.config)
    output = model(**batch)
    assert output.logits.shape == (3, 6, 3) and output.loss.shape == ()
    assert set(output) == {"loss", "logits"} | ({"head_logits"} if model.config.heads else set())
    assert (output.logits[~batch["attention_mask"]] == 0).all()
    assert (output.logits[batch["attention_mask"]] != 0).all()
    batch.pop("labels")
    assert model(**batch).loss is None
    with pytest.raises(TypeError, match="speech_embedding"):
        model(speech_embedding=batch["speech_embeddings"])


@each
@pytest.mark.parametrize("content", [1e6, math.nan, -math.inf])
def test_padding_and_absent_vectors_change_nothing(name, content, make_batch):
    model = tiny_baseline(name)
    batch = make_batch(LENGTHS, model.config, absent=0.3)
    wide, places = spread(batch, 11, content)
    expected, found = model(**batch), model(**wide)
    gathered = torch.stack([logits[place] for logits, place in zip(found.logits, places, strict=True)])
    torch.testing.assert_close(gathered, expected.logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-10)
    gradients = []
    for output in (expected, found):
        model.zero_grad()
        output.loss.backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=0, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@each
def test_a_dialogue_alone_is_as_in_a_batch(name, make_batch):
    model = tiny_baseline(name)
    batch = make_batch(LENGTHS, model.config, absent=0.2)
    together = model(**batch).logits
    for row, length in enumerate(LENGTHS):
        alone = model(**{key: values[row : row + 1, :length] for key, values in batch.items()}).logits
        torch.testing.assert_close(alone[0], together[row, :length], rtol=0, atol=1e-10)


@each
def test_a_batch_of_padding_alone_takes_part_with_zeros(name, make_batch):
    model = tiny_baseline(name)
    batch = make_batch([2, 3], model.config)
    batch["speech_embeddings"][:] = math.nan
    batch["attention_mask"][:] = False
    output = model(**batch)
    assert output.loss == 0 and (output.logits == 0).all()
    output.loss.backward()
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


@each
def test_an_embedding_that_is_left_out_is_absent(name, make_batch):
    model = tiny_baseline(name)
    batch = make_batch(LENGTHS, model.config)
    for modality in ("speech", "text"):
        absent = batch | {f"{modality}_mask": torch.zeros_like(batch["attention_mask"])}
        assert torch.equal(model(**absent | {f"{modality}_embeddings": None}).logits, model(**absent).logits)
    with pytest.raises(
        ValueError, match=f"{type(model).__name__} needs at least one of speech_embeddings, text_embeddings"
    ):
        model(attention_mask=batch["attention_mask"])
    with pytest.raises(ValueError, match="text_embeddings must have shape"):
        model(text_embeddings=batch["speech_embeddings"])


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in ATTENTION])
def test_one_modality_alone_is_read(name, make_batch):
    model = tiny_baseline(name, modalities=["text"])
    assert not hasattr(model, "speech_input")
    batch = make_batch(LENGTHS, model.config)
    expected = model(**batch).logits
    batch["speech_embeddings"] += 1
    assert torch.equal(model(**batch).logits, expected)


@each
def test_only_a_turn_by_itself_has_no_context(name, make_batch):
    model = tiny_baseline(name)
    batch = make_batch([5], model.config)
    before = model(**batch).logits
    batch["text_embeddings"][0, 4] += 1
    changed = (model(**batch).logits != before).any(-1)[0]
    assert changed.tolist() == [name != "logistic_regression"] * 4 + [True]


# Loss and gradient


@each
def test_micro_batches_add_up_to_the_whole_batch(name, make_batch):
    model = tiny_baseline(name, class_weights={"joy": 2.0})
    batch = make_batch(LENGTHS, model.config, absent=0.2)
    batch["labels"][1, 2] = -100
    count = int((batch["labels"] != -100).sum())
    parts = [
        model(**{key: values[row : row + 1] for key, values in batch.items()}, num_items_in_batch=count).loss
        for row in range(3)
    ]
    whole = model(**batch).loss
    torch.testing.assert_close(sum(parts), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(model(**batch, num_items_in_batch=torch.tensor(count)).loss, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "sdt"])
def test_loss_is_weighted_cross_entropy(name, make_batch):
    model = tiny_baseline(name, class_weights={"joy": 2.0})
    batch = make_batch(LENGTHS, model.config)
    output, scored = model(**batch), batch["attention_mask"]
    weights = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    expected = F.cross_entropy(output.logits[scored], batch["labels"][scored], weights, reduction="sum") / scored.sum()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_sdt_learns_from_labels_and_its_students_from_the_teacher(temperature):
    model = tiny_baseline("sdt", distillation_temperature=temperature)
    teacher, speech, text = torch.randn(3, 4, 3, dtype=torch.float64)
    labels = torch.tensor([0, 2, -100, 1])
    expected = torch.zeros((), dtype=torch.float64)
    for turn in (0, 1, 3):
        p = (teacher[turn] / temperature).exp() / (teacher[turn] / temperature).exp().sum()
        for logits in (teacher, speech, text):
            expected += logits[turn].exp().sum().log() - logits[turn, labels[turn]]
        for student in (speech, text):
            q = (student[turn] / temperature).exp() / (student[turn] / temperature).exp().sum()
            expected += (p * (p / q).log()).sum()
    torch.testing.assert_close(model.turn_loss((teacher, speech, text), labels, None), expected / 3)
    torch.testing.assert_close(model.turn_loss((teacher, speech, text), labels, 7), expected / 7)
    # students that say what the teacher says have nothing to learn from it
    alike = model.turn_loss((teacher, teacher, teacher), labels, None)
    torch.testing.assert_close(alike, 3 * model.cross_entropy(teacher, labels, None))


@each
def test_every_parameter_gets_a_gradient(name, make_batch):
    model = tiny_baseline(name).train()
    batch = make_batch([5, 3], model.config, absent=0.3)
    model(**batch).loss.backward()
    for key, parameter in model.named_parameters():
        # a key's bias raises all of a turn's scores alike, which the softmax does not see
        assert parameter.grad is not None and (parameter.grad.any() or key.endswith("key.bias")), key
    model.zero_grad()
    model(**make_batch([5, 3], model.config)).loss.backward()  # nothing absent
    assert all(parameter.grad is not None for parameter in model.parameters())


@each
def test_a_few_dialogues_can_be_learned_by_heart(name, make_batch):
    model = tiny_baseline(name, torch.float32, **({"dropout": 0.0} if name != "logistic_regression" else {}))
    batch = make_batch([4, 2, 3], model.config, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    scored = batch["attention_mask"]
    right = model(**batch).logits.argmax(-1)[scored] == batch["labels"][scored]
    # nine turns of nine numbers: a linear map can part them too
    assert right.all()


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "logistic_regression"])
def test_dropout_acts_in_training_alone(name, make_batch):
    model = tiny_baseline(name)
    batch = make_batch(LENGTHS, model.config)
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


# Each by itself


def test_logistic_regression_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(90, 9)) * 3 + 1
    labels = (vectors @ generator.normal(size=(9, 3)) / 3 + generator.gumbel(size=(90, 3))).argmax(-1)
    model = baseline_model("logistic_regression")(tiny_config("logistic_regression")).double()
    given = torch.from_numpy(vectors)[None]
    inputs = {"speech_embeddings": given[..., :5], "text_embeddings": given[..., 5:]}
    for modality, module in (("speech", model.speech_input), ("text", model.text_input)):
        values = inputs[f"{modality}_embeddings"][0]
        module.set_statistics(values.mean(0), values.std(0, correction=0))
    optimizer = torch.optim.LBFGS(model.head.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = model(**inputs, labels=torch.from_numpy(labels)[None]).loss
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(loss)
    standardized = (vectors - vectors.mean(0)) / vectors.std(0)
    reference = LogisticRegression(C=1e10, max_iter=10_000, tol=1e-10).fit(standardized, labels)
    found = model(**inputs).logits.softmax(-1)[0].detach().numpy()
    np.testing.assert_allclose(found, reference.predict_proba(standardized), atol=1e-4)


def gru(cell, inputs, state):
    """One step of a GRU from its weights."""
    suffix = "_l0" if isinstance(cell, torch.nn.GRU) else ""
    weights = [getattr(cell, f"{kind}{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    by_input, by_state = weights[0] @ inputs + weights[2], weights[1] @ state + weights[3]
    reset, update, new = zip(by_input.chunk(3), by_state.chunk(3), strict=True)
    update = torch.sigmoid(sum(update))
    return update * state + (1 - update) * torch.tanh(new[0] + torch.sigmoid(sum(reset)) * new[1])


def read_turns(part: DialogueRecurrence, turns: list[torch.Tensor]) -> list[torch.Tensor]:
    """Emotion states of the turns of one dialogue in the order of reading, a turn at a time."""
    common = party = emotion = torch.zeros(part.party_cell.hidden_size, dtype=torch.float64)
    past, emotions = [], []
    for turn in turns:
        common = gru(part.global_cell, torch.cat([turn, party]), common)
        scores = torch.stack([state @ part.context_query.weight @ turn for state in past]) if past else None
        context = torch.zeros_like(party) if scores is None else scores.softmax(0) @ torch.stack(past)
        past.append(common)
        party = gru(part.party_cell, torch.cat([turn, context]), party)
        emotion = gru(part.emotion_gru, party, emotion)
        emotions.append(emotion)
    return emotions


def test_dialogue_rnn_is_its_equations_turn_by_turn(make_batch):
    model = tiny_baseline("dialogue_rnn")
    batch = make_batch([6], model.config)
    turns = []
    for speech, text in zip(batch["speech_embeddings"][0], batch["text_embeddings"][0], strict=True):
        given = [(speech, model.speech_input), (text, model.text_input)]
        turns.append(torch.cat([(vector - module.mean) / module.std for vector, module in given]))
    onward, backward = read_turns(model.from_first, turns), read_turns(model.from_last, turns[::-1])[::-1]
    emotions = [torch.cat(both) for both in zip(onward, backward, strict=True)]
    for number, emotion in enumerate(emotions):
        query = model.emotion_query.weight @ emotion
        weights = torch.stack([query @ other for other in emotions]).softmax(0)
        attended = weights @ torch.stack(emotions)
        expected = model.head(F.relu(model.dense(attended)))
        torch.testing.assert_close(model(**batch).logits[0, number], expected, rtol=0, atol=1e-10)


def test_positions_are_sines_and_cosines_of_the_place_in_the_dialogue():
    real = torch.tensor([[True, False, True], [False, True, False]])
    found = sinusoidal_positions(TurnLayout(real), 4, torch.zeros(1, dtype=torch.float64))
    for row, place in zip(found, (0, 1, 0), strict=True):
        expected = [math.sin(place), math.cos(place), math.sin(place / 100), math.cos(place / 100)]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", ATTENTION)
def test_the_order_of_turns_is_seen_by_positions_alone(name, make_batch, monkeypatch):
    model = tiny_baseline(name)
    batch = make_batch([5], model.config)
    reversed_batch = {key: values.flip(1) for key, values in batch.items()}
    assert not torch.allclose(model(**reversed_batch).logits.flip(1), model(**batch).logits)
    monkeypatch.setattr(f"mister_e_hf.models.baselines.{name}.sinusoidal_positions", lambda layout, hidden, like: 0.0)
    torch.testing.assert_close(model(**reversed_batch).logits.flip(1), model(**batch).logits)


# Configurations and checkpoints


WRONG_CONFIGS = {
    "no modality": ("bc_lstm", {"modalities": []}, "modalities must be a choice of"),
    "another modality": ("bc_lstm", {"modalities": ["video"]}, "modalities must be a choice of"),
    "a modality twice": ("bc_lstm", {"modalities": ["text", "text"]}, "modalities must be a choice of"),
    "one modality to attend to": ("mult", {"modalities": ["text"]}, "each attends to the other; got"),
    "no width": ("dialogue_rnn", {"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
    "no layer": ("sdt", {"num_layers": 0}, "num_layers must be at least 1, got 0"),
    "all dropped": ("sdt", {"dropout": 1.0}, "dropout must lie in"),
    "heads that do not divide": ("mult", {"num_attention_heads": 3}, "multiple of num_attention_heads"),
    "temperature": ("sdt", {"distillation_temperature": 0}, "distillation_temperature must be positive"),
    "clip": ("logistic_regression", {"feature_clip": -1.0}, "feature_clip must be positive"),
    "unknown": ("logistic_regression", {"hidden_size": 3}, "LogisticRegressionConfig has no field 'hidden_size'"),
    "misspelt": ("bc_lstm", {"num_layer": 3}, "Did you mean 'num_layers'?"),
}


@pytest.mark.parametrize(("name", "changes", "message"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_a_configuration_that_cannot_be_is_refused(name, changes, message):
    with pytest.raises(Exception, match=message.replace("?", r"\?")):
        baseline_config(name)(**changes)


@each
def test_configuration_survives_its_file(name, tmp_path):
    config = tiny_config(name, feature_clip=3.0, class_weights={"joy": 2.0})
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(config) and again.model_type == f"erc_{name}"
    for field in (*config.own_fields(), "id2label", "label2id"):
        assert getattr(again, field) == getattr(config, field), field


@each
def test_a_loaded_model_is_bit_equal_to_the_saved(name, make_batch, tmp_path):
    model = tiny_baseline(name, torch.float32)
    model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert files == {"config.json", "model.safetensors"}
    assert (tmp_path / pathlib.Path(sys.modules[type(model).__module__].__file__).name).is_file()  # its code
    batch = make_batch(LENGTHS, model.config, dtype=torch.float32, absent=0.3)
    for load in (AutoModel.from_pretrained, baseline_model(name).from_pretrained):
        again = load(tmp_path).eval()
        assert type(again) is type(model)
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    weights = load_file(tmp_path / "model.safetensors")
    assert {key.partition(".")[0] for key in weights} >= {"speech_input", "text_input", "head"}


@each
def test_other_classes_start_the_heads_anew_alone(name, tmp_path):
    model = tiny_baseline(name, torch.float32)
    model.save_pretrained(tmp_path)
    labels = {0: "good", 1: "bad"}
    with pytest.raises(ValueError, match="of another shape: head.bias, head.weight"):
        AutoModel.from_pretrained(tmp_path, id2label=labels)
    again = AutoModel.from_pretrained(tmp_path, id2label=labels, ignore_mismatched_sizes=True)
    kept = [key for key, value in again.named_parameters() if torch.equal(value, model.get_parameter(key))]
    assert {key for key, _ in again.named_parameters()} - set(kept) == {
        key for key, _ in model.named_parameters() if "head." in key
    }


def test_an_unknown_baseline_is_named():
    for find in (baseline_config, baseline_model):
        with pytest.raises(
            ValueError, match="Unknown model 'lstm'; expected one of mister_e, logistic_regression, bc_lstm"
        ):
            find("lstm")
    assert set(baselines.TRAINING) == set(BASELINES)


# From a recipe to a checkpoint folder


def test_a_recipe_of_a_baseline_is_trained_scored_and_told_of(tmp_path, capsys):
    corpus = write_demo_corpus(tmp_path / "demo")
    recipe = Recipe.load(ROOT / "hub_configs" / "demo.yaml", ["--corpus", str(corpus), "--use_cpu", "--disable_tqdm"])
    made = recipe.baseline("bc_lstm")
    made.override(["--num_train_epochs", "2", "--hidden_size", "8"])
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(made.to_dict()))
    assert cli.main(["train", str(path), "--output_dir", str(tmp_path / "run")]) == 0
    run = tmp_path / "run"
    assert (run / "bc_lstm.py").is_file()
    model = AutoModel.from_pretrained(run)
    assert type(model) is baseline_model("bc_lstm") and list(model.config.id2label.values()) == LABELS
    assert model.speech_input.mean.any()  # standardised by what train is like
    results = json.loads((run / "results.json").read_text())
    assert set(results["test"]) == {"mixture"}
    assert model.config.calibration_temperature == results["calibration"]["temperature"] != 1
    columns = {"split", "dialogue_id", "utterance_id", "label", "prediction", "probabilities"}
    assert set(pq.read_table(run / "predictions.parquet").column_names) == columns
    card = (run / "README.md").read_text()
    assert "# bc-LSTM (GRU), " in card and "a baseline of MiSTER-E" in card and "import mister_e_hf" in card
    assert "trust_remote_code" not in card and "mixture-of-experts" not in card
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--use_cpu"]) == 0
    assert "\nequal to what results.json holds" in capsys.readouterr().out
    assert cli.main(["doctor", str(run)]) == 0
    assert "erc_bc_lstm" in capsys.readouterr().out
    with pytest.raises(ValueError, match="The pipeline runs MiSTER-E; this model is of type 'erc_bc_lstm'"):
        pipeline("conversation-emotion-recognition", model=str(run))
