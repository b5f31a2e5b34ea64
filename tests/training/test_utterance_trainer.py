import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from mister_e_hf.encoders.utterances import UtteranceCollator, Utterances
from mister_e_hf.evaluation.metrics import emotion_scores, softmax
from mister_e_hf.training.utterance_trainer import logits_of
from support.gradient_steps import assert_close
from support.small_encoders import LABELS
from support.utterance_training import CASES, gradient, items, trainer_of

pytestmark = pytest.mark.usefixtures("own_cache")

LABEL2ID = {label: index for index, label in enumerate(LABELS)}


MODELS = {
    "lora": ("all_labelled", {}),
    "unlabelled turns": ("some", {}),
    "frozen": ("some", {"tuning": "frozen"}),
    "full with class weights": ("some", {"tuning": "full", "class_weights": {"joy": 3.0, "anger": 0.5}}),
}


@pytest.mark.parametrize(("case", "model"), MODELS.values(), ids=MODELS)
def test_gradient_is_that_of_the_focal_loss_per_labelled_turn(backbones, tmp_path, case, model):
    labels = CASES[case]
    data = items(labels)
    trainer = trainer_of(backbones["text"], tmp_path, data, model=model)
    logits = trainer.model(**trainer.processor([item["turn"] for item in data])).logits
    weights = model.get("class_weights", {})
    terms = []
    for row, label in zip(logits, labels, strict=True):
        if label != -100:
            p = row.softmax(-1)[label]
            terms.append(weights.get(LABELS[label], 1.0) * (1 - p) ** trainer.model.config.focal_gamma * -p.log())
    (sum(terms) / len(terms)).backward()
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    expected = {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in trained.items()}
    assert any(part.abs().max() > 1e-3 for part in expected.values())
    assert_close(gradient(backbones["text"], tmp_path, data, model=model), expected)


