"""Stage 2 on a GPU: steps of MiSTER-E at published size beside a plain padded implementation, and predictions.

Only the lengths of the corpora's dialogues are used; vectors and labels are random. A step is that of the package's
trainer with all loss terms, the gradient, its clipping and a fused AdamW, and begins with a batch of the host.
"""

import statistics
import tempfile
from typing import Any

import torch
from gpu_measures import Device, table
from plain_mister_e import PlainMisterE, plain_consistency, plain_contrastive, plain_focal
from stage2_measures import (
    CONSISTENCY_WEIGHT,
    CONTRASTIVE_WEIGHT,
    LEARNING_RATE,
    MAX_GRADIENT_NORM,
    dialogue_lengths,
    epoch_batches,
    make_batch,
    sample,
    work,
)

from mister_e_hf import MisterEConfig, MisterEModel
from mister_e_hf.base.losses import IGNORE_INDEX
from mister_e_hf.training.dialogue_trainer import MisterETrainer, MisterETrainingArguments

# (kind, precision, dialogues of a batch)
CONTESTANTS = [
    ("plain", "float32", 8),
    ("ours", "float32", 8),
    ("ours", "bfloat16", 8),
    ("ours", "float32", 32),
    ("ours", "bfloat16", 32),
    ("ours", "bfloat16", 128),
]
LABELS = {index: f"class {index}" for index in range(6)}
TINY = {"speech_embedding_dim": 8, "text_embedding_dim": 8, "hidden_size": 16, "attention_dim": 12}


class Contestant:
    """A model of one kind with its optimizer on a device."""

    def __init__(self, kind: str, precision: str, config: MisterEConfig, device: Device, folder: str):
        torch.manual_seed(0)
        self.kind, self.device, self.bf16 = kind, device.device, precision == "bfloat16"
        self.model: torch.nn.Module
        if kind == "plain":
            self.model = PlainMisterE(config).to(self.device)
        else:
            weights = {"contrastive_weight": CONTRASTIVE_WEIGHT, "consistency_weight": CONSISTENCY_WEIGHT}
            arguments = MisterETrainingArguments(
                folder,
                use_cpu=not device.is_gpu,
                report_to="none",
                eval_strategy="no",
                load_best_model_at_end=False,
                **weights,
            )
            self.trainer = MisterETrainer(MisterEModel(config), arguments)
            self.model = self.trainer.own_model.to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.kind == "ours":
            return self.trainer.compute_loss(self.model, self.trainer._prepare_inputs(batch))
        own = {name: values.to(self.device, non_blocking=True) for name, values in batch.items()}
        labels = own["labels"].masked_fill(own["labels"] == IGNORE_INDEX, -1)
        output = self.model(own["speech_embeddings"], own["text_embeddings"])
        experts, gamma = output["expert_logits"], self.model.config.focal_gamma
        focal = plain_focal(output["logits"], labels, gamma)
        focal = focal + sum(plain_focal(experts[:, :, expert], labels, gamma) for expert in range(3))
        contrastive = plain_contrastive(output["speech_states"], output["text_states"], labels)
        return focal + CONTRASTIVE_WEIGHT * contrastive + CONSISTENCY_WEIGHT * plain_consistency(experts)

    def train_step(self, batch: dict[str, torch.Tensor]):
        self.model.train()
        self.optimizer.zero_grad()
        with self._autocast():
            loss = self._loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, batch: dict[str, torch.Tensor]):
        self.model.eval()
        with self._autocast():
            if self.kind == "plain":
                return self.model(batch["speech_embeddings"].to(self.device), batch["text_embeddings"].to(self.device))
            return self.model(**self.trainer._prepare_inputs(batch)).logits.cpu()


