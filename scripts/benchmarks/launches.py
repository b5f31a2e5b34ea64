"""Count what a training step and a prediction would have a GPU do, without one: launches, casts, copies and waits.

    git worktree add /tmp/before b4cf74a
    python scripts/benchmarks/launches.py --before /tmp/before/src
    python scripts/benchmarks/launches.py --models mister_e --operators 20   also operators, and lines that wait

`pretended_gpu.py` says what is counted. Models have the depth of their defaults and are narrow, which changes no
count. A training step is that of the model's trainer with its loss terms, the gradient, its clipping and a fused
AdamW, on 8 dialogues of 5 to 10 turns; a prediction is of one dialogue of 10 turns. Moving the batch to the device is
not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS = HERE.parents[1] / "src"
MODELS = ("mister_e", "emo_caps", "egmf_fusion")
ENCODERS = ("RoBERTa-large", "WavLM-large", "Qwen2-Audio-7B")  # tiny ones of these kinds, of two layers
NARROW = {"speech_embedding_dim": 8, "text_embedding_dim": 8, "hidden_size": 24}
FIELDS = {"mister_e": {"attention_dim": 12}}
LENGTHS = (5, 6, 7, 8, 8, 9, 9, 10)
TITLES = {"launch": "launches", "cast": "casts", "copy": "copies", "wait": "waits"}


def count(models: list[str]) -> list[dict[str, Any]]:
    """A row for each model, kind of work and precision, of the package that is imported."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            for bf16 in (False, True):
                counted = _of_encoder if model in ENCODERS else _counts
                for work, counts in counted(model, bf16, folder):
                    names = {f"{kind}: {name}": number for (kind, name), number in counts.most_common()}
                    own = {"model": model, "work": work, "precision": "bfloat16" if bf16 else "float32"}
                    rows.append({**own, **counts.totals(), "operators": names})
    return rows


def _counts(model: str, bf16: bool, folder: str):
    import torch
    from pretended_gpu import counting, put_on_gpu

    warnings.filterwarnings("ignore", "PyTorch was compiled without cuDNN")
    from mister_e_hf.models.registry import entry
    from mister_e_hf.training.dialogue_trainer import MisterETrainer, MisterETrainingArguments
    from mister_e_hf.vectors.collator import DialogueCollator

    torch.manual_seed(0)
    kind = entry(model)
    config = kind.config_class()(id2label=dict(enumerate("abcdefg")), **NARROW, **FIELDS.get(model, {}))
    arguments = MisterETrainingArguments(
        folder, use_cpu=True, report_to="none", eval_strategy="no", load_best_model_at_end=False
    )
    batch = DialogueCollator()([_dialogue(turns) for turns in LENGTHS])
    trainer = MisterETrainer(kind.model_class()(config), arguments, train_dataset=[_dialogue(3)])
    own = put_on_gpu(trainer.own_model).train()
    stays = getattr(trainer, "host_fields", ())

    def moved(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value if name in stays else put_on_gpu(value) for name, value in fields.items()}

    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-4, fused=True)
    for _ in range(2):  # the first step makes the moments of the optimizer
        inputs = moved(batch)
        with counting(bf16) as counts:
            optimizer.zero_grad()
            loss = trainer.compute_loss(own, inputs, num_items_in_batch=torch.tensor(sum(LENGTHS)))
            with torch.autocast("cuda", enabled=False):
                loss.backward()
                torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0, foreach=True)
                optimizer.step()
            found = type(counts)(counts)
    yield "training step", found
    own.eval()
    inputs = moved({name: value for name, value in DialogueCollator()([_dialogue(10)]).items() if name != "labels"})
    with torch.no_grad(), counting(bf16) as counts:
        own(**inputs)
        found = type(counts)(counts)
    yield "prediction", found


def _of_encoder(name: str, bf16: bool, folder: str):
    """Training with LoRA and embedding of 8 turns by an encoder of stage 1."""
    import torch
    from gpu_encoders import SPEECH, TINY, build, turns_of, write_backbone
    from gpu_measures import Device
    from pretended_gpu import counting, put_on_gpu

    from mister_e_hf import MisterEProcessor
    from mister_e_hf.training.utterance_trainer import UtteranceTrainer, UtteranceTrainingArguments

    write_backbone(place := Path(folder) / name, TINY[name])
    encoder = build(name, place, Device(torch.device("cpu"), 60.0), "lora")
    processor = MisterEProcessor.from_backbone(place, "speech" if name in SPEECH else "text")
    arguments = UtteranceTrainingArguments(
        folder, use_cpu=True, report_to="none", eval_strategy="no", load_best_model_at_end=False
    )
    trainer = UtteranceTrainer(encoder, arguments, processor, train_dataset=[0])
    own = put_on_gpu(encoder).train()
    stays = getattr(trainer, "host_fields", ())
    batch = dict(processor(turns_of(name, 8, 0))) | {"labels": torch.arange(8) % 7}
    inputs = {key: value if key in stays else put_on_gpu(value) for key, value in batch.items()}
    for work in ("training step", "embedding"):
        own.train(work == "training step")
        with torch.set_grad_enabled(own.training), counting(bf16) as counts:
            if own.training:
                loss = own(**inputs, num_items_in_batch=torch.tensor(8)).loss
                with torch.autocast("cuda", enabled=False):
                    loss.backward()
            else:
                own(**{key: value for key, value in inputs.items() if key != "labels"})
            found = type(counts)(counts)
        yield work, found


def _dialogue(turns: int) -> dict[str, Any]:
    import torch

    vectors = {f"{name}_embeddings": torch.randn(turns, 8) for name in ("speech", "text")}
    masks = {f"{name}_mask": torch.ones(turns, dtype=torch.bool) for name in ("speech", "text")}
    return {**vectors, **masks, "labels": torch.randint(7, (turns,))}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="folder src of another commit, to compare with")
    parser.add_argument("--models", nargs="+", choices=MODELS + ENCODERS, default=list(MODELS), help="models")
    parser.add_argument("--operators", type=int, default=0, metavar="N", help="also print the N most frequent ones")
    parser.add_argument("--quick", action="store_true", help="changes nothing: the sizes are tiny already")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(count(options.models)))
        return {}
    sources = {"before": options.before} if options.before else {}
    results: dict[str, Any] = {}
    for name, source in {**sources, "now": OURS}.items():
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--worker", "--models", *options.models]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
    for number, row in enumerate(results["now"]):
        print(f"{row['model']}, {row['work']}, {row['precision']}")
        for name, rows in results.items():
            print(f"  {name:<8}" + ", ".join(f"{rows[number][kind]:,} {title}" for kind, title in TITLES.items()))
        for operator in list(row["operators"])[: options.operators]:
            print(f"    {row['operators'][operator]:>6}  {operator}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
