"""Runs of a model that writes prompts: its dry run, transcripts, counts, answers, card and what the doctor says."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mister_e_hf import Recipe, cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.demo import LABELS, demo_corpus
from mister_e_hf.inference.doctor import examine
from mister_e_hf.training.dry_run import dry_run, format_costs
from mister_e_hf.training.evaluate import evaluate_checkpoint
from mister_e_hf.training.preflight import check_conversation_model, check_run
from mister_e_hf.training.stages import train
from support.tiny_language_models import tiny_language_model

SIZES = {"train": 4, "validation": 3, "test": 3}


def write_corpus(folder, language: str | None = "en", change=lambda texts: texts):
    folder.mkdir()
    for split, table in demo_corpus(sizes=SIZES, transcripts=language).items():
        if language is not None:
            at = table.column_names.index("texts")
            table = table.set_column(at, "texts", pa.array(change(table["texts"].to_pylist()), pa.list_(pa.string())))
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def recipe_of(corpus, **model) -> Recipe:
    widths = {"speech_embedding_dim": 24, "text_embedding_dim": 32, "hidden_size": 16}
    language_model = {"language_model": tiny_language_model("llama"), "lora": {"r": 2}, "save_language_model": True}
    return Recipe(
        {
            "model": {"model_type": "egmf", **widths, **language_model, "context_turns": 6, "max_length": 280} | model,
            "corpus": {"path": str(corpus), "labels": LABELS},
            "training": {"use_cpu": True, "num_train_epochs": 1, "per_device_train_batch_size": 2},
        }
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(recipe_of(corpus), folder)
    return folder


def test_what_prompts_had_no_room_for_is_in_the_log_the_results_and_the_card(run, corpus):
    results = json.loads((run / "results.json").read_text())
    for split in ("validation", "test"):
        counts = results["prompts"][split]
        assert counts["prompts"] == results["corpus"]["labelled_turns"][split] and counts["earlier_turns"] > 0
    (epoch,) = results["history"]
    assert epoch["prompts"] == results["corpus"]["labelled_turns"]["train"] and epoch["earlier_turns"] > 0
    assert epoch["shortened_turns"] == 0 == results["prompts"]["test"]["shortened_turns"]
    card = (run / "README.md").read_text()
    test = results["prompts"]["test"]
    assert f"On test {test['prompts']} prompts had no room (max_length) for {test['earlier_turns']} earlier t" in card
    assert "## Prompt" in card and 'Current turn: "Calm down."\n<4 pseudo tokens>The emotion is\n```' in card
    assert "with LoRA, whose weights are part of this checkpoint and whose own licence applies" in card


def test_evaluate_scores_the_answers_that_it_writes(run, tmp_path, capsys):
    found = evaluate_checkpoint(run, use_cpu=True, answers=True)
    results = json.loads((run / "results.json").read_text())
    answers = found["answers"]
    assert found["as_stored"] and found["prompts"] == results["prompts"]["test"]
    assert answers["answers"] == results["corpus"]["labelled_turns"]["test"]
    assert answers.get("num_utterances", 0) == answers["answers"] - answers["unparsed"]
    assert answers["coverage"] == 1 - answers["unparsed"] / answers["answers"]
    out = tmp_path / "scores.json"
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--use_cpu", "--answers", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{answers['unparsed']} of {answers['answers']} written answers could not be read" in printed
    assert "had no room (max_length) for" in printed and "\nmodel  " in printed  # not called a mixture
    assert json.loads(out.read_text())["answers"] == answers


def test_scores_of_half_precision_may_differ_from_the_stored_ones_and_this_is_said(corpus, tmp_path, caplog):
    train(recipe_of(corpus, language_model_dtype="bfloat16"), tmp_path / "run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    results["test"]["mixture"]["weighted_f1"] += 0.01
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    with caplog.at_level(logging.WARNING):
        assert not evaluate_checkpoint(tmp_path / "run", use_cpu=True)["as_stored"]
    assert "The model computes in bfloat16, whose rounding depends on how much is read at once" in caplog.text


def test_the_doctor_names_the_language_model(run, tmp_path):
    findings = [text for good, text in examine(run) if good]
    (said,) = [text for text in findings if text.startswith("language model of type llama: ")]
    assert "held by the checkpoint; licence not stated" in said and "MiB of memory in float32" in said


def test_a_dry_run_says_what_it_trains_and_shows_a_prompt(corpus, tmp_path):
    costs = dry_run(recipe_of(corpus), tmp_path / "run")
    shown = format_costs(costs)
    assert f"language model {tiny_language_model('llama')}: " in shown and "(float32), with LoRA of " in shown
    assert "prompts in English, of at most 280 tokens with the answer and 6 earlier turns" in shown
    said = pq.read_table(corpus / "train.parquet")["texts"].to_pylist()[0]
    assert f'Current turn: "{said[min(3, len(said) - 1)]}"\n<4 pseudo tokens>The emotion is' in shown
    keeps = recipe_of(corpus, lora=None)
    keeps.set("training.prefix_folder", str(tmp_path / "kept"))
    assert "(float32), frozen; " in format_costs(dry_run(keeps, tmp_path / "run")) and not any(tmp_path.iterdir())


def test_a_corpus_without_transcripts_is_refused_before_anything_is_trained(tmp_path):
    silent = write_corpus(tmp_path / "silent", None)
    blank = write_corpus(tmp_path / "blank", "en", lambda texts: [[" "] * len(turns) for turns in texts])
    for corpus in (silent, blank):
        for start in (dry_run, train, check_run):
            with pytest.raises(
                InputError,
                match=r"'egmf' reads transcripts, and no turn of train has one \(column `texts` .*, a string per turn",
            ):
                start(recipe_of(corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 60}, "max_length leaves 4. tokens for a prompt, fewer than the"),
        ({"label_words": {"joy": "\ufffd\ud800"}}, "The tokenizer cannot write the answer"),
        ({"lora": {"target_modules": "nothing"}}, "lora.target_modules 'nothing' matches no module"),
    ],
    ids=["max_length", "label_words", "lora"],
)
def test_what_the_language_model_cannot_read_or_write_is_said_before_anything_is_trained(
    changes, message, corpus, tmp_path
):
    recipe = recipe_of(corpus, **changes)
    with pytest.raises(InputError, match=f"section 'model': {message}"):
        check_conversation_model(recipe, tmp_path / "run")


def test_a_score_that_cannot_be_answered_is_named(corpus, tmp_path):
    folder, tables = tmp_path / "scored", {}
    folder.mkdir()
    for split in SIZES:
        table = pq.read_table(corpus / f"{split}.parquet")
        scores = [[0.5] * len(turns) for turns in table["texts"].to_pylist()]
        scores[1][2] = 4.2 if split == "train" else 9.0  # others may be scored: they are errors of the model
        tables[split] = table.append_column("valence", pa.array(scores))
        pq.write_table(tables[split], folder / f"{split}.parquet")
    recipe = recipe_of(folder)
    recipe.sections["corpus"] = {"path": str(folder), "targets": ["valence"]}
    count = sum(map(len, tables["train"]["texts"].to_pylist()))
    expected = (
        f"train: turn 3 of dialogue '{tables['train']['dialogue_id'][1]}' has the score 4.2 of 'valence', outside of "
        rf"-3.05 to 3.05, which the model can answer \(1 of {count} scores are\); set score_range"
    )
    for start in (dry_run, train):
        with pytest.raises(InputError, match=expected):
            start(recipe, tmp_path / "run")
    data = recipe.read_corpus()["train"]
    trainer = recipe.trainer_class(
        model=recipe.model(),
        args=recipe.training_arguments(tmp_path / "own", 0),
        train_dataset=[*data],
        eval_dataset=data,
    )
    with pytest.raises(InputError, match="train_dataset: turn 3 of dialogue 1 has the score 4.2 of 'valence'"):
        trainer.train()
    recipe.set("model.score_range", [-5.0, 5.0])
    results = train(recipe, tmp_path / "run")
    assert results["test"]["mixture"]["mae"]["mean"] > 0


def test_a_corpus_of_vectors_is_read_once(corpus, tmp_path, monkeypatch):
    read, count = Recipe.read_corpus, []
    monkeypatch.setattr(Recipe, "read_corpus", lambda recipe: count.append(1) or read(recipe))
    dry_run(recipe_of(corpus), tmp_path / "run")
    assert len(count) == 1
    train(recipe_of(corpus).baseline("logistic_regression"), tmp_path / "run")
    assert len(count) == 2


def test_turns_without_words_are_counted_and_another_language_is_said(tmp_path, caplog):
    halved = write_corpus(
        tmp_path / "halved",
        "zh",
        lambda texts: [[None, *turns[1:]] if row else None for row, turns in enumerate(texts)],
    )
    with caplog.at_level(logging.WARNING):
        check_run(recipe_of(halved), tmp_path / "run")
    rows = pq.read_table(halved / "train.parquet")["utterance_ids"].to_pylist()
    lacking, turns = len(rows[0]) + len(rows) - 1, sum(map(len, rows))
    assert f"train: {lacking} of {turns} turns have no transcript, which the model reads" in caplog.text
    assert "train: 100 % of the letters of the transcripts are Chinese" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check_run(recipe_of(halved, language="zh"), tmp_path / "run")
    assert "Chinese" not in caplog.text


def test_answers_are_asked_of_models_that_write_them(corpus, tmp_path):
    train(recipe_of(corpus).baseline("logistic_regression"), tmp_path / "run")
    with pytest.raises(InputError, match="answers=True is for a model with a language model, such as EGMF"):
        evaluate_checkpoint(tmp_path / "run", use_cpu=True, answers=True)


def test_a_base_model_out_of_reach_is_one_line(corpus, tmp_path, capsys):
    train(recipe_of(corpus, save_language_model=False, lora=None), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text()) | {"language_model": str(tmp_path / "gone")}
    path.write_text(json.dumps(config))
    capsys.readouterr()
    for command in (["evaluate"], ["doctor"]):
        assert cli.main([*command, str(tmp_path / "run")]) != 0
        printed = capsys.readouterr()
        (line,) = [each for each in (printed.out + printed.err).splitlines() if "gone" in each]
        assert "is trained on the language model" in line and "Restore it, or pass language_model=" in line
    assert yaml.safe_load((tmp_path / "run" / "training.yaml").read_text())["model"]["lora"] is None
