"""Pre-training models: what is hidden, reconstructed and compared, and the weights that fine-tuning begins from."""

import logging
import math
import os
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.losses import info_nce, info_nce_of_turns
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.models.registry import entry, registered
from support.checkpoint_code import PRETRAINING, STAGE_2, file_stems
from support.hidden_packages import HIDE
from support.model_contract import LENGTHS, Batch, away_from_neutral, rows_of, small_batch, small_config, spread
from support.new_process import run_python

NAMES = [each.name for each in registered() if each.pretraining]
every_model = pytest.mark.parametrize("name", NAMES)


def pretraining_model(name: str, dtype: torch.dtype = torch.float64, **changes):
    """In evaluation mode, with no parameter and no buffer at its neutral value."""
    torch.manual_seed(0)
    return away_from_neutral(entry(name).pretraining_class()(small_config(name, **changes)), dtype)


def masked_batch(config, **options) -> Batch:
    """Dialogues with a third of their vectors hidden."""
    batch = small_batch(config, **options)
    batch.pop("labels")
    generator = torch.Generator().manual_seed(1)
    for name in config.modalities:
        each = MODALITIES[name]
        batch[each.masked] = batch[each.mask] & (torch.rand(batch[each.mask].shape, generator=generator) < 0.35)
        assert batch[each.masked].any()
    return batch


# InfoNCE


def test_identical_vectors_cannot_be_told_from_one_another():
    for count in (1, 2, 7):
        same = torch.ones(count, 3, dtype=torch.float64)
        torch.testing.assert_close(info_nce(same, same), torch.tensor(math.log(count), dtype=torch.float64))


def test_info_nce_of_orthonormal_pairs():
    pairs = torch.eye(5, dtype=torch.float64)
    for temperature in (0.1, 1.0):
        expected = math.log(1 + 4 * math.exp(-1 / temperature))
        torch.testing.assert_close(info_nce(pairs, 3 * pairs, temperature), torch.tensor(expected).double())


def test_info_nce_is_symmetric_and_does_not_depend_on_the_order_of_turns():
    first, second = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, order = info_nce(first, second), torch.tensor([3, 0, 5, 1, 2, 4])
    torch.testing.assert_close(info_nce(second, first), found)
    torch.testing.assert_close(info_nce(first[order], second[order]), found)
    assert info_nce(first, second, num_items=12) == found / 2


def test_a_lone_pair_and_a_batch_without_pairs_add_nothing():
    first, second = torch.randn(2, 1, 4, requires_grad=True)
    assert info_nce(first, second) == 0
    empty = info_nce(first[:0], second[:0])
    (empty + info_nce(first, second)).backward()
    assert empty == 0
    # neighbours are no negatives, so that each turn is a lone pair
    first, second = torch.randn(2, 3, 4)
    assert (info_nce_of_turns(first, second, dialogues=torch.zeros(3)) == 0).all()


def test_negatives_of_other_dialogues_alone():
    first, second = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = info_nce_of_turns(first, second, dialogues=torch.tensor([7, 7, 9, 9]))
    for turn in range(4):
        kept = [turn, *((2, 3) if turn < 2 else (0, 1))]
        torch.testing.assert_close(found[turn], info_nce_of_turns(first[kept], second[kept])[0])


def test_parts_of_the_turns_add_up_when_they_are_compared_with_all():
    first, second = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dialogues = torch.tensor([0, 0, 1, 1, 1, 2])
    for numbers in (None, dialogues):
        whole = info_nce(first, second, dialogues=numbers)
        parts = [
            info_nce(
                first[part],
                second[part],
                num_items=6,
                dialogues=None if numbers is None else numbers[part],
                all_first=first,
                all_second=second,
                all_dialogues=numbers,
                offset=part.start,
            )
            for part in (slice(0, 2), slice(2, 2), slice(2, 6))
        ]
        torch.testing.assert_close(sum(parts), whole)


# The models


