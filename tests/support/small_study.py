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
    out: Path,
    corpus: str = "IEMOCAP",
    seeds: int = 3,
    folds: int = 2,
    dialogues: int = 12,
    final: bool = True,
    targets: list[str] | None = None,
    bins: str | None = None,
) -> Path:
    """A study all of whose runs are finished, of classes or of targets; test has half as many dialogues."""
    names, turns_each = targets or LABELS[corpus], 10
    of_corpus = {"targets": targets, "score_bins": bins} if targets else {"labels": names}
    settings = {
        "recipe": {"model": {"hidden_size": 8}, "corpus": {"name": corpus, **of_corpus}, "training": {}},
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
    write_run = write_class_run if targets is None else write_score_run
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


def write_class_run(
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
    robust = robustness_rows(mixture, turns_each, generator, lambda values: values.argmax(-1), -1)
    scored = ~unlabelled
    weighted_f1 = f1_score(labels[scored], mixture.argmax(-1)[scored], average="weighted", zero_division=0)
    finish_run(folder, variant, seed, columns, robust, {"weighted_f1": weighted_f1}, fold, folds)


def write_score_run(
    folder: Path,
    variant: str,
    seed: int,
    names: list[str],
    dialogues: list[str],
    turns_each: int,
    fold: int | None = None,
    folds: int | None = None,
):
    """True scores from -3 to 3: the better a system, the smaller its errors. Every tenth turn lacks the first one."""
    folder.mkdir(parents=True)
    shape = len(dialogues) * turns_each, len(names)
    truth = [np.random.default_rng([3, *dialogue.encode()]).uniform(-3, 3, (turns_each, 9)) for dialogue in dialogues]
    right = np.round(np.concatenate(truth)[:, : len(names)], 1)
    generator = np.random.default_rng([seed, *variant.encode(), *"".join(dialogues).encode()])

    def scores(strength: float) -> np.ndarray:
        return (0.8 * right + generator.normal(size=shape) * 1.2 / strength).astype(np.float32)

    mixture = scores(VARIANTS[variant])
    labels = right.copy()
    labels[np.arange(len(labels)) % 10 == 9, 0] = np.nan
    columns = {
        "split": ["test" if fold is None else "train"] * len(labels),
        "dialogue_id": np.repeat(dialogues, turns_each),
        "utterance_id": [f"u{number}" for _ in dialogues for number in range(turns_each)],
        "label": [[None if np.isnan(value) else value for value in row] for row in labels.tolist()],
        "prediction": mixture.tolist(),
    }
    own = ["speech"] if variant == "speech_expert_only" else EXPERTS
    if not variant.startswith("baseline_"):
        for expert, strength in zip(own, (0.5, 1.2, 1.4), strict=False):
            columns[f"{expert}_prediction"] = scores(strength).tolist()
        columns["gate_weights"] = softmax(generator.normal(size=(len(labels), len(own))), axis=-1).tolist()
    robust = robustness_rows(mixture, turns_each, generator, lambda values: values, None)
    error = float(np.nanmean(np.abs(mixture - labels), axis=0).mean())
    finish_run(folder, variant, seed, columns, robust, {"mae": error}, fold, folds)


def finish_run(
    folder: Path,
    variant: str,
    seed: int,
    columns: dict,
    robust: list[dict],
    scores: dict[str, float],
    fold: int | None,
    folds: int | None,
):
    """Write the files of a run; `scores` are those of its predictions."""
    (main,) = scores
    table = pa.table(columns)
    if fold is None:  # of validation there are turns, too
        own = table.slice(0, 10).set_column(0, "split", pa.array(["validation"] * 10))
        table = pa.concat_tables([own, table])
    pq.write_table(table, folder / "predictions.parquet")
    if variant in ("full", "without_modality_dropout"):
        pq.write_table(pa.Table.from_pylist(robust), folder / "robustness.parquet")
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
                f"eval_{main}": 0.6 - 0.3 / epoch + 0.01 * seed,
                **{f"eval_{name}_{main}": 0.5 - 0.3 / epoch - 0.02 * number for number, name in enumerate(EXPERTS)},
            }
            for epoch in epochs
        ],
        "git_commit": "abc123",
        "versions": {"torch": "2.13.0"},
    }
    results |= {"best_epoch": 7.0} if fold is None else {"fold": fold}
    record = {"recipe": recipe_of(variant), "seed": seed, "data_fingerprints": {"train": "aa11", "validation": "bb22"}}
    (folder / "run.yaml").write_text(yaml.safe_dump(record | ({} if fold is None else {"fold": [fold, folds]})))
    results["test" if fold is None else "held out"] = {"mixture": scores}
    results["digests"] = {name: file_digest(folder / name) for name in ("run.yaml", "predictions.parquet")}
    (folder / "results.json").write_text(json.dumps(results))


def robustness_rows(
    mixture: np.ndarray, turns_each: int, generator: np.random.Generator, predicted, cut_off: int | None
) -> list[dict]:
    """Rows of robustness.parquet; `predicted` makes predictions of damaged outputs."""
    rows = []
    for curve, levels in CURVES.items():
        for level in (0.0, *levels):
            for draw in range(1 if curve == "start cut" or level == 0 else 2):
                predictions = predicted(mixture + 3 * level * generator.normal(size=mixture.shape)).tolist()
                if curve == "start cut":
                    place = np.arange(len(mixture)) % turns_each
                    cut = place < level * turns_each
                    predictions = [cut_off if gone else one for gone, one in zip(cut, predictions, strict=True)]
                rows.append({"curve": curve, "level": level, "draw": draw, "predictions": predictions})
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
