"""Gradients that the optimizer's step clips, against those that torch clips before it."""

import copy

import pytest
import torch
from torch import nn

from mister_e_hf import MisterETrainer
from mister_e_hf.training.epoch_trainer import EpochTrainer
from mister_e_hf.training.gradient_clipping import clip_in_step
from support.dialogue_training import arguments, dialogues_of, tiny_corpus, tiny_model

OPTIMIZERS = {
    "fused AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1),
    "fused SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, fused=True),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, clip, factor: float) -> torch.Tensor:
    module.zero_grad()
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    (factor * module(rows).square().sum()).backward()
    norm = clip(optimizer, 1.0)
    optimizer.step()
    return norm


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_after_clipping(name):
    ours = model()
    theirs = copy.deepcopy(ours)
    optimizers = [
        OPTIMIZERS[name]([{"params": each[0].parameters()}, {"params": each[2].parameters(), "lr": 0.01}])
        for each in (ours, theirs)
    ]
    for factor in (10.0, 0.001, 3.0):  # above, below and above the largest norm
        found = step(ours, optimizers[0], clip_in_step, factor)
        expected = step(theirs, optimizers[1], lambda *_: nn.utils.clip_grad_norm_(theirs.parameters(), 1.0), factor)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        assert (found > 1) == (factor > 1)
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_a_small_gradient_is_left_alone():
    module = model()
    optimizer = OPTIMIZERS["fused AdamW"](module.parameters())
    step(module, optimizer, clip_in_step, 10.0)
    module.zero_grad()
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-4)
    clip_in_step(optimizer, 1.0)
    optimizer.step()
    assert all((parameter.grad == 1e-4).all() for parameter in module.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_reaches_every_weight(name):
    module = model()
    optimizer = OPTIMIZERS[name](module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module[0].bias.grad[0] = torch.nan
    assert clip_in_step(optimizer, 1.0).isnan()
    optimizer.step()
    assert all(parameter.isnan().all() for parameter in module.parameters())


def test_training_is_that_of_the_trainer_of_transformers(tmp_path, monkeypatch):
    data = tiny_corpus()

    def trained(folder):
        trainer = MisterETrainer(
            model=tiny_model(),
            args=arguments(folder, learning_rate=0.01, max_grad_norm=0.05, optim="adamw_torch_fused"),
            train_dataset=dialogues_of(data["train"]),
            eval_dataset=dialogues_of(data["validation"]),
        )
        trainer.train()
        return trainer

    ours = trained(tmp_path / "ours")
    assert ours.optimizer.optimizer.grad_scale > 1
    monkeypatch.delattr(EpochTrainer, "_clip_grad_norm")
    theirs = trained(tmp_path / "theirs")
    for own, other in zip(ours.own_model.parameters(), theirs.own_model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
