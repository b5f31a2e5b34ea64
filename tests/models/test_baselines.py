import json
import math
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, pipeline

from mister_e_hf import Recipe, cli
from mister_e_hf.corpora.demo import LABELS, write_demo_corpus
from mister_e_hf.models.baselines.dialogue_rnn import DialogueRecurrence
from mister_e_hf.models.registry import baselines, entry
from mister_e_hf.models.turn_transformer import sinusoidal_positions
from mister_e_hf.models.turns import TurnLayout
from support.model_contract import small_batch, small_config, small_model

ROOT = pathlib.Path(__file__).parents[2]
ATTENTION = ("mult", "sdt")
LENGTHS = [3, 6, 1]
BASELINES = [each.name for each in baselines()]


each = pytest.mark.parametrize("name", BASELINES)


# What goes in and comes out


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "sdt"])
def test_one_modality_alone_is_read(name, make_batch):
    model = small_model(name, modalities=["text"])
    assert not hasattr(model, "speech_input")
    batch = make_batch(LENGTHS, model.config)
    expected = model(**batch).logits
    batch["speech_embeddings"] += 1
    assert torch.equal(model(**batch).logits, expected)


@each
def test_only_a_turn_by_itself_has_no_context(name, make_batch):
    model = small_model(name)
    batch = make_batch([5], model.config)
    before = model(**batch).logits
    batch["text_embeddings"][0, 4] += 1
    changed = (model(**batch).logits != before).any(-1)[0]
    assert changed.tolist() == [name != "logistic_regression"] * 4 + [True]


# Loss and gradient


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "sdt"])
def test_loss_is_weighted_cross_entropy(name, make_batch):
    model = small_model(name, class_weights={"joy": 2.0})
    batch = make_batch(LENGTHS, model.config)
    output, scored = model(**batch), batch["attention_mask"]
    weights = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    expected = F.cross_entropy(output.logits[scored], batch["labels"][scored], weights, reduction="sum") / scored.sum()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_sdt_learns_from_labels_and_its_students_from_the_teacher(temperature):
    model = small_model("sdt", distillation_temperature=temperature)
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
    torch.testing.assert_close(alike, 3 * model.label_loss(teacher, labels, None))


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "logistic_regression"])
def test_dropout_acts_in_training_alone(name, make_batch):
    model = small_model(name)
    batch = make_batch(LENGTHS, model.config)
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


# Each by itself


def test_logistic_regression_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(90, 9)) * 3 + 1
    labels = (vectors @ generator.normal(size=(9, 3)) / 3 + generator.gumbel(size=(90, 3))).argmax(-1)
    model = entry("logistic_regression").model_class()(small_config("logistic_regression")).double()
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
    model = small_model("dialogue_rnn")
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


MULT_PARTS = {
    ("speech", "text"): ["text_to_speech", "speech_to_text"],
    ("text",): [],
    ("speech", "text", "visual"): [
        *("text_to_speech", "visual_to_speech", "speech_to_text", "visual_to_text"),
        *("speech_to_visual", "text_to_visual"),
    ],
}


@pytest.mark.parametrize("read", MULT_PARTS, ids="+".join)
def test_mult_attends_between_all_pairs(read):
    model = small_model("mult", modalities=list(read))
    parts = [name for name, _ in model.named_children() if not name.endswith("_input")]
    own = [f"{name}_{part}" for part in ("projection", "memory") for name in read]
    assert parts == [*own[: len(read)], *MULT_PARTS[read], *own[len(read) :], "dropout", "residual", "head"]
    batch = small_batch(model.config, [4], absent=0.0)
    layout = TurnLayout(batch["attention_mask"])
    turns = {name: getattr(model, f"{name}_input")(batch[f"{name}_embeddings"][0], layout.index >= 0) for name in read}
    positions = sinusoidal_positions(layout, 8, model.head.weight)
    streams = {name: model.get_submodule(f"{name}_projection")(turns[name]) + positions for name in read}
    memories = []
    for asks in read:
        answers = [
            model.get_submodule(f"{answers}_to_{asks}")(streams[asks], layout, streams[answers])
            for answers in read
            if answers != asks
        ]
        memory = model.get_submodule(f"{asks}_memory")
        assert memory.norm.normalized_shape == (8 * max(len(read) - 1, 1),)
        memories.append(memory(torch.cat(answers or [streams[asks]], -1), layout))
    joint = torch.cat(memories, -1)
    expected = model.head(joint + model.residual(joint))
    torch.testing.assert_close(model(**batch).logits[0], expected)


