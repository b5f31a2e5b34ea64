"""The part of a report that says how its scores were computed, and from what."""

from collections.abc import Iterator

from ...base.modalities import MODALITIES
from ...base.score_names import score_title
from ...evaluation.significance import DRAWS
from ...training.pretrained_start import OWN
from ..measures import ScoreMeasures
from ..study import LABEL_LEAKAGE, Study
from .sections import STAGE_TITLES


def method(study: Study) -> list[str]:
    """How the scores were computed, one string per paragraph."""
    settings, paragraphs = study.settings, []
    seeds = ", ".join(map(str, settings["seeds"]))
    if "development" in study.stages:
        chosen = _any_result(study, "development", "best_epoch")
        on_folds = (
            f"train and validation together are split into {settings['folds']} folds by "
            f"{settings.get('fold_by', 'dialogue')}. Each seed ({seeds}) is trained once per fold without it and then "
            "predicts it, so that every turn is predicted once by a model that was not trained on its dialogue; a "
            "seed's score is that of all these predictions together. If settings were chosen on these folds"
        )
        on_validation = (
            f"each seed ({seeds}) is trained on train and predicts validation. If settings were chosen on it"
        )
        paragraphs.append(
            f"Development: {on_validation if settings['folds'] == 1 else on_folds}, the "
            "scores are slightly optimistic, and p-values on them are descriptive only. "
            + (f"{LABEL_LEAKAGE} " if settings.get("vectors_knew_labels") else "")
            + (
                "The epoch is chosen within each run."
                if chosen
                else "The last epoch is used: none is chosen on the turns that are scored."
            )
        )
    if "final" in study.stages:
        chosen = _any_result(study, "final", "best_epoch")
        best = f"The epoch with the best {score_title(study.measures.main)} on validation is used. "
        epoch = best if chosen else "The last epoch is used. "
        frozen = (
            f"Every variant was frozen on {study.frozen['date']}, before a run of the study scored test."
            if study.frozen
            else ""
        )
        paragraphs.append(f"Test: each seed ({seeds}) is trained on train and predicts test once. {epoch}{frozen}")
    elif study.frozen:
        paragraphs.append(f"Every variant was frozen on {study.frozen['date']}; no run on test is finished.")
    else:
        paragraphs.append("Test has not been scored.")
    paragraphs += _pretraining(study)
    paragraphs += [
        "Each system's score is the mean over its seeds, ± the sample standard deviation. Intervals are 95 % "
        f"percentile intervals of the bootstrap ({DRAWS:,} draws): a draw takes dialogues with replacement and, "
        "independently, seeds with replacement, the same ones for every system, so that differences are paired (Efron "
        "and Tibshirani 1993). With few seeds their spread is underestimated, so intervals over them are rather too "
        "narrow.",
        "With k the smaller of the numbers of draws with a difference ≤ 0 and ≥ 0 out of R, p = min(1, 2 (1 + k) / "
        "(1 + R)), two-sided. Holm's correction (1979) is over the ablations and over the baselines separately. The "
        f"tests are of {score_title(study.measures.main)}. Two systems are compared over the seeds that both have.",
    ]
    if isinstance(study.measures, ScoreMeasures):
        paragraphs.append(
            "MAE is the mean absolute error in the unit of the target, of which less is better; Corr is Pearson's "
            "correlation; CCC is the concordance correlation of Lin (1989), which also falls with a wrong mean or "
            "spread. A turn without a score of a target is left out of that target. With several targets a score is "
            "the mean of theirs."
        )
    return paragraphs


def _pretraining(study: Study) -> Iterator[str]:
    """Yield what the systems that begin from pre-training have seen."""
    by_source: dict[str, list[str]] = {}
    asked = dict.fromkeys(name for stage in study.stages.values() for name in stage.asked)
    for name in asked:
        source = (study.settings["variants"][name]["recipe"].get("training") or {}).get("pretrained")
        if source is not None:
            by_source.setdefault(source, []).append(study.title(name))
    for source, names in by_source.items():
        if source == OWN:
            yield (
                f"Pre-trained first within each run: {', '.join(names)}. A run reads the vectors of its own training "
                "dialogues, and those of train of the corpora in `pretraining.corpora`, without labels; the dialogues "
                "that are scored are not seen."
            )
        else:
            yield (
                f"Begun from the pre-training model '{source}': {', '.join(names)}. It was trained without labels, "
                "but may have seen the vectors of held-out dialogues: the pre-training of `training.pretrained: self` "
                "has not."
            )


def provenance(study: Study) -> dict[str, str]:
    """Recipe, commits, versions and data from which the scores were computed, by heading."""
    settings, frozen = study.settings, study.frozen or {}
    found = {"recipe": settings.get("recipe_name") or "not named"}
    if frozen:
        found["frozen"] = f"{frozen.get('date', 'on an unknown day')}, commit {frozen.get('git_commit') or 'unknown'}"
    for stage in study.stages.values():
        runs = [run for system in stage.systems.values() for runs in system.results for run in runs]
        for heading, values in {
            "commit": {run.get("git_commit") or "unknown" for run in runs},
            "versions": {
                ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items()) for run in runs
            },
        }.items():
            found[f"{heading} of {STAGE_TITLES[stage.name].lower()} runs"] = (
                "; ".join(sorted(filter(None, values))) or "unknown"
            )
    for split, fingerprint in settings.get("data_fingerprints", {}).items():
        found[f"fingerprint of {split}"] = fingerprint
    described = settings.get("vectors") or {}
    there = settings.get("modalities") or ("speech", "text")  # studies of older versions had these two
    for modality in MODALITIES:
        if modality in there or modality in described:
            found[f"{modality} vectors"] = described.get(modality) or "source not recorded"
    return found


def _any_result(study: Study, stage: str, field: str) -> bool:
    systems = study.stages[stage].systems.values()
    return any(run.get(field) is not None for system in systems for runs in system.results for run in runs)
