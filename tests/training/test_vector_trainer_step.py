"""What a step of a conversation model costs beside the model."""

from transformers import Trainer

from mister_e_hf import MisterETrainer
from support.dialogue_training import arguments, dialogues_of, tiny_corpus, tiny_model


def trainer(folder, **changes) -> MisterETrainer:
    data = tiny_corpus()
    return MisterETrainer(
        model=tiny_model(),
        args=arguments(folder, **changes),
        train_dataset=dialogues_of(data["train"]),
        eval_dataset=dialogues_of(data["validation"]),
    )


def test_the_model_is_unwrapped_once_and_again_when_it_is_another(tmp_path, monkeypatch):
    found = trainer(tmp_path)
    own, other, calls = found.own_model, tiny_model(), []
    monkeypatch.setattr(found.accelerator, "unwrap_model", lambda model: calls.append(model) or model)
    assert found.own_model is own and not calls
    found.model = other
    assert found.own_model is other and found.own_model is other
    assert calls == [other]


def test_operations_are_counted_as_the_trainer_does(tmp_path):
    found = trainer(tmp_path)
    batch = next(iter(found.get_train_dataloader()))
    assert found.floating_point_ops(batch) == Trainer.floating_point_ops(found, batch) > 0
    assert found.floating_point_ops({}) == 0