@pytest.mark.parametrize("case", CASES)
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(backbones, tmp_path, case):
    data = items(CASES[case])
    whole = gradient(backbones["text"], tmp_path, data)
    parts = gradient(backbones["text"], tmp_path, data, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert_close(parts, whole)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("modality", ["speech", "text"])
def test_activation_checkpointing_gives_the_same_gradient(corpus, backbones, tmp_path, modality, tuning):
    turns = Utterances(corpus["train"], modality, LABEL2ID)
    options = {"data": [turns[item] for item in range(4)], "modality": modality, "model": {"tuning": tuning}}
    kept = gradient(backbones[modality], tmp_path, **options)
    again = gradient(backbones[modality], tmp_path, **options, activation_checkpointing=True)
    assert any(step.abs().max() > 1e-4 for name, step in kept.items() if name.startswith("backbone."))
    assert_close(again, kept)


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_head_learning_rate_applies_to_new_weights(backbones, tmp_path, tuning):
    options = {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-5}
    trainer = trainer_of(
        backbones["text"], tmp_path, items([0, 1]), model={"tuning": tuning}, head_learning_rate=1e-2, **options
    )
    optimizer = trainer.create_optimizer()
    names = {id(weight): name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    found = {}
    for group in optimizer.param_groups:
        assert group["params"]
        for weight in group["params"]:
            assert id(weight) in names and names[id(weight)] not in found
            found[names[id(weight)]] = group["lr"], group["weight_decay"]
    assert set(found) == set(names.values())
    assert {name.startswith("backbone.") for name in found} == ({False} if tuning == "frozen" else {False, True})
    for name, (rate, decay) in found.items():
        assert rate == (1e-5 if name.startswith("backbone.") else 1e-2), name
        plain = name.endswith("bias") or "norm" in name.lower()
        assert decay == (0.0 if plain else 0.1), name
    trainer = trainer_of(backbones["text"], tmp_path, items([0, 1]), model={"tuning": tuning}, **options)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-5}


def test_head_learning_rate_scales_the_steps(backbones, tmp_path):
    one = gradient(backbones["text"], tmp_path, items([0, 1, 2, 0]))
    other = gradient(backbones["text"], tmp_path, items([0, 1, 2, 0]), learning_rate=0.5, head_learning_rate=3.0)
    for name, step in other.items():
        torch.testing.assert_close(
            step, one[name] * (0.5 if name.startswith("backbone.") else 3.0), atol=5e-6, rtol=1e-3
        )


class SpoilLastEpoch(TrainerCallback):
    """Notes what is trained at each evaluation, and before the last epoch makes nonsense of it."""

    def __init__(self):
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def trained(self, model) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.weights[state.global_step] = self.trained(model)

    def on_epoch_begin(self, args, state, control, model, **kwargs):
        if state.epoch >= args.num_train_epochs - 1:
            for weight in model.parameters():
                if weight.requires_grad:
                    torch.nn.init.normal_(weight.data)
            model.head.bias.data[:] = torch.tensor([1e6, 0.0, 0.0])


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_best_epoch_is_kept(corpus, backbones, tmp_path, tuning):
    spoil = SpoilLastEpoch()
    data = {
        split: Utterances(corpus[split], "text", LABEL2ID, labelled_only=True) for split in ("train", "validation")
    }
    settings = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": -1, "num_train_epochs": 4}
    settings |= {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = trainer_of(
        backbones["text"],
        tmp_path,
        data["train"],
        model={"tuning": tuning},
        eval_dataset=data["validation"],
        callbacks=[spoil],
        **settings,
    )
    trainer.train()
    best = trainer.state.best_global_step
    assert best < trainer.state.global_step and len(spoil.weights) == 4
    remaining = spoil.trained(trainer.model)
    for name, weight in remaining.items():
        assert torch.equal(weight, spoil.weights[best][name]), name
    assert not torch.equal(remaining["head.weight"], spoil.weights[trainer.state.global_step]["head.weight"])
    scores = [entry["eval_weighted_f1"] for entry in trainer.state.log_history if "eval_weighted_f1" in entry]
    assert trainer.evaluate()["eval_weighted_f1"] == pytest.approx(max(scores))


@pytest.mark.parametrize("modality", ["speech", "text"])
def test_predictions_keep_the_order_of_turns(corpus, backbones, tmp_path, modality):
    data = Utterances(corpus["test"], modality, LABEL2ID)
    trainer = trainer_of(backbones[modality], tmp_path, modality=modality, per_device_eval_batch_size=3)
    prediction = trainer.predict(data)
    model = trainer.model.eval()
    with torch.no_grad():
        alone = [model(**trainer.processor([data[item]["turn"]])).logits[0].numpy() for item in range(len(data))]
    np.testing.assert_allclose(logits_of(prediction.predictions), alone, atol=1e-5)
    assert prediction.label_ids.tolist() == [data[item]["label"] for item in range(len(data))]
    scored = prediction.label_ids >= 0
    expected = emotion_scores(prediction.label_ids[scored], softmax(np.stack(alone)[scored]), LABELS)
    assert prediction.metrics["test_weighted_f1"] == pytest.approx(expected["weighted_f1"])
    assert 0 < scored.sum() < len(data)


def test_training_crops_long_audio_and_batches_similar_lengths(corpus, backbones, tmp_path):
    data = Utterances(corpus["train"], "speech", LABEL2ID)
    trainer = trainer_of(
        backbones["speech"],
        tmp_path,
        data,
        modality="speech",
        train_sampling_strategy="group_by_length",
        eval_dataset=data,
    )
    trainer.processor.window_seconds = 0.3
    batches = list(trainer.get_train_dataloader())
    assert sum(len(batch["labels"]) for batch in batches) == len(data)
    for batch in batches:
        assert batch["input_values"].shape[1] <= 0.3 * 16_000
        assert batch["utterance_index"].tolist() == list(range(len(batch["labels"])))
    lengths = [batch["attention_mask"].sum(-1) for batch in batches[:-1]]
    spread = torch.stack([(length.max() - length.min()).float() for length in lengths]).mean()
    everything = torch.cat(lengths)
    assert spread < 0.5 * (everything.max() - everything.min())
    evaluated = list(trainer.get_eval_dataloader())
    assert any(len(batch["utterance_index"]) > len(batch["labels"]) for batch in evaluated)
    assert isinstance(trainer.data_collator, UtteranceCollator) and not trainer.data_collator.random_crop