@every_model
def test_hidden_vectors_are_not_read(name):
    model = pretraining_model(name)
    batch = masked_batch(model.config)
    vectors = {key: batch[MODALITIES[key].embeddings].requires_grad_() for key in model.config.modalities}
    output = model(**batch)
    guessed = sum(each.sum() for each in (*output.reconstructions.values(), *(output.projections or {}).values()))
    gradients = torch.autograd.grad(guessed, list(vectors.values()))
    for key, gradient in zip(vectors, gradients, strict=True):
        hidden, present = batch[MODALITIES[key].masked], batch[MODALITIES[key].mask]
        assert (gradient[hidden] == 0).all()
        assert (gradient[present & ~hidden] != 0).any(-1).any()


@every_model
def test_what_is_compared_of_a_modality_has_not_seen_another(name):
    """Or its turns would find one another without having learned anything."""
    choices = {"mister_e": [{}, {"experts": ["fusion"]}, {"fusion_context": True}]}.get(name, [{}])
    for changes in choices:
        model = pretraining_model(name, **changes)
        batch = masked_batch(model.config)
        vectors = {key: batch[MODALITIES[key].embeddings].requires_grad_() for key in model.config.modalities}
        projections = model(**batch).projections
        for key in vectors:
            gradients = torch.autograd.grad(
                projections[key].sum(), list(vectors.values()), retain_graph=True, allow_unused=True
            )
            for other, gradient in zip(vectors, gradients, strict=True):
                read = gradient is not None and bool(gradient.any())
                assert read == (other == key)


@every_model
def test_loss_is_the_mean_error_of_the_hidden_vectors_in_standardised_space(name):
    model = pretraining_model(name)
    batch = masked_batch(model.config)
    output, total, count = model(**batch), 0.0, 0
    for key in model.config.modalities:
        each, layer = MODALITIES[key], dict(model.named_modules())
        layer = next(layer[path] for path in layer if path.endswith(f"{key}_input"))
        hidden = batch[each.masked]
        standardised = (batch[each.embeddings][hidden] - layer.mean) / layer.std
        errors = (output.reconstructions[key][hidden] - standardised).square().mean(-1)
        torch.testing.assert_close(output.errors[key][hidden], errors)
        assert (output.errors[key][~hidden] == 0).all() and (output.reconstructions[key][~hidden] == 0).all()
        total, count = total + errors.sum(), count + len(errors)
    torch.testing.assert_close(output.loss, total / count)
    assert model(**batch, num_items_in_batch=2 * count).loss == output.loss / 2


@every_model
def test_a_decoder_that_copies_has_no_loss(name, monkeypatch):
    model = pretraining_model(name)
    batch = masked_batch(model.config)
    layers = {path.rpartition(".")[2]: each for path, each in model.named_modules() if path.endswith("_input")}
    for key in model.config.modalities:
        each, layer = MODALITIES[key], layers[f"{key}_input"]
        target = (batch[each.embeddings][batch[each.masked]] - layer.mean) / layer.std
        monkeypatch.setattr(model.pretraining.decoders[key], "forward", lambda states, rows=target: rows)
    assert model(**batch).loss < 1e-20


@every_model
def test_a_hidden_vector_is_not_an_absent_one(name):
    model = pretraining_model(name)
    batch = masked_batch(model.config)
    key = model.config.modalities[0]
    each = MODALITIES[key]
    absent = {**batch, each.mask: batch[each.mask] & ~batch[each.masked]}
    hidden, without = model(**batch), model(**absent)
    other = model.config.modalities[1]
    if hidden.projections is not None:
        assert not torch.allclose(hidden.projections[key], without.projections[key])
    assert (without.errors[key] == 0).all() and (without.errors[other] > 0).any()


@every_model
def test_padding_changes_nothing_in_pretraining(name):
    model = pretraining_model(name)
    batch, total = masked_batch(model.config), 10
    expected, loss = model(**batch).reconstructions, model(**batch).loss
    places = [[*range(total - 7, total)]] * 4
    for content in (1e30, math.nan):
        wide = spread(batch, places, total, content)
        found = model(**wide)
        torch.testing.assert_close(found.loss, loss, rtol=0, atol=1e-10)
        for key, each in found.reconstructions.items():
            torch.testing.assert_close(each[:, total - 7 :], expected[key], rtol=0, atol=1e-10)


