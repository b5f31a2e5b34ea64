import copy
import json
import math
import os

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from mister_e_hf import MisterEConfig
from support.new_process import run_python

LABELS = {0: "anger", 1: "joy", 2: "neutral"}
REFUSALS = (StrictDataclassError, ValueError, TypeError)


def test_defaults_are_the_published_sizes():
    config = MisterEConfig()
    assert (config.speech_embedding_dim, config.text_embedding_dim, config.hidden_size) == (2048, 2048, 1024)
    assert (config.context_kernel_sizes, config.context_num_layers, config.fusion_num_layers) == ([1, 3, 5], 3, 4)
    assert (config.attention_dim, config.num_attention_heads) == (120, 3)
    assert (config.attention_dropout, config.projection_dropout, config.layer_norm_eps) == (0.1, 0.5, 1e-6)
    assert (config.gate_hidden_size, config.gate_temperature, config.focal_gamma) == (10, 2.0, 3.0)
    assert not config.causal and config.feature_clip is None and config.class_weights is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("speech_embedding_dim", "2048"),
        ("speech_embedding_dim", 2048.0),
        ("text_embedding_dim", None),
        ("hidden_size", True),
        ("causal", 1),
        ("causal", "yes"),
        ("context_layer", None),
        ("experts", "speech"),
        ("experts", [1, 2]),
        ("context_kernel_sizes", 3),
        ("context_kernel_sizes", [1.5]),
        ("context_dropout", "0.1"),
        ("fusion", "attention"),
        ("gate", "Learned"),
        ("gate_temperature", [2.0]),
        ("feature_clip", "4"),
        ("class_weights", [1.0, 2.0]),
        ("class_weights", {"LABEL_0": "1"}),
        ("id2label", ["anger", "joy"]),
        ("id2label", {"anger": 0}),
        ("id2label", {0: 5, 1: 6}),
        ("label2id", ["anger", "joy"]),
        ("label2id", {"anger": "first"}),
    ],
)
def test_wrong_types_are_refused_by_name(name, value):
    with pytest.raises(REFUSALS, match=name):
        MisterEConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("speech_embedding_dim", "text_embedding_dim", "hidden_size", "context_num_layers")),
        *((name, -1) for name in ("fusion_num_layers", "attention_dim", "num_attention_heads", "gate_hidden_size")),
        ("hidden_size", 7),
        ("num_attention_heads", 7),
        ("attention_dim", 121),
        ("context_kernel_sizes", []),
        ("context_kernel_sizes", [2]),
        ("context_kernel_sizes", [3, -1]),
        *((name, 1.0) for name in ("context_dropout", "attention_dropout", "projection_dropout", "modality_dropout")),
        ("modality_dropout", -0.1),
        ("context_dropout", math.nan),
        ("layer_norm_eps", 0.0),
        ("gate_temperature", 0),
        ("gate_temperature", math.nan),
        ("gate_temperature", math.inf),
        ("feature_clip", 0),
        ("feature_clip", -3.0),
        ("feature_clip", math.nan),
        ("focal_gamma", -1),
        ("focal_gamma", math.inf),
        ("experts", []),
        ("experts", ["speech", "video"]),
        ("experts", ["text", "text"]),
        ("class_weights", {"LABEL_0": -1.0}),
        ("class_weights", {"LABEL_1": math.nan}),
        ("class_weights", {"joy": 1.0}),
        ("id2label", {}),
        ("id2label", {0: "anger", 2: "joy"}),
        ("id2label", {1: "anger", 2: "joy"}),
        ("id2label", {0: "anger", 1: "anger"}),
        ("label2id", {"anger": 0, "joy": 0}),
    ],
)
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(REFUSALS, match=name):
        MisterEConfig(**{name: value})


def test_odd_hidden_size_fits_a_causal_model():
    assert MisterEConfig(causal=True, hidden_size=7).hidden_size == 7


def test_whole_numbers_are_taken_where_fractions_are():
    config = MisterEConfig(context_dropout=0, gate_temperature=1, focal_gamma=2, feature_clip=4)
    assert (config.context_dropout, config.gate_temperature, config.focal_gamma, config.feature_clip) == (0, 1, 2, 4)