def test_a_modality_without_a_width_is_named(make_batch):
    config = small_config("mult", modalities=["visual"], visual_embedding_dim=None)
    with pytest.raises(ValueError, match="visual_embedding_dim is not set, but the model reads visual vectors"):
        entry("mult").model_class()(config)
    model = small_model("mult", visual_embedding_dim=None)
    batch = make_batch(LENGTHS, model.config)
    with pytest.raises(ValueError, match="visual_embedding_dim is not set"):
        model(**batch, visual_embeddings=torch.zeros(3, 6, 3))


def test_sdt_of_scores_is_the_error_of_teacher_and_students():
    model = small_model("sdt", id2label={0: "sentiment"}, problem_type="regression")
    teacher, speech, text = torch.randn(3, 4, 1, dtype=torch.float64)
    labels = torch.tensor([[0.5], [math.nan], [-1.0], [2.0]], dtype=torch.float64)
    kept = [0, 2, 3]
    expected = sum((scores[kept] - labels[kept]).abs().sum() for scores in (teacher, speech, text))
    torch.testing.assert_close(model.turn_loss((teacher, speech, text), labels, None), expected / 3)
    torch.testing.assert_close(model.turn_loss((teacher, speech, text), labels, 7), expected / 7)


def test_positions_are_sines_and_cosines_of_the_place_in_the_dialogue():
    real = torch.tensor([[True, False, True], [False, True, False]])
    found = sinusoidal_positions(TurnLayout(real), 4, torch.zeros(1, dtype=torch.float64))
    for row, place in zip(found, (0, 1, 0), strict=True):
        expected = [math.sin(place), math.cos(place), math.sin(place / 100), math.cos(place / 100)]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", ATTENTION)
def test_the_order_of_turns_is_seen_by_positions_alone(name, make_batch, monkeypatch):
    model = small_model(name)
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
    "one modality to attend to": ("sdt", {"modalities": ["text"]}, "each attends to the other; got"),
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
        entry(name).config_class()(**changes)


# From a recipe to a checkpoint folder


def test_a_recipe_of_a_baseline_is_trained_scored_and_used(tmp_path, capsys):
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
    assert type(model) is entry("bc_lstm").model_class() and list(model.config.id2label.values()) == LABELS
    assert model.speech_input.mean.any()  # standardised by what train is like
    results = json.loads((run / "results.json").read_text())
    assert set(results["test"]) == {"mixture"}
    assert model.config.calibration_temperature == results["calibration"]["temperature"] != 1
    columns = {"split", "dialogue_id", "utterance_id", "label", "prediction", "probabilities"}
    assert set(pq.read_table(run / "predictions.parquet").column_names) == columns
    card = (run / "README.md").read_text()
    assert "# bc-LSTM (GRU), " in card and "- baseline" in card and "import mister_e_hf" in card
    assert "mixture-of-experts" not in card
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--use_cpu"]) == 0
    assert "\nequal to what results.json holds" in capsys.readouterr().out
    assert cli.main(["doctor", str(run)]) == 0
    assert "bc-LSTM" in capsys.readouterr().out
    vectors = {"speech_embedding": [0.0] * 24, "text_embedding": [0.0] * 32}
    (turn,) = pipeline("conversation-emotion-recognition", model=str(run))([vectors])
    assert turn["label"] in LABELS and "experts" not in turn and "gate" not in turn