@every_model
def test_dialogues_one_by_one_give_the_loss_of_the_batch(name):
    model = pretraining_model(name)
    batch = masked_batch(model.config)
    count = sum(int(batch[MODALITIES[key].masked].sum()) for key in model.config.modalities)
    parts = [model(**rows_of(batch, [row], LENGTHS[row]), num_items_in_batch=count).loss for row in range(4)]
    torch.testing.assert_close(sum(parts), model(**batch).loss)


@every_model
def test_every_parameter_takes_part_whatever_the_batch_holds(name):
    model = pretraining_model(name).train()
    empty = masked_batch(model.config)
    empty["attention_mask"] = torch.zeros_like(empty["attention_mask"])
    plain = masked_batch(model.config) | {each.masked: None for each in MODALITIES.values()}
    for batch in (masked_batch(model.config), empty, plain):
        model.zero_grad()
        output = model(**batch)
        loss = 0.0 if output.loss is None else output.loss
        loss = loss + sum(each.sum() for each in (*output.errors.values(), *(output.projections or {}).values()))
        loss.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert model(**plain).loss is None


@every_model
def test_a_modality_that_is_given_nowhere_is_absent(name):
    model = pretraining_model(name)
    batch = masked_batch(model.config)
    key = model.config.modalities[0]
    each = MODALITIES[key]
    nowhere = {**batch, each.mask: torch.zeros_like(batch["attention_mask"])}
    found, expected = model(**{**nowhere, each.embeddings: None}), model(**nowhere)
    torch.testing.assert_close(found.loss, expected.loss)
    with pytest.raises(InputError, match=f"{each.masked} must have shape"):
        model(**{**batch, each.masked: batch[each.masked][:, :3]})


def test_one_modality_is_reconstructed_and_not_compared():
    model = pretraining_model("mister_e", experts=["text"])
    batch = masked_batch(model.config)
    assert not model.compares and model(**batch).projections is None
    assert model(**batch).loss > 0
    fused = pretraining_model("mister_e", experts=["fusion"])
    assert fused.compares and set(fused(**batch).errors) == {"speech", "text"}


# Checkpoints


@pytest.fixture
def saved(request, tmp_path) -> Path:
    pretraining_model(request.param, torch.float32).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


every_saved = pytest.mark.parametrize(("saved", "name"), [(name, name) for name in NAMES], indirect=["saved"])


def new_weights(model) -> set[str]:
    return {name for name in model.state_dict() if not model.is_pretrained(name)}


@every_saved
def test_fine_tuning_begins_from_the_pretrained_weights(saved, name, caplog):
    pretrained = AutoModelForPreTraining.from_pretrained(saved)
    assert type(pretrained) is entry(name).pretraining_class()
    with caplog.at_level(logging.WARNING):
        labels = {0: "bored", 1: "glad", 2: "calm", 3: "tense"}
        model = AutoModel.from_pretrained(saved, id2label=labels)
    assert type(model) is entry(name).model_class() and model.begins_from_pretraining
    assert model.config.num_labels == 4
    shared, own = pretrained.state_dict(), model.state_dict()
    assert {key for key in shared if not key.startswith("pretraining.")} == set(own) - new_weights(model)
    assert all(torch.equal(own[key], shared[key]) for key in own.keys() & shared.keys())
    of = ("mister_e_hf", "transformers.modeling_utils")
    listed = [record.message for record in caplog.records if record.name.startswith(of)]
    (layers,) = (re.search(r"they are new: (.*?)\.(?: The model|$)", line)[1].split(", ") for line in listed)
    assert layers == sorted({key.rpartition(".")[0] for key in new_weights(model)})
    assert "not sharded" not in caplog.text


@every_saved
def test_scores_begin_from_the_pretrained_weights(saved, name):
    model = AutoModel.from_pretrained(saved, id2label={0: "valence"}, problem_type="regression")
    assert (model.target_scale.std == 1).all() and (model.target_scale.mean == 0).all()
    assert model(**small_batch(model.config, dtype=torch.float32) | {"labels": None}).logits.isfinite().all()


