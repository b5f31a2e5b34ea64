"""Stage 1 in several processes.

Usage: torchrun --nproc_per_node 2 distributed_encoders.py FOLDER BACKBONE CORPUS SPEECH TEXT

Training steps, predictions and the vectors of a corpus are written to the folder. Turns 0 and 1 of a step go to the
first process, 2 and 3 to the second. The second process sees late which vectors exist already.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch.distributed as dist
from safetensors.torch import save_file

from mister_e_hf.encoders.embedding import RECORD, embed_corpus
from mister_e_hf.training.encoder_experiment import load_encoder
from support.gradient_steps import end_process
from support.utterance_training import CASES, gradient, items, trainer_of

ODD = [0, 1, 2, -100, 1, 0, 2]  # labels of an odd number of turns, which two processes cannot share evenly
SHARD = 8  # turns


def wait(event: str, words: tuple):
    if event == "open" and str(words[0]).endswith(RECORD):
        time.sleep(2)


if __name__ == "__main__":
    folder, backbone, corpus, *encoders = map(Path, sys.argv[1:])
    if os.environ["RANK"] == "1":
        sys.addaudithook(wait)
    speech, text = map(load_encoder, encoders)
    # first, where no trainer has made them one group yet
    embed_corpus(corpus, {"speech": speech, "text": text}, folder / "vectors", shard_turns=SHARD)
    assert dist.get_world_size() == 2
    for name, labels in CASES.items():
        change = gradient(backbone, folder, items(labels), per_device_train_batch_size=2)
        save_file(change, folder / f"{name}.safetensors")
    change = gradient(
        backbone, folder, items(CASES["some"]), per_device_train_batch_size=2, activation_checkpointing=True
    )
    save_file(change, folder / "computed_twice.safetensors")
    trainer = trainer_of(backbone, folder, per_device_eval_batch_size=2)
    assert trainer.accelerator.num_processes == 2
    prediction = trainer.predict(items(ODD))
    np.savez(folder / "prediction.npz", logits=prediction.predictions[0], labels=prediction.label_ids)
    end_process()
