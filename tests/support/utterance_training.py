"""A tiny utterance encoder and a few lines, for one gradient step of its trainer."""

from pathlib import Path

import torch

from mister_e_hf.training.utterance_trainer import UtteranceTrainer, UtteranceTrainingArguments
from support.gradient_steps import ONE_STEP
from support.small_encoders import tiny_encoder

LINES = ["so you see", "hooray", "grr this is what they said", "well well", "about it", "hooray when we came", "grr"]
# labels of four of them, by how many of them have one
CASES = {"all_labelled": [0, 1, 0, 2], "half_without_a_label": [0, 1, -100, -100], "some": [0, -100, 1, 1]}


def items(labels: list[int]) -> list[dict]:
    return [
        {"turn": turn, "label": label, "index": index}
        for index, (turn, label) in enumerate(zip(LINES, labels, strict=False))
    ]


def trainer_of(
    backbone: Path, folder: Path, data=None, modality: str = "text", model: dict | None = None, **changes
) -> UtteranceTrainer:
    settings = {"tuning": "lora", "lora_dropout": 0.0, "dropout": 0.0, "pooling": "attentive_statistics"}
    encoder, processor = tiny_encoder(backbone, modality, **{**settings, **(model or {})})
    for module in encoder.modules():  # the backbone has dropout, too
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    callbacks = changes.pop("callbacks", None)
    evaluation = changes.pop("eval_dataset", None)
    return UtteranceTrainer(
        encoder,
        UtteranceTrainingArguments(str(folder), **{**ONE_STEP, **changes}),
        processor,
        train_dataset=data,
        eval_dataset=evaluation,
        callbacks=callbacks,
    )


def gradient(backbone: Path, folder: Path, data, *more, **changes) -> dict[str, torch.Tensor]:
    trainer = trainer_of(backbone, folder, data, *more, **changes)
    trained = [(name, weight) for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    before = {name: weight.detach().clone() for name, weight in trained}
    trainer.train()
    return {name: before[name] - weight.detach() for name, weight in trained}
