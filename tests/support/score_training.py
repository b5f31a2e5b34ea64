"""
Training of small models on scores, in one process or several.

Usage: torchrun --nproc_per_node 2 score_training.py FOLDER NAME ...
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from mister_e_hf import MisterETrainer, MisterETrainingArguments
from mister_e_hf.models.registry import entry
from support.gradient_steps import ONE_STEP, end_process
from support.model_contract import LENGTHS, rows_of, small_config
from support.score_contract import REGRESSION, score_batch

# Terms that compare classes.
WITHOUT_TERMS = {"contrastive_weight": 0.0, "consistency_weight": 0.0}


def score_dialogues(config) -> list[dict]:
    """Four dialogues of unequal length, with as many scores missing."""
    batch = score_batch(config, torch.float32)
    batch.pop("attention_mask")
    return [
        {key: values[0] for key, values in rows_of(batch, [row], length).items()} for row, length in enumerate(LENGTHS)
    ]


def new_model(name: str, **changes):
    """A small model of scores without dropout, its parameters as it begins."""
    dropouts = {field: 0.0 for field in entry(name).config_class().own_fields() if field.endswith("dropout")}
    torch.manual_seed(0)
    return entry(name).model_class()(small_config(name, **REGRESSION, **{**dropouts, **changes}))


def step_of_scores(name: str, folder: Path, **changes) -> tuple[dict[str, torch.Tensor], MisterETrainer]:
    """The change of each parameter by one plain gradient step over the dialogues, and the trainer that made it."""
    model = new_model(name)
    data = score_dialogues(model.config)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    arguments = MisterETrainingArguments(str(folder), **{**ONE_STEP, **WITHOUT_TERMS, **changes})
    trainer = MisterETrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    return {key: before[key] - parameter.detach() for key, parameter in model.named_parameters()}, trainer


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        change, trainer = step_of_scores(
            name, folder / "run", per_device_train_batch_size=2, per_device_eval_batch_size=1
        )
        assert trainer.accelerator.num_processes == 2
        found = trainer.predict(trainer.eval_dataset)
        if trainer.is_world_process_zero():
            save_file(change | {"labels": torch.tensor(found.label_ids)}, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(found.metrics))
    end_process()