def test_experts_keep_one_order():
    assert MisterEConfig(experts=("fusion", "speech")).experts == ["speech", "fusion"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("hiden_size", "hidden_size"),
        ("speech_embeding_dim", "speech_embedding_dim"),
        ("id2lable", "id2label"),
        ("class_weight", "class_weights"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_name(name, nearest, tmp_path):
    message = f"no field '{name}'.*Did you mean '{nearest}'"
    with pytest.raises(ValueError, match=message):
        MisterEConfig(**{name: 3})
    MisterEConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: 3}))
    for load in (AutoConfig.from_pretrained, MisterEConfig.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_unknown_key_like_no_other_lists_the_fields():
    with pytest.raises(ValueError, match="no field 'zzz'.*It has: .*hidden_size.*id2label"):
        MisterEConfig(zzz=1)


def test_keys_that_transformers_passes_are_accepted(tmp_path):
    given = {
        "attn_implementation": "eager",
        "experts_implementation": "eager",
        "name_or_path": "somewhere",
        "output_attentions": True,
        "output_hidden_states": True,
        "return_dict": True,
        "use_cache": False,
        "auto_map": {"AutoConfig": "configuration_mister_e.MisterEConfig"},
        "custom_pipelines": {"conversation-emotion-recognition": {"impl": "a.B"}},
        "architectures": ["MisterEModel"],
        "transformers_version": "5.23.0",
        "model_type": "mister_e",
        "num_labels": 4,
        "problem_type": None,
        "_commit_hash": "0" * 40,
    }
    config = MisterEConfig(**given)
    assert config.num_labels == 4
    # The package registers its own pipeline: transformers would ask for trust_remote_code to take the one that is
    # named here.
    assert not hasattr(config, "custom_pipelines")
    assert MisterEConfig(dtype="bfloat16").dtype == MisterEConfig(torch_dtype="bfloat16").dtype == torch.bfloat16
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float16, output_attentions=True
    )
    assert loaded.dtype == torch.float16 and loaded.name_or_path == str(tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"id2label": LABELS},
        {"id2label": {str(index): label for index, label in LABELS.items()}},
        {"label2id": {label: index for index, label in LABELS.items()}},
        {"label2id": {label: str(index) for index, label in LABELS.items()}},
        {"label2id": {"neutral": 2, "anger": 0, "joy": 1}},
        {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}, "num_labels": 3},
    ],
)
def test_labels_are_always_known_both_ways(given, tmp_path):
    config = MisterEConfig(**given)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["id2label"] == {"0": "anger", "1": "joy", "2": "neutral"}
    assert written["label2id"] == {"anger": 0, "joy": 1, "neutral": 2}
    for known in (config, AutoConfig.from_pretrained(tmp_path)):
        assert known.id2label == LABELS
        assert known.label2id == {"anger": 0, "joy": 1, "neutral": 2}
        assert known.num_labels == 3


@pytest.mark.parametrize(
    "given",
    [
        {"label2id": {"anger": 1, "joy": 0, "neutral": 2}},
        {"label2id": {"anger": 0, "joy": 1, "sadness": 2}},
        {"label2id": {"anger": 0, "joy": 1}},
        {"label2id": {"anger": 0, "joy": 1, "neutral": 2, "sadness": 3}},
        {"num_labels": 4},
    ],
)
def test_contradictory_labels_are_refused(given):
    with pytest.raises(REFUSALS, match="label"):
        MisterEConfig(id2label=LABELS, **given)


def test_number_of_labels_can_be_given_and_set():
    config = MisterEConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    config.num_labels = 2
    assert (config.id2label, config.label2id) == ({0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1})
    named = MisterEConfig(id2label=LABELS)
    named.num_labels = 3
    assert named.id2label == LABELS


@pytest.fixture
def folder(tmp_path):
    MisterEConfig(hidden_size=16, id2label=LABELS, class_weights={"joy": 2.0}).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("load", [AutoConfig.from_pretrained, MisterEConfig.from_pretrained], ids=["auto", "own"])
@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"id2label": {0: "calm", 1: "tense"}}, ["calm", "tense"]),
        ({"id2label": {0: "a", 1: "b", 2: "c"}}, ["a", "b", "c"]),
        ({"label2id": {"calm": 0, "tense": 1}}, ["calm", "tense"]),
        ({"num_labels": 2}, ["LABEL_0", "LABEL_1"]),
    ],
)
def test_labels_given_while_loading_replace_the_old_both_ways(folder, load, given, labels):
    config = load(folder, **given)
    assert config.id2label == dict(enumerate(labels))
    assert config.label2id == {label: index for index, label in enumerate(labels)}
    assert config.class_weights is None  # they were the old classes'
    assert config.hidden_size == 16
    config.save_pretrained(folder / "again")
    again = load(folder / "again")
    assert (again.id2label, again.label2id) == (config.id2label, config.label2id)


