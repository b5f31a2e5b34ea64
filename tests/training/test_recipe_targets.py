"""A recipe of scores: its targets, what is refused beside them, and the widths of a third modality."""

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mister_e_hf import DialogueCollator, MisterEConfig, Recipe, cli
from mister_e_hf.base.errors import InputError
from mister_e_hf.models.registry import registered
from mister_e_hf.training.preflight import check_run
from support.small_recipes import write
from support.small_scores import SECTIONS, VISUAL_DIM, score_recipe, visual_recipe, write_score_corpus


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    return write_score_corpus(tmp_path_factory.mktemp("scores"))


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (["valence"], {"valence": "valence"}),
        (["valence", "activation"], {"valence": "valence", "activation": "activation"}),
        ({"mood": "valence"}, {"mood": "valence"}),
    ],
)
def test_targets_make_the_task_a_regression(scores, given, columns):
    made = Recipe(SECTIONS | {"corpus": {"path": str(scores), "targets": given}})
    config = made.model_config()
    assert (config.task, config.problem_type) == ("regression", "regression")
    assert config.id2label == dict(enumerate(columns)) and config.num_labels == len(columns)
    assert made.corpus.target_columns == columns and made.label2id == config.label2id and made.regression
    data = made.read_corpus()["train"]
    assert data.task == "regression" and data.labels.shape == (data.num_turns, len(columns))
    assert Recipe(made.to_dict()).model_config().to_dict() == config.to_dict()
    assert "labels" not in made.to_dict()["corpus"]  # the corpus's classes are not added


def test_targets_on_the_command_line(scores):
    one = score_recipe(scores, "--targets", "activation")
    assert one.corpus.target_columns == {"activation": "activation"}
    two = score_recipe(scores, "--targets", "valence", "activation", "--score_bins", "null")
    assert list(two.corpus.target_columns) == ["valence", "activation"]
    named = score_recipe(scores, "--targets", "{mood: valence}")
    assert named.corpus.target_columns == {"mood": "valence"}
    back = score_recipe(scores, "--targets", "null", "--score_bins", "null")
    assert not back.regression and back.model_config().task == "classification" and len(back.corpus.labels) == 6


@pytest.mark.parametrize("name", [each.name for each in registered()])
def test_defaults_of_the_training_fit_the_task(scores, tmp_path, name):
    made = score_recipe(scores).baseline(name)
    arguments = made.training_arguments(tmp_path, 0)
    assert arguments.metric_for_best_model == "mae" and arguments.greater_is_better is False
    assert made.value("training.metric_for_best_model") == "mae"
    if hasattr(arguments, "contrastive_weight"):
        assert arguments.contrastive_weight == arguments.consistency_weight == 0
        assert made.value("training.contrastive_weight") == 0
    chosen = made.changed({"training.metric_for_best_model": "ccc"}).training_arguments(tmp_path, 0)
    assert chosen.metric_for_best_model == "ccc" and chosen.greater_is_better
    encoder = Recipe(made.to_dict() | {"text_encoder": {"backbone": "org/text", "training": {"use_cpu": True}}})
    settings = encoder.encoder("text")
    assert settings.training_arguments(tmp_path, 0).metric_for_best_model == "mae"
    assert settings.config({"valence": 0}).problem_type == "regression"


def test_a_baseline_keeps_the_loss_of_the_scores(scores):
    made = score_recipe(scores, "--regression_loss", "huber", "--huber_delta", "0.5")
    for each in registered():
        config = made.baseline(each.name).model_config()
        assert (config.regression_loss, config.huber_delta) == ("huber", 0.5)


MISTAKES = {
    "labels beside targets": (
        ["--labels", "a", "b"],
        "corpus.targets (valence) are scores to predict, but corpus.labels",
    ),
    "a score column beside targets": (["--score_column", "activation"], "corpus.score_column is for classes"),
    "a label column beside targets": (["--label_column", "emotion"], "corpus.label_column is for classes"),
    "none": (["--targets", "[]"], "corpus.targets must name one column or more, none of them empty; got []"),
    "an empty name": (["--targets", "valence", '""'], "none of them empty"),
    "twice": (["--targets", "valence", "valence"], "corpus.targets must name each column once"),
    "one column under two names": (["--targets", "{a: valence, b: valence}"], "must name each column once"),
    "bins of two targets": (["--targets", "valence", "activation"], "corpus.score_bins are for one target"),
    "other bins": (["--score_bins", "mosei"], "'score_bins' must be one of 'mosi', 'sims'"),
    "bins of classes": (["--targets", "null"], "corpus.score_bins are bins of a score that is predicted"),
    "a misspelt column": (["--targets", "valense"], "no column 'valense'", "valence"),
    "a column of names": (["--targets", "labels"], "labels"),
    "a problem type": (["--model.problem_type", "regression"], "name columns of scores in corpus.targets"),
    "class weights": (["--class_weights", "{valence: 2.0}"], "class_weights"),
    "a contrastive term": (["--contrastive_weight", "0.5"], "section 'training'", "contrastive_weight"),
    "a consistency term": (["--consistency_weight", "0.5"], "section 'training'", "consistency_weight"),
    "a score of classes": (["--metric_for_best_model", "weighted_f1"], "metric_for_best_model must be one of mae"),
    "the worst epoch": (["--greater_is_better", "true"], "the worst epoch by 'mae' would be kept"),
    "video for MiSTER-E": (["--model.visual_embedding_dim", "6"], "visual_embedding_dim", "mult"),
}


