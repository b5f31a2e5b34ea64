"""What every conversation model keeps for every choice of modalities, as checks like those of `model_contract.py`."""

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.models.registry import entry, models_taking
from support.model_contract import (
    WIDTHS,
    assert_same,
    gradients_of,
    outputs_of,
    small_batch,
    small_config,
    small_model,
    spread,
)

PLACES = [[1, 2, 4, 5, 6, 8, 9]] * 4


def choices(name: str) -> list[dict[str, Any]]:
    """The changes of a small configuration that choose what the model reads: every non-empty choice that it takes."""
    kind = entry(name).config_class()
    if "modalities" not in kind.own_fields():
        experts = [{"experts": ["speech"]}, {"experts": ["text"]}, {"experts": ["speech", "text"]}]
        return [{}, *(experts if "experts" in kind.own_fields() else ())]
    found = []
    for count in range(1, len(kind.takes()) + 1):
        for chosen in combinations(kind.takes(), count):
            try:
                small_config(name, modalities=list(chosen))
            except StrictDataclassError:  # those of SDT, which its own tests check
                continue
            found.append({"modalities": list(chosen)})
    return found


def each_choice_is_read_and_nothing_else(name: str, folder: Path):
    for changes in choices(name):
        model = small_model(name, **changes)
        read = list(model.config.modalities)
        assert read == changes.get("modalities", changes.get("experts", read))
        batch = small_batch(model.config)
        expected, loss, gradients = outputs_of(model, batch), model(**batch).loss, gradients_of(model, batch)
        assert all(gradient.any() or key.endswith("key.bias") for key, gradient in gradients.items()), changes
        for modality in (MODALITIES[each] for each in model.config.takes()):
            changed = outputs_of(model, {**batch, modality.embeddings: batch[modality.embeddings] + 1})
            assert torch.equal(changed["logits"], expected["logits"]) == (modality.name not in read), modality
        # padding and what is under a mask
        wide = spread(batch, PLACES, 10, math.nan)
        found = {key: values[:, PLACES[0]] for key, values in outputs_of(model, wide).items()}
        assert_same(found, expected)
        torch.testing.assert_close(model(**wide).loss, loss, rtol=0, atol=1e-10)
        assert_same(gradients_of(model, wide), gradients)


def masked_is_absent_for_each_subset(name: str, folder: Path):
    for changes in choices(name):
        model = small_model(name, **changes)
        batch = small_batch(model.config)
        read = [MODALITIES[each] for each in model.config.modalities]
        nowhere = torch.zeros_like(batch["attention_mask"])
        for count in range(1, len(read) + 1):
            for removed in combinations(read, count):
                masked = {**batch, **{each.mask: nowhere for each in removed}}
                expected = outputs_of(model, masked)
                nan = {each.embeddings: torch.full_like(batch[each.embeddings], math.nan) for each in removed}
                assert_same(outputs_of(model, {**masked, **nan}), expected, 0.0)
                if count < len(read):
                    absent = {key: None for each in removed for key in (each.embeddings, each.mask)}
                    assert_same(outputs_of(model, {**batch, **absent}), expected, 0.0)


def other_modalities_are_refused(name: str, folder: Path):
    model = small_model(name, torch.float32)
    batch = small_batch(model.config, dtype=torch.float32)
    assert entry(name).config_class().takes() == tuple(each for each in MODALITIES if name in models_taking(each))
    for modality in (each for key, each in MODALITIES.items() if key not in model.config.takes()):
        others = f"models that read {modality.name}: {', '.join(models_taking(modality.name))}"
        with pytest.raises(InputError, match=f"{modality.embeddings} are given, but the model reads .*; {others}"):
            model(**batch, **{modality.embeddings: torch.zeros(4, 7, WIDTHS[modality.name])})
        with pytest.raises(InputError, match=f"has no field '{modality.width}': .*; {others}"):
            small_config(name, **{modality.width: 3})


def each_choice_survives_its_checkpoint(name: str, folder: Path):
    for number, changes in enumerate(choices(name)):
        model = small_model(name, torch.float32, **changes)
        model.save_pretrained(folder / str(number))
        again = AutoModel.from_pretrained(folder / str(number))
        assert list(again.config.modalities) == list(model.config.modalities)
        batch = small_batch(model.config, dtype=torch.float32)
        assert_same(outputs_of(again, batch), outputs_of(model, batch), 0.0)


MODALITY_CHECKS: tuple[Callable[[str, Path], None], ...] = (
    each_choice_is_read_and_nothing_else,
    masked_is_absent_for_each_subset,
    other_modalities_are_refused,
    each_choice_survives_its_checkpoint,
)
