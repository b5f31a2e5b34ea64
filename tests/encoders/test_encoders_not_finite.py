import pytest

from mister_e_hf import Recipe
from mister_e_hf.base.errors import InputError
from mister_e_hf.training.encoder_experiment import train_encoder
from mister_e_hf.training.run_folder import read_results
from support.small_encoders import LABELS, read_lines, write_backbone, write_lines

pytestmark = pytest.mark.usefixtures("own_cache")


def test_an_encoder_whose_loss_is_not_finite_ends_its_run(tmp_path):
    corpus = read_lines(write_lines(tmp_path / "lines", {"train": 6, "validation": 2, "test": 2}), tmp_path / "cache")
    training = {"num_train_epochs": 2, "learning_rate": 1e30, "disable_tqdm": True}
    encoder = {"backbone": str(write_backbone(tmp_path / "base", "text")), "tuning": "full", "embedding_dim": 8}
    recipe = Recipe({"corpus": {"labels": LABELS}, "text_encoder": encoder | {"training": training}})
    with pytest.raises(InputError, match=r"ended at step \d+: the (loss|weight) .*not finite"):
        train_encoder(recipe, "text", tmp_path / "run", corpus=corpus)
    assert read_results(tmp_path / "run") is None and not list((tmp_path / "run").glob("checkpoint-*"))
