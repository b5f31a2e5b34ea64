"""Generate the demo corpus, train on it, load the checkpoint back and predict: python scripts/demo.py [FOLDER]"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel

from mister_e_hf import DialogueCollator, read_corpus
from mister_e_hf.corpora.demo import write_demo_corpus
from mister_e_hf.stages import main_train as main

if __name__ == "__main__":
    torch.set_num_threads(1)  # a model this small gains nothing from more, and loses much where the cores are busy
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    corpus = write_demo_corpus(run.with_name(f"{run.name}-corpus"))
    main(["hub_configs/demo.yaml", "--corpus", str(corpus), "--output_dir", str(run)])

    model = AutoModel.from_pretrained(run).eval()
    test = read_corpus(corpus, model.config.label2id, splits=("test",))["test"]
    with torch.no_grad():
        output = model(**DialogueCollator()([test[0]]))
    print(f"\ndialogue {test.dialogue_ids[0]}, loaded from {run}")
    print(f"{'turn':>4}  {'label':10} {'predicted':10} gate (speech, text, fusion)")
    for turn, label in enumerate(test[0]["labels"].tolist()):
        predicted = model.config.id2label[output.logits[0, turn].argmax().item()]
        gate = " ".join(f"{weight:.2f}" for weight in output.gate_weights[0, turn].tolist())
        print(f"{turn:>4}  {model.config.id2label[label]:10} {predicted:10} {gate}")