def measure_stage2(device: Device, rate: float, quick: bool) -> list[dict[str, Any]]:
    """A row for each corpus, kind, precision and batch size; shapes that are new and that were met before apart."""
    config, rows = MisterEConfig(id2label=LABELS, **(TINY if quick else {})), []
    steps = 2 if quick else 10
    with tempfile.TemporaryDirectory() as folder:
        for corpus in ("meld", "iemocap"):
            lengths = dialogue_lengths(corpus)
            for kind, precision, batch_size in CONTESTANTS:
                if not device.has_time or (batch_size == 128 and corpus == "iemocap"):
                    continue
                chosen = sample(kind, epoch_batches(kind, lengths, batch_size, epoch=0), steps)
                contestant = Contestant(kind, precision, config, device, folder)
                own = {"corpus": corpus, "kind": kind, "precision": precision, "batch_size": batch_size}
                rows.append(own | _training_row(contestant, chosen, config, device))
                del contestant
    print(_training_report(rows))
    return rows


def _training_row(
    contestant: Contestant, batches: list[list[int]], config: MisterEConfig, device: Device
) -> dict[str, Any]:
    """Mean seconds of a step over the batches, waiting for each, when they are new and once more."""
    data = [make_batch(config, batch, seed) for seed, batch in enumerate(batches)]
    contestant.train_step(make_batch(config, [3, 2]))  # what is set up once
    device.forget_peak()
    new, again = (
        statistics.fmean(device.once(lambda batch=batch: contestant.train_step(batch)) for batch in data)
        for _ in range(2)
    )
    turns = sum(map(sum, batches)) / len(batches)
    return {
        "seconds_of_new_shapes": new,
        "seconds": again,
        "turns": turns,
        "rows": sum(work(contestant.kind, batch) for batch in batches) / len(batches),
        "turns_per_second": turns / again,
        "busy": device.busy_share(lambda: [contestant.train_step(batch) for batch in data[:3]]),
        "peak_bytes": device.peak_bytes(),
    }


def measure_prediction(device: Device, rate: float, quick: bool) -> list[dict[str, Any]]:
    """A row for each kind, precision and number of turns of a dialogue."""
    config, rows = MisterEConfig(id2label=LABELS, **(TINY if quick else {})), []
    with tempfile.TemporaryDirectory() as folder:
        for kind, precision in (("plain", "float32"), ("ours", "float32"), ("ours", "bfloat16")):
            contestant = Contestant(kind, precision, config, device, folder)
            for turns in (10, 512):
                batch = {name: each for name, each in make_batch(config, [turns]).items() if name != "labels"}

                def call(contestant=contestant, batch=batch):
                    return contestant.predict(batch)

                seconds = device.seconds(call, 0.0 if quick else 0.5, 1 if quick else 50)
                rows.append({"kind": kind, "precision": precision, "turns": turns, "seconds": seconds})
                rows[-1]["busy"] = device.busy_share(call)
    columns = [
        ("turns", lambda row: str(row["turns"])),
        ("", lambda row: row["kind"]),
        ("precision", lambda row: row["precision"]),
        ("ms", lambda row: f"{row['seconds'] * 1e3:,.1f}"),
        ("device busy", lambda row: share(row["busy"])),
    ]
    print(table(rows, columns))
    return rows


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _training_report(rows: list[dict[str, Any]]) -> str:
    def times(row: dict[str, Any]) -> str:
        plain = [each for each in rows if each["kind"] == "plain" and each["corpus"] == row["corpus"]]
        return f"{row['turns_per_second'] / plain[0]['turns_per_second']:.2f}" if plain else ""

    columns = [
        ("corpus", lambda row: row["corpus"]),
        ("", lambda row: row["kind"]),
        ("precision", lambda row: row["precision"]),
        ("batch", lambda row: str(row["batch_size"])),
        ("ms a step", lambda row: f"{row['seconds'] * 1e3:,.1f}"),
        ("of a new shape", lambda row: f"{row['seconds_of_new_shapes'] * 1e3:,.1f}"),
        ("turns/s", lambda row: f"{row['turns_per_second']:,.0f}"),
        ("times plain", times),
        ("device busy", lambda row: share(row["busy"])),
        ("peak", lambda row: "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f} GiB"),
    ]
    return table(rows, columns)
