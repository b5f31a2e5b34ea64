"""Cards of pre-training models: what was hidden, in which dialogues, and that no label was read."""

from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..base.plain_text import for_markdown, for_terminal
from .model_card import REPOSITORY, listed, picked_columns, training_facts

_METRICS = {
    "reconstruction_loss": "Reconstruction loss",
    "contrastive_loss": "InfoNCE",
    "contrastive_chance": "InfoNCE of a model that finds nothing",
}


def pretraining_card(model: Any, recipe: dict, results: dict) -> ModelCard:
    r"""
    Make the card of a pre-training model.

    Args:
        model: a [`~mister_e_hf.models.pretraining.PretrainingModel`].
        recipe: content of `training.yaml`.
        results: content of `results.json`.
    """
    corpora = results.get("corpora", [])
    licenses = sorted({corpus["license"] for corpus in corpora if corpus.get("license")})
    data = ModelCardData(
        library_name="transformers",
        license=for_terminal(licenses[0]) if len(licenses) == 1 else None,
        tags=["emotion-recognition-in-conversation", "pre-training", *model.tags],
        model_name=for_terminal(f"{model.title} pre-training"),
    )
    modalities = listed(model.config.modalities)
    sections = {
        f"# {model.title}, pre-training": f"Weights to fine-tune from, without heads: this model predicts nothing. "
        f"It was trained without labels on vectors of {modalities} of the turns of dialogues, to reconstruct hidden "
        f"vectors and to match the modalities of a turn. The method is {model.method}; the model has "
        f"{model.num_parameters():,} parameters.{picked_columns(model.config)}",
        "## Use": f"```bash\nmister-e train RECIPE --pretrained {REPOSITORY}\n```\n\nThe model of the recipe must "
        "have the same sizes and read vectors of the same encoders. In Python:\n\n"
        "```python\nfrom transformers import AutoModel\n\n"
        "# or import mister_e_hf first, and leave out trust_remote_code\n"
        f'model = AutoModel.from_pretrained("{REPOSITORY}", id2label={{0: "anger", 1: "joy"}}, '
        "trust_remote_code=True)\n# its heads are new: train it\n```",
        "## Data": _data(corpora, results),
        "## Results": _results(results),
        "## Training": f"{_masks(recipe)} {training_facts(recipe, results)}",
        "## Limits and fair use": "What the vectors do not hold, such as who speaks or how a face moves, is not "
        "learned. Models that begin from these weights are bound to the terms of the corpora above, and must not be "
        "used to judge people, nor in hiring, policing, insurance or care: the EU AI Act forbids emotion recognition "
        "at work and in school.",
    }
    if model.citation:
        sections["## Citation"] = f"```bibtex\n{model.citation}\n```"
    text = "\n\n".join(f"{head}\n\n{body}" for head, body in sections.items())
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _data(corpora: list[dict[str, Any]], results: dict) -> str:
    lines = [
        f"- {for_markdown(corpus['name'])}"
        + (f" (licence: {for_markdown(corpus['license'])})" if corpus.get("license") else "")
        for corpus in corpora
    ]
    counts = [
        f"{role.capitalize()} ({', '.join(each['splits'])}): {each['turns']:,} turns, {each['dialogues']:,} dialogues."
        for role, each in results.get("data", {}).items()
    ]
    trained = results.get("data", {}).get("training", {}).get("splits", [])
    if "test" in trained:
        counts.append(
            "**Test dialogues were among those it was trained on**: scores of fine-tuned models on them are not those "
            "of unknown dialogues."
        )
    return "\n".join([*lines, "", f"No label was read. {' '.join(counts)}"]) if lines else "No data was recorded."


def _results(results: dict) -> str:
    scores = results.get("validation")
    if not scores:
        return "None: there were no dialogues of validation, so the last epoch was kept."
    whole, suffix = "reconstruction_loss", "_reconstruction_loss"
    parts = {name: f"{_METRICS[whole]} of {name.removesuffix(suffix)}" for name in scores if name.endswith(suffix)}
    titles = {whole: _METRICS[whole], **parts, **_METRICS}
    rows = [f"| {title} | {scores[name]:.3f} |" for name, title in titles.items() if name in scores]
    return (
        "On the dialogues of validation, at the epoch that they chose. The reconstruction loss is a squared error in "
        "units of each dimension's variance, so that 1 is that of the mean.\n\n"
        + "\n".join(["| | |", "|---|---|", *rows])
    )


def _masks(recipe: dict) -> str:
    section = recipe.get("pretraining", {})
    named = ("mask_rate", "mask_span", "reconstruction_weight", "contrastive_weight", "negatives")
    said = ", ".join(f"`{name}` {section[name]}" for name in named if name in section)
    return f"Masks were drawn from seed, epoch and dialogue ({said})." if said else ""