@pytest.mark.parametrize("given", [{"id2label": LABELS}, {"num_labels": 3}, {"hidden_size": 32}])
def test_same_labels_given_while_loading_keep_what_belongs_to_them(folder, given):
    config = AutoConfig.from_pretrained(folder, **given)
    assert config.id2label == LABELS and config.class_weights == {"joy": 2.0}
    assert config.hidden_size == given.get("hidden_size", 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden_size": -3}, "hidden_size"),
        ({"attention_dim": 100}, "attention_dim"),
        ({"causal": "no"}, "causal"),
        ({"class_weights": {"sadness": 1.0}}, "class_weights"),
        ({"id2label": {0: "a", 3: "b"}}, "id2label"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "disagree"),
    ],
)
def test_fields_given_while_loading_are_checked_like_any_other(folder, given, message):
    with pytest.raises(REFUSALS, match=message):
        AutoConfig.from_pretrained(folder, **given)


def test_contradictory_config_is_not_saved(tmp_path):
    config = MisterEConfig(id2label=LABELS)
    config.id2label = {0: "calm", 1: "tense"}
    with pytest.raises(REFUSALS, match="disagree"):
        config.save_pretrained(tmp_path)


def unlike_the_defaults(tiny_config) -> MisterEConfig:
    return tiny_config(
        experts=["text", "fusion"],
        context_layer=False,
        context_kernel_sizes=(3, 7),
        context_dropout=0.25,
        fusion="concatenation",
        attention_dropout=0,
        projection_dropout=0.2,
        layer_norm_eps=1e-5,
        gate="mean",
        gate_temperature=1.5,
        causal=True,
        modality_dropout=0.1,
        feature_clip=4,
        focal_gamma=2,
        class_weights={"joy": 0.5},
    )


@pytest.mark.parametrize(
    "copied",
    [
        lambda config, folder: MisterEConfig(**config.to_dict()),
        lambda config, folder: MisterEConfig.from_dict(config.to_dict()),
        lambda config, folder: MisterEConfig(**config.to_diff_dict()),
        lambda config, folder: copy.deepcopy(config),
        lambda config, folder: MisterEConfig.from_pretrained(folder),
        lambda config, folder: AutoConfig.from_pretrained(folder),
    ],
    ids=["to_dict", "from_dict", "to_diff_dict", "deepcopy", "saved", "auto"],
)
@pytest.mark.parametrize(
    "make", [lambda tiny_config: MisterEConfig(), unlike_the_defaults], ids=["default", "changed"]
)
def test_copy_equals_the_original(tiny_config, make, copied, tmp_path):
    config = make(tiny_config)
    config.save_pretrained(tmp_path)
    again = copied(config, tmp_path)
    assert type(again) is MisterEConfig
    for name in (*MisterEConfig.__annotations__, "id2label", "label2id"):
        assert getattr(again, name) == getattr(config, name), name
        assert type(getattr(again, name)) is type(getattr(config, name)), name


def test_copy_shares_nothing_with_the_original():
    config = MisterEConfig(id2label=LABELS)
    copied = copy.deepcopy(config)
    copied.id2label[0] = "calm"
    copied.experts.remove("text")
    assert config.id2label == LABELS and len(config.experts) == 3
    assert len(MisterEConfig().experts) == 3


WITHOUT_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mister_e_hf":
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
from transformers import AutoConfig

config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(config).__module__.startswith("transformers_modules."), type(config)
assert not any(name.startswith("mister_e_hf") for name in sys.modules)
try:
    AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True, hidden_size=-1)
except Exception as error:
    assert "hidden_size" in str(error)
else:
    raise AssertionError("a wrong value was let through")
config.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_folder_loads_with_its_own_code_where_the_package_is_not_installed(tiny_config, tmp_path):
    config = unlike_the_defaults(tiny_config)
    config.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "configuration_mister_e.py").is_file()
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    words = ("-c", WITHOUT_PACKAGE, tmp_path / "saved", tmp_path / "again")
    call = run_python(*words, env=environment, cwd=tmp_path)
    assert call.returncode == 0, call.stderr
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert type(again) is MisterEConfig
    for name in (*MisterEConfig.__annotations__, "id2label", "label2id"):
        assert getattr(again, name) == getattr(config, name), name
