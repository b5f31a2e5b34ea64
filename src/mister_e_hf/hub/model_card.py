"""Model cards, made from a run: what the model is, its use, data, results, training, limits and citation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..base.modalities import MODALITIES
from ..base.plain_text import for_markdown, for_terminal
from ..corpora.licences import CorpusOfRun, corpus_of_run
from . import language_models
from .card_results import results_metadata, results_section
from .language_models import language_model_sentence
from .loading import is_local

REPOSITORY = "REPOSITORY"  # replaced by the repository's id when the folder is pushed

# Two turns of an example, by modality.
_EXAMPLES = {
    "speech": ('"audio": "1.wav"', '"audio": "2.wav"'),
    "text": ('"text": "You did what?"', '"text": "Calm down."'),
    "visual": ('"video": "clip0.mp4"', '"video": "clip1.mp4"'),
}

_SHAPES = {"speech": "  # arrays (S,) at 16 kHz", "visual": "  # paths of videos, or frames (K, H, W, 3) in uint8"}


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
        base_model=_base_models(config, recipe, encoders),
        tags=["emotion-recognition-in-conversation", *model.tags],
        model_name=for_terminal(f"{model.title} {corpus.name}"),
        eval_results=results_metadata(task, corpus, results),
    )
    sections = {
        f"# {model.title}, {for_markdown(corpus.name)}": f"Predicts {_predicted(config)} for every turn of a dialogue "
        f"from {_inputs(config, encoders)}, without using who speaks. The method is {model.method}; stage 2 has "
        f"{model.num_parameters():,} parameters.{_heads(config)}{picked_columns(config)}"
        + language_model_sentence(config),
        "## Use": "\n\n".join([_use(config, encoders), *(_encoder_use(name, recipe) for name in encoders)]),
        **_prompt(model),
        "## Data": _data(corpus, results),
        "## Results": results_section(results)
        + ("\n\n![Confusion matrix of the test split](confusion.png)" if has_plot else ""),
        "## Training": training_facts(recipe, results),
        "## Limits and fair use": f"{'Scores' if config.task == 'regression' else 'Emotions'} are what annotators "
        "agreed on, not what people feel. The results hold for dialogues like those it was trained on, in their "
        "language and culture. It must not be used to judge people, "
        "nor in hiring, policing, insurance or care: the EU AI Act forbids emotion recognition at work and in school. "
        "Ask for the consent of the speakers.",
    }
    if model.citation:
        sections["## Citation"] = f"```bibtex\n{model.citation}\n```"
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(f"{head}\n\n{text}" for head, text in sections.items()) + "\n"
    )


def _prompt(model: Any) -> dict[str, str]:
    """The section on the prompts of a model that writes any."""
    # A model whose class comes from the code of an older checkpoint has no such method.
    prompt = getattr(model, "example_prompt", lambda: None)()
    if prompt is None:
        return {}
    shown = for_terminal(prompt, lines=True).replace("```", "~~~")
    return {"## Prompt": f"What its language model reads of the second turn of a dialogue:\n\n```text\n{shown}\n```"}


def _predicted(config: Any) -> str:
    names = [for_markdown(name) for name in config.id2label.values()]
    if config.task == "regression":
        return f"a score of {listed(names)}" if len(names) == 1 else f"scores of {listed(names)}"
    return f"one of {config.num_labels} emotions ({', '.join(names)})"


def listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _inputs(config: Any, encoders: Sequence[str]) -> str:
    if encoders:
        return listed([MODALITIES[name].content for name in encoders])
    vectors = f"vectors of {listed(config.modalities)}"
    return f"{vectors} and the transcripts" if config.reads_transcripts else vectors


def picked_columns(config: Any) -> str:
    """A sentence on the columns of the speech vectors that a model reads, after a space; empty if none are named."""
    # Configurations that come from the code of an older checkpoint do not have the field.
    columns = getattr(config, "speech_columns", None) if "speech" in config.modalities else None
    return f" The columns of its speech vectors are {', '.join(map(for_markdown, columns))}." if columns else ""


def _heads(config: Any) -> str:
    if not config.heads:
        return ""
    heads = f"heads {listed(config.heads)}" if len(config.heads) > 1 else f"head {config.heads[0]}"
    return f" Beside its own prediction it has {'those' if len(config.heads) > 1 else 'that'} of its {heads}."


def _base_models(config: Any, recipe: dict, encoders: Sequence[str]) -> list[str] | None:
    names = [recipe.get(MODALITIES[name].encoder, {}).get("backbone") for name in encoders]
    names.append(getattr(config, language_models.FIELD, None))
    return [name for name in names if name and not is_local(name)] or None


def _use(config: Any, encoders: Sequence[str]) -> str:
    in_video = {"speech", "visual"} <= set(encoders)  # the audio is the video's
    given = [name for name in encoders if name in _EXAMPLES and not (in_video and name == "speech")]
    # the first turn has one modality, the second all
    first = _EXAMPLES[given[-1]][0] if given else ""
    second = ", ".join(_EXAMPLES[name][1] for name in given)
    remark = "  # the audio is that of the videos" if in_video else ""
    pipeline = (
        "```python\nfrom transformers import pipeline\n\n"
        "# or import mister_e_hf first, and leave out trust_remote_code\n"
        f'erc = pipeline("conversation-emotion-recognition", model="{REPOSITORY}", trust_remote_code=True)\n'
        f"erc([{{{first}}}, {{{second}}}]){remark}\n```\n\nStage 2 alone:\n\n"
    )
    return (pipeline if encoders else "") + (
        "```python\nfrom transformers import AutoModel\n\n"
        "# or import mister_e_hf first, and leave out trust_remote_code\n"
        f'model = AutoModel.from_pretrained("{REPOSITORY}", trust_remote_code=True)\n'
        f"{_call(config)}\n"
        f"{_answer(config)}\n```"
    )


def _answer(config: Any) -> str:
    if config.task == "regression":
        return f"scores = output.logits  # (B, T, {config.num_labels})"
    return "emotions = output.logits.argmax(-1)"


def _call(config: Any) -> str:
    read = [MODALITIES[name] for name in config.modalities]
    shapes = ", ".join(f"(B, T, {getattr(config, each.width)})" for each in read)
    arguments = [f"{each.embeddings}={each.embeddings}" for each in read]
    if config.reads_transcripts:
        arguments, shapes = [*arguments, "transcripts=transcripts"], f"{shapes}, B lists of T texts"
    return f"output = model({', '.join(arguments)})  # {shapes}"


def _encoder_use(modality: str, recipe: dict) -> str:
    name, contents = MODALITIES[modality].encoder, MODALITIES[modality].noun
    stated = recipe.get(name, {})
    backbone = stated.get("backbone") or "a pretrained model"
    shown = f"the local model {Path(backbone).name}" if is_local(backbone) else backbone
    made = "a head on the frozen backbone" if stated.get("tuning") == "frozen" else "fine-tuned from"
    return (
        f"The vectors of {MODALITIES[modality].content} are computed with `{name}/`, {made} {for_markdown(shown)}:\n\n"
        "```python\nfrom mister_e_hf import MisterEProcessor, UtteranceEncoder\n\n"
        f'encoder = UtteranceEncoder.from_pretrained("{REPOSITORY}", subfolder="{name}")\n'
        f'processor = MisterEProcessor.from_pretrained("{REPOSITORY}", subfolder="{name}")\n'
        f"vectors = encoder(**processor({contents})).embeddings"
        f"{_SHAPES.get(modality, '')}\n```"
    )


def _data(corpus: CorpusOfRun, results: dict) -> str:
    about = corpus.about or "The terms of its licence also apply to this model."
    lines = [f"{for_markdown(corpus.name)}. {for_markdown(about)}"]
    counts = results.get("corpus", {})
    for split, turns in counts.get("labelled_turns", {}).items():
        lines.append(f"{split.capitalize()}: {turns:,} labelled turns in {counts['dialogues'][split]:,} dialogues.")
    return " ".join(lines)


def _pretraining(facts: dict) -> str:
    """What the model began with, and whether test dialogues were among it."""
    began = "It began from weights that were pre-trained without labels"
    if not facts.get("corpora"):
        return f"{began}."
    splits = facts.get("splits") or ["unknown splits"]
    said = f"{began}, on {facts.get('dialogues', 0):,} dialogues ({', '.join(map(str, splits))}) of "
    said += f"{listed([for_markdown(str(name)) for name in facts['corpora']])}."
    return f"{said} **Test dialogues were among them.**" if "test" in splits else said


def training_facts(recipe: dict, results: dict) -> str:
    lines = ["The recipe is in `training.yaml`." if recipe else "No recipe was recorded."]
    if "pretraining" in results:
        lines.append(_pretraining(results["pretraining"]))
    if results.get("versions"):
        versions = ", ".join(for_markdown(f"{name} {version}") for name, version in results["versions"].items())
        lines.append(f"Trained with {versions}; commit {for_markdown(results.get('git_commit') or 'unknown')}.")
    for split, fingerprint in results.get("data_fingerprints", {}).items():
        code = for_terminal(fingerprint).replace("`", "'")
        lines.append(f"Fingerprint of {for_markdown(split)}: `{code}`.")
    return " ".join(lines)
