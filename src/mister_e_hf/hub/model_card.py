"""The card of a checkpoint folder, made from the run: what it is, how to use it, what it scored, what it must not be used for."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..base.plain_text import for_markdown, for_terminal
from ..corpora.licences import CUSTOM, CorpusOfRun, corpus_of_run

REPOSITORY = "REPOSITORY"  # where it goes, which a folder on disk cannot know

_PAPER = "https://arxiv.org/abs/2602.23300"
_CITATION = """@article{dutta2026mistere,
  title = {A Mixture-of-Experts Model for Multimodal Emotion Recognition in Conversations},
  author = {Dutta, Soumya and Balaji, Smruthi and Ganapathy, Sriram},
  journal = {Computer Speech \\& Language},
  volume = {100},
  pages = {101965},
  year = {2026}
}"""


def model_card(
    model: PreTrainedModel, recipe: dict, results: dict, encoders: Sequence[str] = (), has_picture: bool = False
) -> ModelCard:
    """
    The card of a model and of its encoders of these modalities, from its recipe and its results as `results.json` holds them; where `confusion.png`
    lies beside it, with that.
    """
    config, scores = model.config, results.get("test", {}).get("mixture")
    corpus = corpus_of_run(
        results.get("corpus", {}).get("stated", {}),
        recipe.get("corpus", {}).get("name"),
        config.id2label.values(),
        scores and scores["num_utterances"],
    )
    # A baseline says itself what it is.
    baseline, title = hasattr(model, "method"), getattr(model, "title", "MiSTER-E")
    method = getattr(model, "method", f"MiSTER-E ([Dutta, Balaji and Ganapathy 2026]({_PAPER}))")
    kinds = {"speech": "audio", "text": "text"}
    task = f"{'-'.join(kinds[name] for name in _modalities(config))}-classification"
    data = ModelCardData(
        library_name="transformers",
        license=corpus.license and for_terminal(corpus.license),
        base_model=_base_models(recipe, encoders),
        tags=[
            "emotion-recognition-in-conversation",
            *(["baseline"] if baseline else ["mixture-of-experts", "mister-e"]),
        ],
        model_name=for_terminal(f"{title} {corpus.name}"),
        eval_results=_eval_results(task, corpus, results),
    )
    sections = {
        f"# {title}, {for_markdown(corpus.name)}": f"Names one of {config.num_labels} emotions ({', '.join(map(for_markdown, config.id2label.values()))}) for every turn of a dialogue from "
        f"{_inputs(config, encoders)}, without using who speaks. The method is {method}{', a baseline of MiSTER-E' if baseline else ''}; stage 2 has "
        f"{model.num_parameters():,} parameters.",
        "## Use": "\n\n".join(
            [
                _baseline_use(config) if baseline else _use(config, encoders),
                *(_encoder_use(name, recipe) for name in encoders),
            ]
        ),
        "## Data": _data(corpus, results),
        "## Results": _results(results)
        + ("\n\n![Confusion matrix of the test split](confusion.png)" if has_picture else ""),
        "## Training": _training(recipe, results),
        "## Limits and fair use": "Emotions are what annotators agreed on, not what people feel. The scores hold for dialogues like those it was trained on, "
        "in their language and culture. It must not be used to judge people, nor in hiring, policing, insurance or care: the EU AI Act forbids emotion recognition "
        "at work and in school. Ask those whose speech is analysed.",
    }
    if not baseline:
        sections["## Citation"] = f"```bibtex\n{_CITATION}\n```"
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(f"{head}\n\n{text}" for head, text in sections.items()) + "\n"
    )


def _inputs(config, encoders: Sequence[str]) -> str:
    kinds = {"speech": "audio", "text": "transcript"}
    if encoders:
        return " and ".join(kinds[name] for name in encoders)
    return f"the turns' {' and '.join(_modalities(config))} vectors"


def _base_models(recipe: dict, encoders: Sequence[str]) -> list[str] | None:
    names = [recipe.get(f"{modality}_encoder", {}).get("backbone") for modality in encoders]
    return [name for name in names if name and not Path(name).exists()] or None


def _modalities(config) -> list[str]:
    """Those whose vectors the model takes."""
    parts = getattr(config, "experts", None) or config.modalities
    return [name for name in ("speech", "text") if name in parts or "fusion" in parts]


def _use(config, encoders: Sequence[str]) -> str:
    turns = {
        ("speech", "text"): '[{"text": "You did what?"}, {"audio": "2.wav", "text": "Calm down."}]',
        ("text",): '[{"text": "You did what?"}, {"text": "Calm down."}]',
        ("speech",): '[{"audio": "1.wav"}, {"audio": "2.wav"}]',
    }
    pipeline = (
        "```python\nfrom transformers import pipeline\n\n"
        f'erc = pipeline("conversation-emotion-recognition", model="{REPOSITORY}", trust_remote_code=True)  # or import mister_e_hf first, without it\n'
        f"erc({turns.get(tuple(sorted(encoders)))})\n```\n\nStage 2 alone:\n\n"
    )
    return (pipeline if encoders else "") + (
        "```python\nfrom transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained("{REPOSITORY}", trust_remote_code=True)  # or import mister_e_hf first, without it\n'
        f"{_call(config)}\n"
        "emotions = output.logits.argmax(-1)\n```"
    )


def _baseline_use(config) -> str:
    return (
        "```python\nimport mister_e_hf  # holds the model's code\nfrom transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained("{REPOSITORY}")\n'
        f"{_call(config)}\n"
        "emotions = output.logits.argmax(-1)\n```"
    )


def _call(config) -> str:
    modalities = _modalities(config)
    shapes = ", ".join(f"(B, T, {getattr(config, f'{name}_embedding_dim')})" for name in modalities)
    given = [f"{name}_embeddings" for name in modalities]
    named = given if len(given) == 2 else [f"{name}={name}" for name in given]
    return f"output = model({', '.join(named)})  # {shapes}"


def _encoder_use(modality: str, recipe: dict) -> str:
    name, turns = f"{modality}_encoder", "samples" if modality == "speech" else "texts"
    backbone = Path(recipe.get(name, {}).get("backbone", "a pretrained model"))
    return (
        f"The vectors of {modality} are made by `{name}/`, on {for_markdown(backbone.name if backbone.is_dir() else backbone)}:\n\n"
        "```python\nfrom mister_e_hf import MisterEProcessor, UtteranceEncoder\n\n"
        f'encoder = UtteranceEncoder.from_pretrained("{REPOSITORY}", subfolder="{name}")\n'
        f'processor = MisterEProcessor.from_pretrained("{REPOSITORY}", subfolder="{name}")\n'
        f"vectors = encoder(**processor({turns})).embeddings  # a list of {'arrays (S,) at 16 kHz' if modality == 'speech' else 'texts'} in\n```"
    )


def _data(corpus: CorpusOfRun, results: dict) -> str:
    about = corpus.about or "What its licence asks holds for this model, too."
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
            # What ranks models by data set must not take a part of a published test split, or one's own data, for the whole of it.
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
    """F1 of each class, a dash where no turn has it, and how many turns do."""
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
            "Probabilities are not calibrated: validation has too few labelled turns to fit a temperature to. The expected calibration "
            f"error is {error:.2f} % on test."
        )
    return (
        f"Probabilities are calibrated by a temperature of {calibration['temperature']:.3f}, fitted on validation: the expected calibration "
        f"error is {error:.2f} % on test, and {before:.2f} % without it."
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
        lines.append(f"Made with {versions}; commit {for_markdown(results.get('git_commit') or 'unknown')}.")
    for split, fingerprint in results.get("data_fingerprints", {}).items():
        code = for_terminal(fingerprint).replace("`", "'")
        lines.append(f"Fingerprint of {for_markdown(split)}: `{code}`.")
    return " ".join(lines)
