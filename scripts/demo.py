"""Generate recordings, train every stage on them, load the checkpoint back and predict: python scripts/demo.py [FOLDER]"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel

from mister_e_hf import DialogueCollator, read_corpus
from mister_e_hf.demo import run_demo

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    run_demo(folder, "hub_configs/demo-recordings.yaml", tuple(sys.argv[2:]))

    model = AutoModel.from_pretrained(folder).eval()
    test = read_corpus(folder / "vectors", model.config.label2id, splits=("test",))["test"]
    with torch.no_grad():
        output = model(**DialogueCollator()([test[0]]))
    print(f"\ndialogue {test.dialogue_ids[0]}, loaded from {folder}")
    print(f"{'turn':>4}  {'label':10} {'predicted':10} gate (speech, text, fusion)")
    for turn, label in enumerate(test[0]["labels"].tolist()):
        predicted = model.config.id2label[output.logits[0, turn].argmax().item()]
        gate = " ".join(f"{weight:.2f}" for weight in output.gate_weights[0, turn].tolist())
        print(f"{turn:>4}  {model.config.id2label[label]:10} {predicted:10} {gate}")
