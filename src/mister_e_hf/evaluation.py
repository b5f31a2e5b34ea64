"""A checkpoint folder and a corpus -> scores: those that the run stored, again, or those of any other corpus."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import AutoModel, PreTrainedModel
from transformers.utils import cached_file

from .embedding import embed_corpus
from .errors import InputError
from .experiment import predict, probabilities, score
from .modeling_utterance_encoder import UtteranceEncoder
from .processing_mister_e import MisterEProcessor
from .recipe import CorpusSettings
from .trainer import MisterETrainer, MisterETrainingArguments
from .utterances import load_dialogues
from .vector_files import holds_vectors, read_corpus
from .vectors import MODALITIES


def evaluate_checkpoint(
    model: str | Path,
    corpus: str | Path | None = None,
    split: str = "test",
    vectors: str | Path | None = None,
    batch_size: int | None = None,
    use_cpu: bool = False,
    revision: str | None = None,
) -> dict[str, Any]:
    r"""
    Score a checkpoint on one split of a corpus.

    Args:
        model: a checkpoint folder, or its id on the Hub.
        corpus: vectors, or a corpus of dialogues, which the folder's encoders then embed; by default the one it was trained on.
        split: which split to score.
        vectors: where vectors that have to be made are kept; by default nowhere.
        batch_size: dialogues of a batch; by default as in training's evaluation.
        use_cpu: even where there is a GPU.
        revision: branch, tag or commit on the Hub.

    Returns:
        `scores`, by `mixture` and expert, as `results.json` holds them; and `as_stored`, whether they are those that it holds for the same split
        of the same data, None where it holds none. Sums over another number of threads round in another way, so calibration may differ by 1e-6.

    Raises:
        FileNotFoundError: if there is no checkpoint or no corpus.
        ValueError: if the corpus does not fit the model, or has sound and words and the checkpoint no encoders.
    """
    hub = {} if revision is None else {"revision": revision}
    try:
        loaded = AutoModel.from_pretrained(model, **hub)
    except ValueError as error:  # transformers' own, of a folder that is not a model's
        raise InputError(f"'{model}' could not be loaded: {error}") from error
    recipe = yaml.safe_load(_text(model, "training.yaml", hub) or "{}")
    stored = json.loads(_text(model, "results.json", hub) or "{}")
    settings = CorpusSettings(**recipe.get("corpus", {}))
    source = corpus or settings.path
    if source is None:
        raise InputError(f"'{model}' does not say what corpus it was trained on; give one by --corpus")
    with tempfile.TemporaryDirectory() as temporary:
        if not holds_vectors(source):
            source = embed_corpus(
                load_dialogues(source), _encoders(model, hub), vectors or Path(temporary) / "vectors"
            )
        config = loaded.config
        columns = {} if corpus else {"label_column": settings.label_column, "score_column": settings.score_column}
        data = read_corpus(source, config.label2id, splits=(split,), **columns)[split]
        data.check({name: getattr(config, f"{name}_embedding_dim") for name in MODALITIES})
        batch = batch_size or recipe.get("training", {}).get("per_device_eval_batch_size", 8)
        output = predict(scoring_trainer(loaded, f"{temporary}/run", batch, use_cpu), data)
        scores = score(
            probabilities(output, config.calibration_temperature),
            data,
            list(config.id2label.values()),
        )
        same = stored.get("data_fingerprints", {}).get(split) == data.fingerprint()
    return {"scores": scores, "as_stored": _agree(scores, stored[split]) if same and split in stored else None}


def scoring_trainer(
    model: PreTrainedModel, output_dir: str | Path, batch_size: int = 8, use_cpu: bool = False
) -> MisterETrainer:
    """A trainer that only predicts, `batch_size` dialogues at a time."""
    arguments = MisterETrainingArguments(
        str(output_dir),
        per_device_eval_batch_size=batch_size,
        use_cpu=use_cpu,
        contrastive_weight=0.0,  # nothing is trained, and the model may lack the experts of these terms
        consistency_weight=0.0,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        disable_tqdm=True,
    )
    return MisterETrainer(model, arguments)


def _agree(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_agree(one[name], other[name]) for name in one)
        )
    if one is None or other is None:  # the F1 of a class without a turn
        return one is other
    return bool(np.allclose(one, other, rtol=0, atol=1e-6))


def _text(model: str | Path, name: str, hub: dict[str, Any]) -> str | None:
    path = cached_file(str(model), name, **hub, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path).read_text(encoding="utf-8")


def _encoders(model: str | Path, hub: dict[str, Any]) -> dict[str, tuple[UtteranceEncoder, MisterEProcessor]]:
    found = {}
    for modality in MODALITIES:
        folder = {"subfolder": f"{modality}_encoder", **hub}
        if cached_file(str(model), "config.json", **folder, _raise_exceptions_for_missing_entries=False):
            encoder = UtteranceEncoder.from_pretrained(model, **folder)
            found[modality] = encoder, MisterEProcessor.from_pretrained(model, **folder)
    if not found:
        raise InputError(
            f"'{model}' has no speech_encoder/ and no text_encoder/, so it scores corpora of vectors alone; this one holds sound and words"
        )
    return found
