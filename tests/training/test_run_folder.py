import pytest
import yaml
from accelerate import PartialState

from mister_e_hf.training.run_folder import claim_run


def test_a_folder_belongs_to_one_run(tmp_path):
    PartialState()
    record = {"recipe": {"rate": 1e-5, "labels": ["no", "1"], "layer": None}, "seed": 3}
    assert claim_run(tmp_path / "run", record) is False
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text()) == record
    assert claim_run(tmp_path / "run", record) is False
    (tmp_path / "run" / "results.json").write_text("{}")
    assert claim_run(tmp_path / "run", record) is True
    with pytest.raises(ValueError, match="seed is 3 there and 4 here. Choose another"):
        claim_run(tmp_path / "run", {"recipe": {}, "seed": 4})
    (tmp_path / "run" / "run.yaml").unlink()
    with pytest.raises(ValueError, match="holds a run without a run.yaml"):
        claim_run(tmp_path / "run", record)
    (tmp_path / "other" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a run without a run.yaml"):
        claim_run(tmp_path / "other", record)
