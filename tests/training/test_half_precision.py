"""Training in bfloat16 on a CPU."""

import json

import pytest
import torch

from mister_e_hf import MisterETrainer
from mister_e_hf.base.errors import InputError
from mister_e_hf.training.checkpoints import MANIFEST, check_precision
from mister_e_hf.training.evaluate import scoring_trainer
from support.dialogue_training import arguments, dialogues_of, tiny_corpus, tiny_model


def trained(folder, epochs: int, **changes):
    data = tiny_corpus()
    settings = {"max_steps": -1, "num_train_epochs": epochs, "eval_strategy": "epoch", "save_strategy": "epoch"}
    settings |= {"learning_rate": 0.01, "load_best_model_at_end": False, "early_stopping_patience": None}
    trainer = MisterETrainer(
        model=tiny_model(),
        args=arguments(folder, **settings, **changes),
        train_dataset=dialogues_of(data["train"]),
        eval_dataset=dialogues_of(data["validation"]),
    )
    trainer.resume()
    return trainer


def test_weights_and_scores_stay_float32(tmp_path):
    trainer = trained(tmp_path / "run", 2, bf16=True)
    assert {parameter.dtype for parameter in trainer.own_model.parameters()} == {torch.float32}
    exact = trained(tmp_path / "exact", 2)
    pairs = list(zip(trainer.own_model.parameters(), exact.own_model.parameters(), strict=True))
    assert any(not torch.equal(one, other) for one, other in pairs)
    found = trainer.predict(trainer.eval_dataset)
    expected = scoring_trainer(trainer.own_model, tmp_path / "scoring").predict(trainer.eval_dataset)
    assert (found.predictions.logits == expected.predictions.logits).all()
    assert "forward" in vars(trainer.own_model)  # training still has the one under autocast


@pytest.mark.parametrize("before", [True, False])
def test_resuming_in_the_other_precision_raises(tmp_path, before):
    trained(tmp_path, 1, bf16=before)
    made_in, here = ("bf16", "float32") if before else ("float32", "bf16")
    with pytest.raises(InputError, match=f"of a training in {made_in}, but this one is in {here}"):
        trained(tmp_path, 2, bf16=not before)
    trained(tmp_path, 2, bf16=before)


def test_checkpoint_of_an_older_version_does_not_say_its_precision(tmp_path):
    check_precision(tmp_path, "bf16")
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {}}))
    check_precision(tmp_path, "bf16")