@pytest.mark.parametrize(("words", "said"), [(words, said) for words, *said in MISTAKES.values()], ids=MISTAKES)
def test_mistakes_are_named(scores, tmp_path, words, said):
    with pytest.raises(ValueError) as error:
        made = score_recipe(scores, *words)
        check_run(made, tmp_path / "run")
        made.read_corpus()
    for part in said:
        assert part in str(error.value)


def test_a_target_without_scores_names_the_split(scores, tmp_path):
    for path in scores.iterdir():
        table = pq.read_table(path)
        if path.stem == "validation":
            empty = [[None] * len(ids) for ids in table["utterance_ids"].to_pylist()]
            index = table.column_names.index("activation")
            table = table.set_column(index, "activation", [empty])
        pq.write_table(table, tmp_path / path.name)
    with pytest.raises(ValueError, match="validation: no turn has a score in 'activation'"):
        visual_recipe(tmp_path).read_corpus()


# A third modality


def test_the_width_of_video_is_that_of_the_corpus(scores):
    made = visual_recipe(scores)
    config = made.model_config()
    assert config.visual_embedding_dim == VISUAL_DIM and config.modalities == ["speech", "text", "visual"]
    assert made.to_dict()["model"]["visual_embedding_dim"] == VISUAL_DIM  # as a run records it
    for name in ("bc_lstm", "logistic_regression"):
        sections = made.to_dict() | {"baselines": {name: {"model": {"modalities": ["text", "visual"]}}}}
        assert Recipe(sections).baseline(name).model_config().widths["visual"] == VISUAL_DIM
    stated = visual_recipe(scores, "--visual_embedding_dim", "9")
    with pytest.raises(ValueError, match="visual_features of dialogue 'train_000' have width 6"):
        stated.read_corpus()


def test_the_width_of_video_is_that_of_its_encoder(tmp_path):
    sections = {
        "model": {"model_type": "erc_bc_lstm", "modalities": ["visual"]},
        "corpus": {"targets": ["valence"]},
        "visual_encoder": {"backbone": "org/picture", "embedding_dim": 12, "num_frames": 4},
    }
    made = Recipe.load(write(tmp_path, yaml.safe_dump(sections)))
    assert made.model_config().visual_embedding_dim == 12
    assert made.encoder("visual").reading == {"num_frames": 4}
    assert "visual_encoder" in made.fields() and "visual_encoder.training" in made.fields()


def test_modalities_that_a_corpus_lacks_are_left_out(scores, tmp_path, capsys):
    (corpus := tmp_path / "corpus").mkdir()
    for path in scores.iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["visual_features", "has_video"]), corpus / path.name)
    plan = check_run(visual_recipe(corpus), tmp_path / "run")
    assert plan.recipe.model_config().modalities == ["speech", "text"]
    assert "the corpus has no vectors of visual: model.modalities is speech text" in capsys.readouterr().err
    check_run(score_recipe(corpus), tmp_path / "run")
    assert "visual" not in capsys.readouterr().err  # MiSTER-E does not read it


def test_a_model_of_three_modalities_is_built(scores):
    made = visual_recipe(scores)
    data = made.read_corpus()["test"]
    with torch.no_grad():
        output = made.model().eval()(**DialogueCollator()([data[0], data[1]]))
    assert output.logits.shape[-1] == 2 and output.logits.isfinite().all() and output.loss.isfinite()


def test_init_of_vectors_takes_every_width_from_the_corpus(scores, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", str(scores), "--targets", "valence", "activation", "--out", "mine.yaml"]) == 0
    assert "targets valence, activation" in capsys.readouterr().out
    made = Recipe.load("mine.yaml", ["--use_cpu", "--disable_tqdm", "--num_train_epochs", "1"])
    assert made.model_type == "erc_mult" and "focal_gamma" not in made.sections["model"]
    assert made.model_config().widths == {"speech": 24, "text": 32, "visual": VISUAL_DIM}
    assert not [name for name in made.sections if "encoder" in name and made.sections[name]]
    assert made.read_corpus()["train"].task == "regression"


def test_init_without_classes_names_the_columns_of_scores(scores, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (corpus := tmp_path / "corpus").mkdir()
    for path in scores.iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["labels"]), corpus / path.name)
    assert cli.main(["init", str(corpus), "--out", "mine.yaml"]) == 2
    error = capsys.readouterr().err
    assert "no turn with a label" in error and "--targets: valence, activation" in error
    assert not (tmp_path / "mine.yaml").exists()


def test_a_gamma_of_the_loss_of_classes_is_refused(scores):
    with pytest.raises(InputError, match="section 'model': focal_gamma is for classes, .* leave it out, got 5"):
        score_recipe(scores, "--model.focal_gamma", "5").model_config()
    made = Recipe(SECTIONS | {"text_encoder": {"backbone": "org/text", "focal_gamma": 1.0}})
    made.override(["--corpus", str(scores)])
    with pytest.raises(InputError, match="section 'text_encoder': focal_gamma is for classes"):
        made.model_config()
    # What recipes of both tasks share still trains on scores.
    own = Recipe.load("own-small", ["--corpus", str(scores), "--corpus.targets", "valence"])
    assert own.model_config().task == "regression"
    assert MisterEConfig(problem_type="regression", focal_gamma=5.0).focal_gamma == 5  # as older checkpoints may have
