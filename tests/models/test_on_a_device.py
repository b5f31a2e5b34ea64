"""What a model would do on an accelerator: tensors of the device meta have no numbers, and raise where one is read."""

import contextlib

import pytest
import torch

from mister_e_hf.models.turn_transformer import in_one_product, maps_of
from mister_e_hf.models.turns import TurnLayout
from mister_e_hf.vectors.collator import DialogueCollator
from support.model_contract import small_batch, small_model

MODELS = ["mister_e", "emo_caps", "egmf_fusion", "bc_lstm", "mult", "sdt"]
META = torch.device("meta")


def on_meta(batch: dict) -> dict:
    """The vectors of a batch without their numbers; its masks and labels on the host."""
    return {name: value.to(META) if name.endswith("_embeddings") else value for name, value in batch.items()}


@pytest.mark.parametrize("lengths", [[3, 5, 2], [4, 4]])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_never_reads_what_is_on_the_device(name, lengths, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no meta tensors
    model = small_model(name).train()
    batch = small_batch(model.config, lengths)
    expected = model(**batch)
    found = model.to(META)(**on_meta(batch))
    assert found.loss.device == found.logits.device == META
    assert {key: tuple(value.shape) for key, value in found.items() if isinstance(value, torch.Tensor)} == {
        key: tuple(value.shape) for key, value in expected.items() if isinstance(value, torch.Tensor)
    }
    found.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("changes", [{}, {"causal": True}, {"attention_decay": True}], ids=str)
@pytest.mark.parametrize("lengths", [[3, 5, 1, 4], [4, 4]])
def test_streams_together_are_those_apart(lengths, changes, monkeypatch):
    model = small_model("mister_e", **changes)  # without dropout
    batch = small_batch(model.config, lengths)

    def step():
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        return {"logits": output.logits.detach()} | {n: p.grad.clone() for n, p in model.named_parameters()}

    apart = step()
    monkeypatch.setattr(TurnLayout, "joins_streams", True)
    for key, value in step().items():
        torch.testing.assert_close(value, apart[key], atol=1e-6, rtol=1e-5)


def test_maps_in_one_product_are_those_apart():
    torch.manual_seed(0)
    maps = [torch.nn.Linear(5, size, dtype=torch.float64) for size in (3, 4, 3)]
    rows = torch.randn(2, 7, 5, dtype=torch.float64)
    for found, expected in zip(in_one_product(rows, maps), maps_of(rows, maps), strict=True):
        torch.testing.assert_close(found, expected)
    assert [each.shape[-1] for each in maps_of(rows.to(META), [each.to(META) for each in maps])] == [3, 4, 3]


def test_masks_of_the_host_and_of_the_device_are_read_alike():
    batch = DialogueCollator()([{"speech_embeddings": torch.randn(n, 3)} for n in (2, 4)])
    mask = batch["attention_mask"]
    here, there = TurnLayout(mask), TurnLayout(mask, META)
    assert (here.count, here.longest) == (there.count, there.longest) == (6, 4)
    assert there.index.device == META and there.on_host.place.tolist() == here.index.tolist()
    assert there.flatten(mask).device.type == "cpu"
