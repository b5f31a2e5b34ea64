"""Generate recordings, train all stages on them, load the checkpoint again and predict."""

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from mister_e_hf.base.chatter import calm_libraries, hide_unnamed_bars
from mister_e_hf.base.errors import InputError
from mister_e_hf.base.plain_text import for_terminal
from mister_e_hf.base.progress import close_bars

ABOUT = """\
MiSTER-E on a generated corpus: 260 dialogues of tones and invented words. Nothing is downloaded, and no GPU is needed.
It trains a tiny speech encoder and a tiny text encoder, makes a vector of each turn, trains the mixture of experts
on the vectors, and scores it. That takes one to three minutes on two cores; if it is interrupted, the same command
resumes. Everything goes to {folder}.
"""
VIDEO = """\
bc-LSTM on a generated corpus: 260 dialogues of clips with a drawn face, tones and invented words. Nothing is
downloaded, and no GPU is needed. It trains a tiny encoder of speech, of text and of video, makes vectors of each turn,
trains the model on the vectors, and scores it. That takes two to five minutes on two cores; if it is interrupted, the
same command resumes. Everything goes to {folder}.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Further words, --field value, override the recipe.")
    parser.add_argument("folder", nargs="?", default="runs/demo", help="folder for everything (default: runs/demo)")
    parser.add_argument("--video", action="store_true", help="train on clips of a talking face, with a third encoder")
    arguments, fields = parser.parse_known_args()
    folder = Path(arguments.folder)
    try:
        with calm_libraries():
            print((VIDEO if arguments.video else ABOUT).format(folder=for_terminal(folder)), flush=True)
            run(folder, "demo-video" if arguments.video else "demo-recordings", fields)
    except KeyboardInterrupt:
        close_bars()
        print("interrupted", file=sys.stderr)
        return 130
    except (InputError, OSError) as error:
        close_bars()
        print(f"error: {for_terminal(error)}", file=sys.stderr)
        return 2
    return 0


def run(folder: Path, recipe: str, fields: list[str]):
    from mister_e_hf.training.demo import run_demo

    hide_unnamed_bars()
    show(folder, run_demo(folder, recipe, tuple(fields)))


def show(folder: Path, summary: dict[str, Any]):
    """Print the scores, the predictions of a dialogue, and what to try next."""
    from mister_e_hf.evaluation.predictions import format_results

    scores = {name: 100 * block["weighted_f1"]["mean"] for name, block in summary["test"].items()}
    mixture = scores.pop("mixture")
    print(f"\nScores on the generated test dialogues\n\n{format_results(summary)}\n")
    if scores:
        best = max(scores, key=lambda name: scores[name])
        print(
            f"The weighted F1 of the mixture is {mixture:.2f}, that of its best expert ({best}) {scores[best]:.2f}.\n"
        )
    show_dialogue(folder)
    print("\nTry next:\n")
    for words in next_commands(folder):
        print(f"  {shlex.join(words)}")


def show_dialogue(folder: Path):
    """Print the emotions of the first test dialogue: the generator's, and the predictions of the checkpoint."""
    import torch
    from transformers import AutoModel

    from mister_e_hf import DialogueCollator, read_corpus

    model = AutoModel.from_pretrained(folder).eval()
    names, heads = model.config.id2label, model.config.heads
    test = read_corpus(folder / "vectors", model.config.label2id, splits=("test",))["test"]
    with torch.no_grad():
        view = model.view(model(**DialogueCollator(model.config.reads_transcripts)([test[0]])))
    print(
        f"Dialogue {test.dialogue_ids[0]}: the generator's emotions, and predictions of the checkpoint in {folder}\n"
    )
    gated = view.gate_weights is not None
    titles = ["generator", "mixture" if len(heads) > 1 else "model", *heads, *(["gate"] if gated else [])]
    print(("turn  " + "".join(f"{title:11}" for title in titles)).rstrip())
    for turn, label in enumerate(test[0]["labels"].tolist()):
        logits = [view.logits[0, turn], *(values[0, turn] for values in (view.head_logits or {}).values())]
        cells = [names[label], *(names[each.argmax().item()] for each in logits)]
        gate = " ".join(f"{weight:.2f}" for weight in view.gate_weights[0, turn].tolist()) if gated else ""
        print((f"{turn:>4}  " + "".join(f"{cell:11}" for cell in cells) + gate).rstrip())


def next_commands(folder: Path) -> list[list[str]]:
    """Three commands to try next, as they can be typed in this shell."""
    program, beside = ["mister-e"], Path(sys.executable).with_name("mister-e")
    if shutil.which("mister-e") is None:
        short = min(str(beside), os.path.relpath(beside), key=len)
        program = [short] if beside.is_file() else [sys.executable, "-m", "mister_e_hf"]
    recordings, answers = folder / "demo" / "recordings" / "test", f"{folder}-answers.jsonl"
    commands = (
        ["predict", recordings, "--model", folder, "--out", answers],
        ["plot", answers],
        ["evaluate", folder, "--split", "validation"],
    )
    return [[*program, *map(str, words)] for words in commands]


if __name__ == "__main__":
    sys.exit(main())
