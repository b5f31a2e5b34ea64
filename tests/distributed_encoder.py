"""A training step and predictions in several processes: torchrun --nproc_per_node 2 tests/distributed_encoder.py BACKBONE FOLDER

Turns 0 and 1 of the step fall to the first process, 2 and 3 to the second, of which in the second case none has a label.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from test_utterance_trainer import CASES, ODD, gradient, items, trainer_of

if __name__ == "__main__":
    backbone, folder = map(Path, sys.argv[1:])
    for name, labels in CASES.items():
        change = gradient(backbone, folder, items(labels), per_device_train_batch_size=2)
        save_file(change, folder / f"{name}.safetensors")
    trainer = trainer_of(backbone, folder, per_device_eval_batch_size=2)
    assert trainer.accelerator.num_processes == 2
    prediction = trainer.predict(items(ODD))
    np.savez(folder / "prediction.npz", logits=prediction.predictions[0], labels=prediction.label_ids)
