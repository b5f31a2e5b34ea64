"""Generate recordings, train every stage on them, load the checkpoint again and predict."""

import argparse
import sys
from pathlib import Path

from mister_e_hf.errors import InputError
from mister_e_hf.plain_text import for_terminal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Every further --field value overrides the recipe's.")
    parser.add_argument("folder", nargs="?", default="runs/demo", help="where all of it goes (default: runs/demo)")
    arguments, fields = parser.parse_known_args()
    folder = Path(arguments.folder)
    try:
        run(folder, fields)
    except (InputError, OSError) as error:
        print(f"error: {for_terminal(error)}", file=sys.stderr)
        return 2
    return 0


def run(folder: Path, fields: list[str]):
    import torch
    from transformers import AutoModel

    from mister_e_hf import DialogueCollator, read_corpus
    from mister_e_hf.demo import run_demo

    run_demo(folder, "demo-recordings", tuple(fields))
    model = AutoModel.from_pretrained(folder).eval()
    test = read_corpus(folder / "vectors", model.config.label2id, splits=("test",))["test"]
    with torch.no_grad():
        output = model(**DialogueCollator()([test[0]]))
    print(f"\nEmotions of the generated dialogue {test.dialogue_ids[0]}, by the checkpoint in {folder}:")
    print(f"{'turn':>4}  {'label':10} {'predicted':10} gate (speech, text, fusion)")
    for turn, label in enumerate(test[0]["labels"].tolist()):
        predicted = model.config.id2label[output.logits[0, turn].argmax().item()]
        gate = " ".join(f"{weight:.2f}" for weight in output.gate_weights[0, turn].tolist())
        print(f"{turn:>4}  {model.config.id2label[label]:10} {predicted:10} {gate}")
    recordings, calls = folder / "demo" / "recordings" / "test", f"{folder}.jsonl"
    print(
        "\nThe corpus is generated and its language invented. Try next (.venv/bin/mister-e in a clone):\n"
        f"  mister-e predict {recordings} --model {folder} --out {calls}\n"
        f"  mister-e plot {calls}\n"
        f"  mister-e evaluate {folder}"
    )


if __name__ == "__main__":
    sys.exit(main())
