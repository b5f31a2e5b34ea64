"""
Write a recipe for a corpus: with its labels or scores, its modalities, and the widths of its vectors if it holds any.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import InputError
from ..base.files import write_text
from ..base.modalities import MODALITIES
from ..base.yaml_files import read_yaml
from ..corpora.dialogues import load_dialogues
from ..corpora.schema import UNLABELLED
from ..encoders.utterances import Utterances
from ..vectors.corpus_labels import corpus_labels
from ..vectors.dialogue_vectors import SPLITS
from ..vectors.named_columns import check_speech_columns
from ..vectors.score_columns import score_columns
from ..vectors.store import holds_vectors, read_corpus
from .corpus_settings import CorpusSettings
from .recipe import Recipe
from .recipe_fields import nearest
from .recipe_files import find_recipe

logger = logging.getLogger(__name__)

# The recipes that sizes and rates are taken from; the second one for a corpus with video, which MiSTER-E cannot read.
BASES = ("own-small", "own-video")
MULTILINGUAL = {
    "speech": "openai/whisper-tiny",
    "text": "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
}
_LETTERS = 5000  # of the transcripts that tell the script


def init_recipe(
    corpus: str | Path,
    out: str | Path | None = None,
    targets: Sequence[str] | None = None,
    speech_columns: Sequence[str] | None = None,
) -> tuple[Path, Recipe]:
    r"""
    Write a recipe that trains on a corpus.

    Args:
        corpus: a corpus folder, of dialogues or of vectors, or the id of a Hub dataset.
        out: the YAML file to write; by default the name of the corpus with `.yaml`, in the current folder.
        targets: columns of scores to predict in place of the corpus's classes.
        speech_columns: names of the columns of the corpus's speech vectors to keep; by default all.

    Returns:
        the file and the recipe.

    Raises:
        FileExistsError: if the file exists.
        FileNotFoundError: if the corpus does not exist.
        InputError: if it lacks a split, or a split has no labelled turn with text, audio or video.
    """
    path = Path(out or f"{Path(corpus).expanduser().absolute().name}.yaml")
    if path.exists():
        raise FileExistsError(f"'{path}' exists and is not overwritten; choose another --out, or remove it")
    _check_is_corpus(corpus)
    settings = _settings(corpus, list(targets or ()))
    if speech_columns is not None:
        check_speech_columns(speech_columns)
        settings.speech_columns = list(speech_columns)
    widths = _widths(corpus, settings)
    sections = read_yaml(find_recipe(BASES["visual" in widths]))
    for name, modality in MODALITIES.items():
        width = widths.get(name)
        if width is not None or name not in widths:
            sections.pop(modality.encoder, None)  # its vectors are there, or there is nothing to make them from
        if width is not None:
            sections["model"][modality.width] = width
        elif name not in widths:
            sections["model"].pop(modality.width, None)
    if settings.targets:
        for section in sections.values():
            section.pop("focal_gamma", None)  # of the loss of classes
    stated = {"targets": settings.targets} if settings.targets else {"labels": settings.labels}
    if settings.speech_columns is not None:
        stated["speech_columns"] = settings.speech_columns
    sections["corpus"] = {"path": str(corpus), **stated}
    recipe = Recipe(sections, str(path))
    recipe.leave_out([name for name in MODALITIES if name not in widths])
    if None in widths.values() and (script := foreign_script(corpus)):
        logger.warning("%s", _advice_on_language(recipe, script))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _header(path, widths) + yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))
    return path, recipe


def _check_is_corpus(corpus: str | Path):
    folder = Path(corpus).expanduser()
    if folder.is_file() or (folder.is_dir() and not any(folder.glob("*.parquet"))):
        name = folder.absolute().stem
        raise InputError(
            f"'{corpus}' is not a corpus folder, which holds train.parquet, validation.parquet and test.parquet. Make "
            f"one of recordings or tables first: mister-e corpus folder --data_dir {corpus} --out corpora/{name}, "
            f"then: mister-e init corpora/{name}"
        )


def _settings(corpus: str | Path, targets: list[str]) -> CorpusSettings:
    """What is to be predicted: these columns of scores, or the classes that the corpus names."""
    columns = score_columns(corpus)
    for name in targets:
        if name not in columns:
            raise InputError(f"'{corpus}' has no column '{name}' with a number per turn{nearest(name, columns)}")
    if targets:
        return CorpusSettings(targets=targets)
    hint = f". To predict scores, name their columns with --targets: {', '.join(columns)}" if columns else ""
    try:
        labels = corpus_labels(corpus)
    except InputError as error:
        own = f"(mister-e train own-small --corpus {corpus} --corpus.labels NAME NAME ...)"
        raise InputError(f"{error}{hint}".replace("(--corpus.labels)", own)) from error
    if labels == UNLABELLED:
        raise InputError(f"'{corpus}' has no turn with a label{hint}")
    return CorpusSettings(labels=labels)


def _widths(corpus: str | Path, settings: CorpusSettings) -> dict[str, int | None]:
    """
    By modality that labelled turns of every split have, the width of its vectors; None if encoders must make them.
    """
    if holds_vectors(corpus):
        splits = read_corpus(corpus, **settings.columns())
        for split, data in splits.items():
            _check_labelled(split, settings.labelled_turns(data))
        train = splits["train"]
        return {name: train.vectors[name].width for name in train.vectors if train.present[name].any()}
    if settings.speech_columns is not None:
        raise InputError(f"speech_columns pick columns of speech vectors by name, and '{corpus}' holds none")
    dialogues = load_dialogues(corpus)
    if missing := [split for split in SPLITS if split not in dialogues]:
        raise InputError(
            f"'{corpus}' has no split {', '.join(missing)}, which training needs. With ten dialogues or more `mister-e"
            " corpus folder` makes all three (--split_shares); or give the table a column `split`"
        )
    turns = {
        name: [
            len(Utterances(dialogues[split], name, labelled_only=True, **settings.turn_labels())) for split in SPLITS
        ]
        for name, modality in MODALITIES.items()
        if modality.content in dialogues["train"].features["utterances"].feature
    }
    for number, split in enumerate(SPLITS):
        _check_labelled(split, max(counts[number] for counts in turns.values()))
    return {
        modality: None for modality, counts in turns.items() if all(counts[:2])
    }  # what its encoder is trained and chosen on


def foreign_script(corpus: str | Path) -> str | None:
    """The script of most letters of the transcripts of train, such as "CJK", if it is not Latin; None otherwise."""
    counts: Counter[str] = Counter()
    for table in load_dialogues(corpus)["train"].with_format("arrow").select_columns("utterances").iter(batch_size=50):
        for chunk in table["utterances"].chunks:
            for text in chunk.flatten().field("text").drop_null().to_pylist():
                counts.update(unicodedata.name(each, "").split(" ")[0] for each in text if each.isalpha())
        if counts.total() > _LETTERS:
            break
    return None if 2 * counts["LATIN"] >= counts.total() else counts.most_common(1)[0][0]


def _advice_on_language(recipe: Recipe, script: str) -> str:
    named = {modality.name: modality.encoder for modality in MODALITIES.values() if modality.name in MULTILINGUAL}
    fields = [
        f"{section}.backbone {MULTILINGUAL[name]}" for name, section in named.items() if recipe.sections.get(section)
    ]
    return (
        f"the transcripts are mostly written in {script.capitalize() if script != 'CJK' else script} characters, and "
        f"the encoders are English; change in the recipe, for example: {', '.join(fields)}"
    )


def _check_labelled(split: str, turns: int):
    if not turns:
        raise InputError(
            f"{split}: no turn with a label has text, audio or video, so there is nothing to learn from or to score"
        )


def _header(path: Path, widths: dict[str, int | None]) -> str:
    encoders = [modality for modality, width in widths.items() if width is None]
    lines = [f"mister-e train {path}"]
    if encoders:
        lines += [
            f"The encoders are small and English; for other languages take, for example, {MULTILINGUAL['speech']} and",
            f"{MULTILINGUAL['text']}.",
        ]
    if "visual" in widths:
        lines.append("The model is MulT, since MiSTER-E does not read video.")
    return "".join(f"# {line}\n" for line in lines)


def described(recipe: Recipe) -> dict[str, Any]:
    """Summary of a written recipe: its labels or targets, and by modality the encoder or the width of the vectors."""
    config = recipe.model_config()
    found: dict[str, Any] = {"targets" if recipe.regression else "labels": recipe.corpus.names}
    for modality in config.modalities:
        backbone = recipe.sections.get(MODALITIES[modality].encoder, {}).get("backbone")
        found[modality] = backbone or f"vectors of width {config.widths[modality]}"
    return found
