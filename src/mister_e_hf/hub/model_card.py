"""Model cards, made from a run: what the model is, its use, data, results, training, limits and citation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..base.modalities import MODALITIES
from ..base.plain_text import for_markdown, for_terminal
from ..corpora.licences import CUSTOM, CorpusOfRun, corpus_of_run

REPOSITORY = "REPOSITORY"  # replaced by the repository's id when the folder is pushed

# Two turns of an example, by modality.
_EXAMPLES = {
    "speech": ('"audio": "1.wav"', '"audio": "2.wav"'),
    "text": ('"text": "You did what?"', '"text": "Calm down."'),
}


def model_card(
    model: Any, recipe: dict, results: dict, encoders: Sequence[str] = (), has_plot: bool = False
) -> ModelCard:
    r"""
    Make the card of a model.

    Args:
        model: a conversation model, which states its title, method, citation and tags.
        recipe: content of `training.yaml`.
        results: content of `results.json`.
        encoders: modalities of the encoders in the checkpoint.
        has_plot: whether `confusion.png` is in the folder.
    """
    config: Any = model.config
    scores = results.get("test", {}).get("mixture")
    corpus = corpus_of_run(
        results.get("corpus", {}).get("stated", {}),
        recipe.get("corpus", {}).get("name"),
        config.id2label.values(),
        scores and scores["num_utterances"],
    )
    task = f"{'-'.join(MODALITIES[name].content for name in config.modalities)}-{config.task}"
    data = ModelCardData(
        library_name="transformers",
        license=corpus.license and for_terminal(corpus.license),
        base_model=_base_models(recipe, encoders),
        tags=["emotion-recognition-in-conversation", *model.tags],
        model_name=for_terminal(f"{model.title} {corpus.name}"),
        eval_results=_eval_results(task, corpus, results),
    )
    sections = {
        f"# {model.title}, {for_markdown(corpus.name)}": f"Predicts one of {config.num_labels} emotions "
        f"({', '.join(map(for_markdown, config.id2label.values()))}) for every turn of a dialogue from "
        f"{_inputs(config, encoders)}, without using who speaks. The method is {model.method}; stage 2 has "
        f"{model.num_parameters():,} parameters.{_heads(config)}",
        "## Use": "\n\n".join([_use(config, encoders), *(_encoder_use(name, recipe) for name in encoders)]),
        "## Data": _data(corpus, results),
        "## Results": _results(results)
        + ("\n\n![Confusion matrix of the test split](confusion.png)" if has_plot else ""),
        "## Training": _training(recipe, results),
        "## Limits and fair use": "Emotions are what annotators agreed on, not what people feel. The scores hold for "
        "dialogues like those it was trained on, in their language and culture. It must not be used to judge people, "
        "nor in hiring, policing, insurance or care: the EU AI Act forbids emotion recognition at work and in school. "
        "Ask for the consent of the speakers.",
    }
    if model.citation:
        sections["## Citation"] = f"```bibtex\n{model.citation}\n```"
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(f"{head}\n\n{text}" for head, text in sections.items()) + "\n"
    )


def _inputs(config: Any, encoders: Sequence[str]) -> str:
    if encoders:
        return " and ".join(MODALITIES[name].content for name in encoders)
    vectors = f"vectors of {' and '.join(config.modalities)}"
    return f"{vectors} and the transcripts" if config.reads_transcripts else vectors


def _heads(config: Any) -> str:
    return f" Beside its own prediction it has those of its heads {', '.join(config.heads)}." if config.heads else ""


def _base_models(recipe: dict, encoders: Sequence[str]) -> list[str] | None:
    names = [recipe.get(MODALITIES[name].encoder, {}).get("backbone") for name in encoders]
    return [name for name in names if name and not Path(name).exists()] or None


def _use(config: Any, encoders: Sequence[str]) -> str:
    # the first turn has one modality, the second all
    first = _EXAMPLES.get(encoders[-1], ("",))[0] if encoders else ""
    second = ", ".join(_EXAMPLES[name][1] for name in encoders if name in _EXAMPLES)
    pipeline = (
        "```python\nfrom transformers import pipeline\n\n"
        "# or import mister_e_hf first, and leave out trust_remote_code\n"
        f'erc = pipeline("conversation-emotion-recognition", model="{REPOSITORY}", trust_remote_code=True)\n'
        f"erc([{{{first}}}, {{{second}}}])\n```\n\nStage 2 alone:\n\n"
    )
    return (pipeline if encoders else "") + (
        "```python\nfrom transformers import AutoModel\n\n"
        "# or import mister_e_hf first, and leave out trust_remote_code\n"
        f'model = AutoModel.from_pretrained("{REPOSITORY}", trust_remote_code=True)\n'
        f"{_call(config)}\n"
        "emotions = output.logits.argmax(-1)\n```"
    )


def _call(config: Any) -> str:
    read = [MODALITIES[name] for name in config.modalities]
    shapes = ", ".join(f"(B, T, {getattr(config, each.width)})" for each in read)
    arguments = [f"{each.embeddings}={each.embeddings}" for each in read]
    if config.reads_transcripts:
        arguments, shapes = [*arguments, "transcripts=transcripts"], f"{shapes}, B lists of T texts"
    return f"output = model({', '.join(arguments)})  # {shapes}"


def _encoder_use(modality: str, recipe: dict) -> str:
    name, contents = MODALITIES[modality].encoder, MODALITIES[modality].noun
    backbone = Path(recipe.get(name, {}).get("backbone", "a pretrained model"))
    return (
        f"The vectors of {modality} are made with `{name}/`, fine-tuned from "
        f"{for_markdown(backbone.name if backbone.is_dir() else backbone)}:\n\n"
        "```python\nfrom mister_e_hf import MisterEProcessor, UtteranceEncoder\n\n"
        f'encoder = UtteranceEncoder.from_pretrained("{REPOSITORY}", subfolder="{name}")\n'
        f'processor = MisterEProcessor.from_pretrained("{REPOSITORY}", subfolder="{name}")\n'
        f"vectors = encoder(**processor({contents})).embeddings"
        f"{'  # arrays (S,) at 16 kHz' if modality == 'speech' else ''}\n```"
    )


def _data(corpus: CorpusOfRun, results: dict) -> str:
    about = corpus.about or "The terms of its licence also apply to this model."
    lines = [f"{for_markdown(corpus.name)}. {for_markdown(about)}"]
    counts = results.get("corpus", {})
    for split, turns in counts.get("labelled_turns", {}).items():
        lines.append(f"{split.capitalize()}: {turns:,} labelled turns in {counts['dialogues'][split]:,} dialogues.")
    return " ".join(lines)


def _eval_results(task: str, corpus: CorpusOfRun, results: dict) -> list[EvalResult] | None:
    test = results.get("test", {}).get("mixture")
    if not test:
        return None
    names = {"weighted_f1": "Weighted F1", "macro_f1": "Macro F1", "accuracy": "Accuracy"}
    return [
        EvalResult(
            task_type=task,
            task_name="emotion recognition in conversations",
            # Leaderboards must not mistake a part of a published test split, or other data, for the whole split.
            dataset_type=corpus.test_set.lower() if corpus.is_published else CUSTOM,
            dataset_name=for_terminal(corpus.test_set),
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=test[kind],
            metric_config=f"seed {results['seed']}",
        )
        for kind, name in names.items()
    ]


def _results(results: dict) -> str:
    if not results.get("test"):
        return "None recorded."
    mixture = results["test"]["mixture"]
    intervals = " In brackets 95 % intervals over resampled dialogues." if "intervals" in mixture else ""
    lines = [
        f"Test split, computed once;{_epoch(results)} one seed ({for_markdown(results['seed'])}).{intervals}",
        "",
        "| test | weighted F1 | macro F1 | utterances |",
        "|---|---|---|---|",
    ]
    for name, block in results["test"].items():
        cells = [_with_interval(block, metric) for metric in ("weighted_f1", "macro_f1")]
        lines.append(f"| {for_markdown(name)} | {cells[0]} | {cells[1]} | {block['num_utterances']} |")
    if "f1_per_class" in mixture:
        lines += _classes(mixture)
    for sentence in results.get("corpus", {}).get("shortcomings", ()):
        lines += ["", for_markdown(sentence[:1].upper() + sentence[1:])]
    if "calibration" in results:
        lines += ["", _calibration(results["calibration"], mixture)]
    return "\n".join(lines)


def _epoch(results: dict) -> str:
    if "best_epoch" not in results:
        return ""
    epochs = f"{results['epochs']:g}" if results.get("epochs") else "several"
    if results["best_epoch"] is None:
        return " its only epoch;" if epochs == "1" else f" the last of {epochs} epochs;"
    return f" epoch {results['best_epoch']:g} of {epochs}, chosen on validation;"


def _classes(mixture: dict) -> list[str]:
    """F1 of each class, a dash if no turn has it, and its number of turns."""
    names = list(mixture["f1_per_class"])
    turns = [sum(row) for row in mixture["confusion"]] if "confusion" in mixture else [None] * len(names)
    lines = ["", "| class | F1 of the mixture | turns |", "|---|---|---|"]
    for name, count in zip(names, turns, strict=True):
        value = mixture["f1_per_class"][name]
        score = "–" if value is None or count == 0 else f"{100 * value:.2f}"
        lines.append(f"| {for_markdown(name)} | {score} | {'' if count is None else f'{count:,}'} |")
    return lines


def _calibration(calibration: dict, mixture: dict) -> str:
    error, before = (100 * block["expected_calibration_error"] for block in (mixture, calibration["test without it"]))
    if calibration["temperature"] == 1.0:
        return (
            "Probabilities are not calibrated: validation has too few labelled turns to fit a temperature. The "
            f"expected calibration error is {error:.2f} % on test."
        )
    return (
        f"Probabilities are calibrated with a temperature of {calibration['temperature']:.3f}, fitted on validation: "
        f"the expected calibration error is {error:.2f} % on test, and {before:.2f} % without it."
    )


def _with_interval(block: dict, metric: str) -> str:
    low_high = block.get("intervals", {}).get(metric)
    return f"{100 * block[metric]:.2f}" + (
        f" ({100 * low_high[0]:.2f} to {100 * low_high[1]:.2f})" if low_high else ""
    )


def _training(recipe: dict, results: dict) -> str:
    lines = ["The recipe is in `training.yaml`." if recipe else "No recipe was recorded."]
    if results.get("versions"):
        versions = ", ".join(for_markdown(f"{name} {version}") for name, version in results["versions"].items())
        lines.append(f"Trained with {versions}; commit {for_markdown(results.get('git_commit') or 'unknown')}.")
    for split, fingerprint in results.get("data_fingerprints", {}).items():
        code = for_terminal(fingerprint).replace("`", "'")
        lines.append(f"Fingerprint of {for_markdown(split)}: `{code}`.")
    return " ".join(lines)
