"""A tiny MiSTER-E and generated dialogues, for one gradient step of its trainer."""

import torch

from mister_e_hf import DialogueVectors, MisterEConfig, MisterEModel, MisterETrainer, MisterETrainingArguments
from mister_e_hf.corpora.demo import LABELS, SPEECH_DIM, TEXT_DIM, demo_corpus
from support.gradient_steps import ONE_STEP

SIZES = {"train": 8, "validation": 4, "test": 4}


def tiny_model(**changes) -> MisterEModel:
    torch.manual_seed(0)
    settings = {
        "speech_embedding_dim": SPEECH_DIM,
        "text_embedding_dim": TEXT_DIM,
        "hidden_size": 12,
        "context_num_layers": 1,
        "fusion_num_layers": 1,
        "attention_dim": 12,
        "num_attention_heads": 3,
        "attention_dropout": 0.0,
        "projection_dropout": 0.0,
        "id2label": dict(enumerate(LABELS)),
    }
    return MisterEModel(MisterEConfig(**{**settings, **changes}))


def tiny_corpus() -> dict[str, DialogueVectors]:
    label2id = {label: index for index, label in enumerate(LABELS)}
    return {name: DialogueVectors(table, label2id, name=name) for name, table in demo_corpus(1, sizes=SIZES).items()}


def arguments(folder, **changes) -> MisterETrainingArguments:
    settings = {"standardize": False, "contrastive_weight": 0.7, "consistency_weight": 0.3}
    return MisterETrainingArguments(str(folder), **{**ONE_STEP, **settings, **changes})


def gradient(folder, dialogues=None, **changes) -> dict[str, torch.Tensor]:
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = MisterETrainer(
        model=model, args=arguments(folder, **changes), train_dataset=dialogues or dialogues_of(tiny_corpus()["train"])
    )
    trainer.train()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


def dialogues_of(data: DialogueVectors, count: int = 4) -> list[dict]:
    return [data[index] for index in range(count)]


def unlabel(dialogues: list[dict], indices: tuple[int, ...]) -> list[dict]:
    for index in indices:
        dialogues[index]["labels"] = torch.full_like(dialogues[index]["labels"], -100)
    return dialogues
