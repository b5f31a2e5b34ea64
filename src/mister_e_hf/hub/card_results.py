"""The results of a run in its model card: tables, and the metadata that leaderboards read."""

from huggingface_hub import EvalResult

from ..base.head_names import head_titles
from ..base.part_weights import PART_WEIGHTS
from ..base.plain_text import for_markdown, for_terminal
from ..base.prompt_counts import prompt_sentence
from ..base.score_names import SCORE_NAMES, capitalized
from ..corpora.licences import CUSTOM, CorpusOfRun

# The scores in results.json that a card shows.
_CLASS_METRICS = ("weighted_f1", "macro_f1", "accuracy")
_SCORE_METRICS = ("mae", "corr", "ccc", "r2")
_BINNED_METRICS = ("acc7", "acc5", "acc3", "acc2_has0", "f1_has0", "acc2_non0", "f1_non0", "acc2", "f1", "acc2_weak")
_TYPES = {"corr": "pearsonr"}  # where leaderboards call them otherwise


def results_metadata(task: str, corpus: CorpusOfRun, results: dict) -> list[EvalResult] | None:
    """The test scores for the metadata of a card; None without any."""
    test = results.get("test", {}).get("mixture")
    if not test:
        return None
    metrics = (*_SCORE_METRICS, *_BINNED_METRICS) if "by_target" in test else _CLASS_METRICS
    return [
        EvalResult(
            task_type=task,
            task_name="emotion recognition in conversations",
            # Leaderboards must not mistake a part of a published test split, or other data, for the whole split.
            dataset_type=corpus.test_set.lower() if corpus.is_published else CUSTOM,
            dataset_name=for_terminal(corpus.test_set),
            dataset_split="test",
            metric_type=_TYPES.get(name, name),
            metric_name=capitalized(SCORE_NAMES[name].full),
            metric_value=test[name],
            metric_config=f"seed {results['seed']}",
        )
        for name in metrics
        if test.get(name) is not None
    ]


def results_section(results: dict) -> str:
    """The test scores in tables."""
    if not results.get("test"):
        return "None recorded."
    mixture = results["test"]["mixture"]
    intervals = " In brackets 95 % intervals over resampled dialogues." if "intervals" in mixture else ""
    lines = [
        f"Test split, computed once;{_epoch(results)} one seed ({for_markdown(results['seed'])}).{intervals}",
        "",
    ]
    lines += _score_tables(results["test"]) if "by_target" in mixture else _class_tables(results["test"])
    for sentence in results.get("corpus", {}).get("shortcomings", ()):
        lines += ["", for_markdown(sentence[:1].upper() + sentence[1:])]
    for kind in PART_WEIGHTS:
        if weights := results.get(kind.field):
            listed = ", ".join(f"{for_markdown(name)} {weight:.2f}" for name, weight in weights.items())
            lines += ["", f"Mean {kind.title}s on test: {listed}."]
    if sentence := prompt_sentence(results.get("prompts", {}).get("test", {})):
        lines += ["", f"On test {sentence}."]
    if "calibration" in results:
        lines += ["", _calibration(results["calibration"], mixture)]
    return "\n".join(lines)


def _class_tables(blocks: dict) -> list[str]:
    """F1 of each head, then of each class."""
    lines = ["| test | weighted F1 | macro F1 | utterances |", "|---|---|---|---|"]
    titles = head_titles(blocks)
    for name, block in blocks.items():
        cells = [_with_interval(block, metric) for metric in ("weighted_f1", "macro_f1")]
        lines.append(f"| {for_markdown(titles[name])} | {cells[0]} | {cells[1]} | {block['num_utterances']} |")
    return lines + (_classes(blocks["mixture"], titles["mixture"]) if "f1_per_class" in blocks["mixture"] else [])


def _score_tables(blocks: dict) -> list[str]:
    """Errors and correlations of each head, accuracies where the corpus has them, and errors of each target."""
    mixture, targets = blocks["mixture"], blocks["mixture"]["by_target"]
    found = [name for name in _SCORE_METRICS if name in mixture]
    titled = {head_titles(blocks)[name]: block for name, block in blocks.items()}
    lines = _table("test", found, titled, 1, 3)
    if binned := [name for name in _BINNED_METRICS if name in mixture]:
        lines += ["", "In per cent:", "", *_table("test", binned, titled, 100, 2)]
    if len(targets) > 1:
        intervals = mixture.get("intervals", {}).get("by_target", {})
        rows = {name: {**block, "intervals": intervals.get(name, {})} for name, block in targets.items()}
        lines += ["", *_table("target", found, rows, 1, 3)]
    for sentence in mixture.get("undefined", ()):
        lines += ["", for_markdown(sentence[:1].upper() + sentence[1:]) + "."]
    return lines


def _table(rows_are: str, metrics: list[str], blocks: dict, scale: float, digits: int) -> list[str]:
    titles = [capitalized(SCORE_NAMES[name].full) for name in metrics]
    lines = [f"| {rows_are} | {' | '.join(titles)} | utterances |", "|---" * (len(metrics) + 2) + "|"]
    for name, block in blocks.items():
        cells = [_with_interval(block, metric, scale, digits) for metric in metrics]
        lines.append(f"| {for_markdown(name)} | {' | '.join(cells)} | {block['num_utterances']} |")
    return lines


def _epoch(results: dict) -> str:
    if "best_epoch" not in results:
        return ""
    epochs = f"{results['epochs']:g}" if results.get("epochs") else "several"
    if results["best_epoch"] is None:
        return " its only epoch;" if epochs == "1" else f" the last of {epochs} epochs;"
    return f" epoch {results['best_epoch']:g} of {epochs}, chosen on validation;"


def _classes(mixture: dict, title: str) -> list[str]:
    """F1 of each class, a dash if no turn has it, and its number of turns."""
    names = list(mixture["f1_per_class"])
    turns = [sum(row) for row in mixture["confusion"]] if "confusion" in mixture else [None] * len(names)
    lines = ["", f"| class | F1 of the {title} | turns |", "|---|---|---|"]
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


def _with_interval(block: dict, metric: str, scale: float = 100, digits: int = 2) -> str:
    if block[metric] is None:
        return "–"
    low_high = block.get("intervals", {}).get(metric)
    shown = f"{scale * block[metric]:.{digits}f}"
    if not low_high:
        return shown
    return f"{shown} ({scale * low_high[0]:.{digits}f} to {scale * low_high[1]:.{digits}f})"
