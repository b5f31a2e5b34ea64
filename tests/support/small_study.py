"""Folders of studies as the runner leaves them, filled with generated predictions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from scipy.special import softmax
from sklearn.metrics import f1_score

from mister_e_hf.base.files import file_digest

EXPERTS = ("speech", "text", "fusion")
# How far the right class's logit stands out, by system.
VARIANTS = {
    "full": 1.6,
    "without_contrastive": 1.55,
    "speech_expert_only": 0.4,
    "without_modality_dropout": 1.6,
    "authors_split": 1.5,
    "baseline_logistic_regression": 0.8,
    "baseline_mult": 1.1,
}
KINDS = {name: "baseline" if name.startswith("baseline_") else "ablation" for name in VARIANTS} | {
    "full": "full",
    "authors_split": "split",
}
CURVES = {
    "speech removed": [0.25, 0.5, 1.0],
    "text removed": [0.25, 0.5, 1.0],
    "both removed": [0.25, 0.5, 1.0],
    "noise": [0.5, 1.0, 2.0],
    "start cut": [0.25, 0.5, 0.75],
}
LABELS = {
    "IEMOCAP": ["happy", "sad", "neutral", "angry", "excited", "frustrated"],
    "CMU-MOSI": ["negative", "non-negative"],
}


def recipe_of(variant: str) -> dict:
    return {"model": {"hidden_size": 8 + list(VARIANTS).index(variant)}}


def write_study(
    out: Path, corpus: str = "IEMOCAP", seeds: int = 3, folds: int = 2, dialogues: int = 12, final: bool = True
) -> Path:
    """A study all of whose runs are finished; test has half as many dialogues."""
    names, turns_each = LABELS[corpus], 10
    settings = {
        "recipe": {"model": {"hidden_size": 8}, "corpus": {"name": corpus, "labels": names}, "training": {}},
        "recipe_name": f"mister-e-{corpus.lower()}-small",
        "seeds": list(range(seeds)),
        "folds": folds,
        "fold_by": "dialogue",
        "data_fingerprints": {"train": "aa11", "validation": "bb22", "test": "cc33"},
        "vectors": {"speech": "57 acoustic numbers a turn", "text": "a sentence encoder"},
        "variants": {
            name: {"description": f"{name.replace('_', ' ')}, described", "kind": kind, "recipe": recipe_of(name)}
            for name, kind in KINDS.items()
        },
    }
    out.mkdir(parents=True)
    (out / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    if final:
        frozen = {
            "date": "2026-08-01T12:00:00",
            "git_commit": "f0f0f0",
            "variants": {name: recipe_of(name) for name in VARIANTS},
        }
        (out / "frozen.yaml").write_text(yaml.safe_dump(frozen))
    for variant in VARIANTS:
        for seed in range(seeds):
            for fold in range(folds) if KINDS[variant] != "split" else ():
                folder = out / "development" / variant / f"seed-{seed}" / f"fold-{fold}"
                own = range(fold, dialogues, folds)
                write_run(
                    folder,
                    variant,
                    seed,
                    names,
                    [f"dev{number}" for number in own],
                    turns_each,
                    fold=fold,
                    folds=folds,
                )
            if final:
                folder = out / "final" / variant / f"seed-{seed}"
                write_run(
                    folder, variant, seed, names, [f"test{number}" for number in range(dialogues // 2)], turns_each
                )
    return out


def write_run(
    folder: Path,
    variant: str,
    seed: int,
    names: list[str],
    dialogues: list[str],
    turns_each: int,
    fold: int | None = None,
    folds: int | None = None,
):
    """Labels depend on the turn alone, predictions on all."""
    folder.mkdir(parents=True)
    classes, turns = len(names), len(dialogues) * turns_each
    labels = np.concatenate(
        [np.random.default_rng([3, *dialogue.encode()]).integers(classes, size=turns_each) for dialogue in dialogues]
    )
    generator = np.random.default_rng([seed, *variant.encode(), *"".join(dialogues).encode()])
    right = np.eye(classes)[labels]

    def logits(strength: float) -> np.ndarray:
        return 2.0 * (generator.normal(size=(turns, classes)) + strength * right)

    mixture = logits(VARIANTS[variant])
    unlabelled = np.arange(turns) % 10 == 9
    columns = {
        "split": ["test" if fold is None else "train"] * turns,
        "dialogue_id": np.repeat(dialogues, turns_each),
        "utterance_id": [f"u{number}" for _ in dialogues for number in range(turns_each)],
        "label": [None if none else names[label] for label, none in zip(labels, unlabelled, strict=True)],
        "prediction": [names[index] for index in mixture.argmax(-1)],
        "probabilities": softmax(mixture / 2.0, axis=-1).tolist(),
    }
    if classes == 2:
        columns["score"] = [0.0 if turn % 7 == 0 else float(2 * label - 1) for turn, label in enumerate(labels)]
    own = ["speech"] if variant == "speech_expert_only" else EXPERTS
    if not variant.startswith("baseline_"):
        for expert, strength in zip(own, (0.5, 1.2, 1.4), strict=False):
            columns[f"{expert}_probabilities"] = softmax(logits(strength), axis=-1).tolist()
        columns["gate_weights"] = softmax(generator.normal(size=(turns, len(own))), axis=-1).tolist()
    table = pa.table(columns)
    if fold is None:  # of validation there are turns, too
        own = table.slice(0, turns_each).set_column(0, "split", pa.array(["validation"] * turns_each))
        table = pa.concat_tables([own, table])
    pq.write_table(table, folder / "predictions.parquet")
    if variant in ("full", "without_modality_dropout"):
        pq.write_table(
            pa.Table.from_pylist(robustness_rows(mixture, turns_each, generator)), folder / "robustness.parquet"
        )
    epochs = range(1, 9)
    results = {
        "seed": seed,
        "parameters": 3_000_000,
        "training_seconds": 50.0 + seed,
        "peak_memory_bytes": 700 * 2**20,
        "epochs": 8,
        "calibration": {"temperature": 2.0},
        "history": [
            {
                "epoch": float(epoch),
                "loss": 4 / epoch + 0.1 * seed,
                "eval_loss": 5 / epoch,
                "eval_weighted_f1": 0.6 - 0.3 / epoch + 0.01 * seed,
                **{
                    f"eval_{name}_weighted_f1": 0.5 - 0.3 / epoch - 0.02 * number
                    for number, name in enumerate(EXPERTS)
                },
            }
            for epoch in epochs
        ],
        "git_commit": "abc123",
        "versions": {"torch": "2.13.0"},
    }
    results |= {"best_epoch": 7.0} if fold is None else {"fold": fold}
    record = {"recipe": recipe_of(variant), "seed": seed, "data_fingerprints": {"train": "aa11", "validation": "bb22"}}
    (folder / "run.yaml").write_text(yaml.safe_dump(record | ({} if fold is None else {"fold": [fold, folds]})))
    scored = ~unlabelled
    weighted_f1 = f1_score(labels[scored], mixture.argmax(-1)[scored], average="weighted", zero_division=0)
    results["test" if fold is None else "held out"] = {"mixture": {"weighted_f1": weighted_f1}}
    results["digests"] = {name: file_digest(folder / name) for name in ("run.yaml", "predictions.parquet")}
    (folder / "results.json").write_text(json.dumps(results))


def robustness_rows(mixture: np.ndarray, turns_each: int, generator: np.random.Generator) -> list[dict]:
    rows = []
    for curve, levels in CURVES.items():
        for level in levels:
            for draw in range(1 if curve == "start cut" else 2):
                predictions = (mixture + 3 * level * generator.normal(size=mixture.shape)).argmax(-1)
                if curve == "start cut":
                    place = np.arange(len(mixture)) % turns_each
                    predictions = np.where(place < level * turns_each, -1, predictions)
                rows.append({"curve": curve, "level": level, "draw": draw, "predictions": predictions.tolist()})
    return rows


def fail(folder: Path, reason: str):
    """A run that failed leaves its error in place of its results."""
    for name in ("results.json", "predictions.parquet", "robustness.parquet"):
        (folder / name).unlink(missing_ok=True)
    (folder / "error.txt").write_text(f"Traceback (most recent call last):\n  ...\n{reason}\n")


def rewrite(path: Path, change):
    """Rewrite a table of predictions without rows of validation, `change` applied, as if the run had left it so."""
    table = pq.read_table(path)
    if "split" in table.column_names:
        table = table.filter(pc.not_equal(table["split"], "validation"))
    columns = table.to_pydict()
    pq.write_table(pa.table(change(columns)), path)
    results = json.loads((path.parent / "results.json").read_text())
    results.pop("digests", None)
    for split in ("test", "held out"):
        results.pop(split, None)
    (path.parent / "results.json").write_text(json.dumps(results))


def remove(folder: Path):
    shutil.rmtree(folder)