@every_saved
def test_a_fine_tuned_folder_is_a_usual_one_again(saved, name, tmp_path, caplog):
    model = AutoModel.from_pretrained(saved)
    model.save_pretrained(tmp_path / "tuned")
    caplog.clear()
    found = AutoModel.from_pretrained(tmp_path / "tuned")
    assert not found.begins_from_pretraining and "new" not in caplog.text
    assert "AutoModelForPreTraining" not in AutoConfig.from_pretrained(tmp_path / "tuned").auto_map
    assert not (tmp_path / "tuned" / "pretraining.py").exists()
    for load in (AutoModelForPreTraining, entry(name).pretraining_class()):
        with pytest.raises(InputError, match="tuned' is not a pre-training model"):
            load.from_pretrained(tmp_path / "tuned")


@every_saved
def test_other_weights_that_are_missing_still_raise(saved, name):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    lost = next(key for key in weights if key.endswith("speech_input.null_embedding"))
    vector = weights.pop(lost)
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    for load in (AutoModel, AutoModelForPreTraining):
        with pytest.raises(InputError, match=f"missing: {lost}"):
            load.from_pretrained(saved)
    save_file(weights | {lost: vector, "stray": vector.clone()}, saved / "model.safetensors", {"format": "pt"})
    for load in (AutoModel, AutoModelForPreTraining):
        with pytest.raises(InputError, match="unexpected: stray"):
            load.from_pretrained(saved)


WITHOUT_THE_PACKAGE = (
    HIDE
    + """
import sys

hidden = hide("mister_e_hf", "datasets", "accelerate", "pyarrow")
import torch
from transformers import AutoModel, AutoModelForPreTraining

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
    begun = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert all(type(each).__module__.startswith("transformers_modules.") for each in (model, begun))
    widths = model.config.widths
    vectors = {f"{name}_embeddings": torch.randn(1, 3, widths[name]) for name in model.config.modalities}
    masked = {f"{name}_masked": torch.tensor([[True, False, False]]) for name in model.config.modalities}
    model(**vectors, **masked).loss.backward()
    assert begun(**vectors).logits.shape[:2] == (1, 3)
    model.save_pretrained(folder + "_again")
    AutoModelForPreTraining.from_pretrained(folder + "_again", trust_remote_code=True)
    begun.save_pretrained(folder + "_begun")
    AutoModel.from_pretrained(folder + "_begun", trust_remote_code=True)
    print(type(model).__name__, type(begun).__name__)
"""
)


def test_folders_work_without_the_package(tmp_path):
    for name in NAMES:
        pretraining_model(name, torch.float32).save_pretrained(tmp_path / name)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    folders = [tmp_path / name for name in NAMES]
    call = run_python("-c", WITHOUT_THE_PACKAGE, *folders, env=environment, cwd=tmp_path)
    assert call.returncode == 0, call.stdout + call.stderr
    models = [entry(name) for name in NAMES]
    assert call.stdout.split() == [
        each.__name__ for model in models for each in (model.pretraining_class(), model.model_class())
    ]
    assert {path.stem for path in (tmp_path / "mister_e").glob("*.py")} == file_stems(*STAGE_2, *PRETRAINING)


@every_saved
def test_save_and_load_give_the_same_pretraining_model(saved, name):
    model = pretraining_model(name, torch.float32)
    batch = masked_batch(model.config, dtype=torch.float32)
    loaded = AutoModelForPreTraining.from_pretrained(saved).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_a_pretraining_model_of_scores_serves_other_targets_and_classes(tmp_path):
    config = small_config("emo_caps", problem_type="regression", id2label={0: "valence"})
    entry("emo_caps").pretraining_class()(config).save_pretrained(tmp_path)
    scores = AutoModel.from_pretrained(tmp_path, id2label={0: "valence", 1: "arousal"})
    assert scores.target_scale.std.shape == (2,)
    assert not hasattr(AutoModel.from_pretrained(tmp_path, problem_type=None), "target_scale")
