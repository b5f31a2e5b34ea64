"""The card of a checkpoint folder, made from the run: what it is, how to use it, what it scored, what it must not be used for."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

REPOSITORY = "REPOSITORY"  # where it goes, which a folder on disk cannot know

_PAPER = "https://arxiv.org/abs/2602.23300"
# Of the data, as its owners give it out: it holds for what was made of it, too.
_LICENCES = {
    "meld": ("gpl-3.0", "MELD is under GPL-3.0, and its clips are of a television series."),
    "iemocap": ("other", "IEMOCAP is given out on request, for research alone."),
    "mosi": ("other", "CMU-MOSI is given out for research."),
    "demo": ("apache-2.0", "The corpus is generated."),
}
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
    config, corpus = model.config, recipe.get("corpus", {}).get("name") or "custom"
    # A baseline says itself what it is.
    baseline, title = hasattr(model, "method"), getattr(model, "title", "MiSTER-E")
    method = getattr(model, "method", f"MiSTER-E ([Dutta, Balaji and Ganapathy 2026]({_PAPER}))")
    licence, about = next((found for name, found in _LICENCES.items() if name in corpus.lower()), (None, None))
    data = ModelCardData(
        library_name="transformers",
        license=licence,
        base_model=_base_models(recipe, encoders),
        tags=[
            "emotion-recognition-in-conversation",
            *(["baseline"] if baseline else ["mixture-of-experts", "mister-e"]),
        ],
        model_name=f"{title} {corpus}",
        eval_results=_eval_results(corpus, results),
    )
    sections = {
        f"# {title}, {corpus}": f"Names one of {config.num_labels} emotions ({', '.join(config.id2label.values())}) for every turn of a dialogue from "
        f"{_inputs(encoders)}, without using who speaks. The method is {method}{', a baseline of MiSTER-E' if baseline else ''}; stage 2 has "
        f"{model.num_parameters():,} parameters.",
        "## Use": "\n\n".join(
            [
                _baseline_use(config) if baseline else _use(config, encoders),
                *(_encoder_use(name, recipe) for name in encoders),
            ]
        ),
        "## Data": f"{corpus}. " + (about or "Its licence holds for this model, too."),
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


def _inputs(encoders: Sequence[str]) -> str:
    kinds = {"speech": "sound", "text": "words"}
    return " and ".join(kinds[name] for name in encoders) if encoders else "the turns' speech and text vectors"


def _base_models(recipe: dict, encoders: Sequence[str]) -> list[str] | None:
    names = [recipe.get(f"{modality}_encoder", {}).get("backbone") for modality in encoders]
    return [name for name in names if name and not Path(name).exists()] or None


def _use(config, encoders: Sequence[str]) -> str:
    turns = '[{"text": "You did what?"}, {"audio": "2.wav", "text": "Calm down."}]'
    if "speech" not in encoders:
        turns = '[{"text": "You did what?"}, {"text": "Calm down."}]'
    pipeline = (
        "```python\nfrom transformers import pipeline\n\n"
        f'erc = pipeline("conversation-emotion-recognition", model="{REPOSITORY}", trust_remote_code=True)  # or import mister_e_hf first, without it\n'
        f"erc({turns})\n```\n\nStage 2 alone:\n\n"
    )
    return (pipeline if "text" in encoders else "") + (
        "```python\nfrom transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained("{REPOSITORY}", trust_remote_code=True)  # or import mister_e_hf first, without it\n'
        "output = model(speech_embeddings, text_embeddings)  # "
        f"(B, T, {config.speech_embedding_dim}), (B, T, {config.text_embedding_dim})\n"
        "emotions = output.logits.argmax(-1)\n```"
    )


def _baseline_use(config) -> str:
    return (
        "```python\nimport mister_e_hf  # holds the model's code\nfrom transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained("{REPOSITORY}")\n'
        "output = model(speech_embeddings, text_embeddings)  # "
        f"(B, T, {config.speech_embedding_dim}), (B, T, {config.text_embedding_dim})\n"
        "emotions = output.logits.argmax(-1)\n```"
    )


def _encoder_use(modality: str, recipe: dict) -> str:
    name, turns = f"{modality}_encoder", "samples" if modality == "speech" else "texts"
    backbone = Path(recipe.get(name, {}).get("backbone", "a pretrained model"))
    return (
        f"The vectors of {modality} are made by `{name}/`, on {backbone.name if backbone.is_dir() else backbone}:\n\n"
        "```python\nfrom mister_e_hf import MisterEProcessor, UtteranceEncoder\n\n"
        f'encoder = UtteranceEncoder.from_pretrained("{REPOSITORY}", subfolder="{name}")\n'
        f'processor = MisterEProcessor.from_pretrained("{REPOSITORY}", subfolder="{name}")\n'
        f"vectors = encoder(**processor({turns})).embeddings  # a list of {'arrays (S,) at 16 kHz' if modality == 'speech' else 'texts'} in\n```"
    )


def _eval_results(corpus: str, results: dict) -> list[EvalResult] | None:
    test = results.get("test", {}).get("mixture")
    if not test:
        return None
    names = {"weighted_f1": "Weighted F1", "macro_f1": "Macro F1", "accuracy": "Accuracy"}
    return [
        EvalResult(
            task_type="audio-text-classification",
            task_name="emotion recognition in conversations",
            dataset_type=corpus.lower(),
            dataset_name=corpus,
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
    lines = [
        f"Test split, computed once; the epoch was chosen on validation; one seed ({results['seed']}). In brackets 95 % intervals over resampled dialogues.",
        "",
        "| test | weighted F1 | macro F1 | utterances |",
        "|---|---|---|---|",
    ]
    for name, block in results["test"].items():
        cells = [_with_interval(block, metric) for metric in ("weighted_f1", "macro_f1")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {block['num_utterances']} |")
    mixture = results["test"]["mixture"]
    if "f1_per_class" in mixture:
        lines += ["", "| class | F1 of the mixture |", "|---|---|"]
        lines += [f"| {name} | {100 * value:.2f} |" for name, value in mixture["f1_per_class"].items()]
    if "calibration" in results:
        before = results["calibration"]["test without it"]["expected_calibration_error"]
        lines += [
            "",
            f"Probabilities are calibrated by a temperature of {results['calibration']['temperature']:.3f}, fitted on validation: the expected calibration error "
            f"is {100 * mixture['expected_calibration_error']:.2f} % on test, and {100 * before:.2f} % without it.",
        ]
    return "\n".join(lines)


def _with_interval(block: dict, metric: str) -> str:
    low_high = block.get("intervals", {}).get(metric)
    return f"{100 * block[metric]:.2f}" + (
        f" ({100 * low_high[0]:.2f} to {100 * low_high[1]:.2f})" if low_high else ""
    )


def _training(recipe: dict, results: dict) -> str:
    lines = ["The recipe is in `training.yaml`." if recipe else "No recipe was recorded."]
    if results.get("versions"):
        versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        lines.append(f"Made with {versions}; commit {results.get('git_commit') or 'unknown'}.")
    for split, fingerprint in results.get("data_fingerprints", {}).items():
        lines.append(f"Fingerprint of {split}: `{fingerprint}`.")
    return " ".join(lines)
