"""What is wrong with a recipe is named, in a file or on the command line."""

import pytest

from mister_e_hf import Recipe
from support.small_recipes import recipe_of_encoders, write

# Text of a file or words of the command line, and what the message says.
MISTAKES = {
    # words of the command line
    "unknown": (["--lerning_rate", "1"], "unknown field 'lerning_rate'. Did you mean 'learning_rate'?"),
    "unknown in a section": (
        ["--model.hiden_size", "1"],
        "section 'model' has no field 'hiden_size'. Did you mean 'hidden_size'?",
    ),
    "of another section": (["--model.learning_rate", "1"], "section 'model' has no field 'learning_rate'"),
    "unknown section": (["--modle.causal"], "unknown section 'modle'. Did you mean 'model'?"),
    "like nothing": (["--qqqqq", "1"], "unknown field 'qqqqq'. Known: "),
    "no field": (["learning_rate", "1"], "Expected --field value, got 'learning_rate'"),
    "bare dashes": (["--", "1"], "Expected --field value, got '--'"),
    "no YAML": (["--labels", "[a, b"], "--labels: '[a, b' is not valid YAML"),
    "text for a number": (
        ["--learning_rate", "fast"],
        "section 'training': 'learning_rate' must be float, got 'fast'",
    ),
    "fraction for a count": (["--num_attention_heads", "2.5"], "section 'model': 'num_attention_heads' must be int"),
    "number for a flag": (["--use_cpu", "3"], "section 'training': 'use_cpu' must be bool, got 3"),
    "flag for a number": (["--hidden_size"], "section 'model': 'hidden_size' must be int, got True"),
    "flag for a path": (["--corpus"], "section 'corpus': 'path' must be str | None, got True"),
    "none of the choices": (["--gate", "meen"], "section 'model': 'gate' must be one of 'learned', 'mean'"),
    "seed": (["--training.seed", "3"], "training.seed does not belong in a recipe: pass --seeds"),
    "output folder": (["--output_dir", "x"], "training.output_dir does not belong in a recipe: pass --output_dir"),
    "a key of a mapping twice": (["--class_weights", "{a: 1, a: 2}"], "'a' appears twice"),
    "a pattern": (["--group_pattern", "("], "corpus.group_pattern '(' is not a regular expression"),
    "an empty label": (["--labels", "a", '""'], "corpus.labels must be names, none of them empty; got ['a', '']"),
    "an encoder's section": (["--text_encoder", "some/model"], "--text_encoder takes only the value none"),
    "secret": (["--hub_token", "hf_x"], "training.hub_token does not belong in a recipe: set HF_TOKEN"),
    # files
    "file, no YAML": ("model: [1, 2", "is not valid YAML"),
    "file, a list": ("- model\n- corpus\n", "expected the sections ['model', 'corpus', 'training']"),
    "file, nothing": ("", "expected the sections"),
    "file, a word": ("model", "expected the sections"),
    "file, unknown section": ("modle: {}\n", "unknown section 'modle'. Did you mean 'model'?"),
    "file, a section that YAML takes for true": ("true: {}\n", "unknown section 'True'"),
    "file, a section twice": (
        "training: {}\nmodel: {}\ntraining: {use_cpu: true}\n",
        "'training' appears twice, in lines 1",
    ),
    "file, a mapping that holds itself": ("corpus: {vectors: &v {speech: x, more: *v}}\n", "contains itself"),
    "file, a list in a mapping of words": (
        "corpus: {vectors: {speech: [x]}}\n",
        "'vectors' must be dict[str, str] | None",
    ),
    "file, a long value": ("model: {hidden_size: " + "x" * 9000 + "}\n", "(9,002 characters)"),
    "file, a truth value for a name": ("corpus: {name: true}\n", "got True; quote it if it is a name"),
    "file, a list for a section": ("model: [hidden_size]\n", "section 'model' must hold fields and values"),
    "file, unknown field": (
        "training: {learning_rat: 1}\n",
        "section 'training' has no field 'learning_rat'. Did you mean 'learning_rate'?",
    ),
    "file, field that YAML takes for false": ("model: {no: 1}\n", "section 'model' has no field 'no'"),
    "file, text for a count": ("model: {hidden_size: big}\n", "section 'model': 'hidden_size' must be int, got 'big'"),
    "file, one name for labels": (
        "corpus: {labels: joy}\n",
        "section 'corpus': 'labels' must be list[str], got 'joy'",
    ),
    "file, null for labels": ("corpus: {labels: }\n", "section 'corpus': 'labels' must be list[str], got None"),
    # labels
    "labels, one": ("corpus: {labels: [joy]}\n", "two classes or more"),
    "labels, twice": ("corpus: {labels: [joy, anger, joy]}\n", "each once; got ['joy', 'anger', 'joy']"),
    "labels, true and false": ("corpus: {labels: [true, false]}\n", "'labels' must be list[str], got [True, False]"),
    "labels, one of them null": (
        "corpus: {labels: [maybe, null]}\n",
        "'labels' must be list[str], got ['maybe', None]",
    ),
    "labels, numbers": ("corpus: {labels: [0, 1]}\n", "'labels' must be list[str], got [0, 1]"),
    "labels, nested": ("corpus: {labels: [[joy], [anger]]}\n", "'labels' must be list[str]"),
    "labels, empty": ("corpus: {labels: [joy, '']}\n", "none of them empty"),
    "labels, blank": ("corpus: {labels: [joy, ' ']}\n", "none of them empty"),
    # what the configuration of the model refuses
    "model, heads": (
        "corpus: {labels: [a, b]}\nmodel: {num_attention_heads: 7}\n",
        "section 'model'",
        "num_attention_heads",
    ),
    "model, kernel": (
        "corpus: {labels: [a, b]}\nmodel: {context_kernel_sizes: [2]}\n",
        "section 'model'",
        "context_kernel_sizes",
    ),
    "model, kernel of text": (
        "corpus: {labels: [a, b]}\nmodel: {context_kernel_sizes: [wide]}\n",
        "section 'model'",
        "context_kernel_sizes",
    ),
    "model, expert": ("corpus: {labels: [a, b]}\nmodel: {experts: [speech, video]}\n", "section 'model'", "experts"),
    "model, class weight": (
        "corpus: {labels: [a, b]}\nmodel: {class_weights: {boredom: 1.0}}\n",
        "section 'model'",
        "boredom",
    ),
    "model, range": (
        "corpus: {labels: [a, b]}\nmodel: {context_dropout: 1.5}\n",
        "section 'model'",
        "context_dropout",
    ),
    # what the training arguments refuse
    "training, scheduler": ("training: {lr_scheduler_type: cosin}\n", "section 'training'", "cosin"),
    "training, weight": ("training: {contrastive_weight: -1.0}\n", "section 'training'", "contrastive_weight"),
    "training of an encoder, scheduler": (
        ["--text_encoder.training.lr_scheduler_type", "cosin"],
        "section 'text_encoder.training'",
        "cosin",
    ),
    # encoders
    "encoder, unknown": (
        ["--text_encoder.tunning", "full"],
        "section 'text_encoder' has no field 'tunning'. Did you mean 'tuning'?",
    ),
    "encoder, unknown in training": (
        ["--text_encoder.training.lerning_rate", "1"],
        "section 'text_encoder.training' has no field 'lerning_rate'. Did you mean 'learning_rate'?",
    ),
    "encoder, of stage 2": (["--text_encoder.training.contrastive_weight", "1"], "has no field 'contrastive_weight'"),
    "encoder, unknown section": (
        ["--txt_encoder.tuning", "full"],
        "unknown section 'txt_encoder'. Did you mean 'text_encoder'?",
    ),
    "encoder, unknown nested section": (
        ["--text_encoder.trainin.fp16", "true"],
        "unknown section 'text_encoder.trainin'. Did you mean 'text_encoder.training'?",
    ),
    "encoder, name alone": (["--tuning", "full"], "unknown field 'tuning'"),
    "encoder, modality": (["--text_encoder.modality", "speech"], "section 'text_encoder' has no field 'modality'"),
    "encoder, none of the choices": (
        ["--text_encoder.tuning", "some"],
        "section 'text_encoder': 'tuning' must be one of 'frozen', 'lora', 'full', got 'some'",
    ),
    "encoder, fraction for a count": (
        ["--text_encoder.lora_r", "2.5"],
        "section 'text_encoder': 'lora_r' must be int, got 2.5",
    ),
    "encoder, another layer": (["--text_encoder.layer", "first"], "section 'text_encoder': 'layer' must be"),
    "encoder, another dtype": (["--text_encoder.dtype", "int8"], "section 'text_encoder': 'dtype' must be"),
    "encoder, text for a rate": (
        ["--speech_encoder.training.learning_rate", "fast"],
        "section 'speech_encoder.training': 'learning_rate' must be float, got 'fast'",
    ),
    "encoder, seed": (["--text_encoder.training.seed", "3"], "training.seed does not belong in a recipe: pass --seed"),
    "encoder, output folder": (
        ["--text_encoder.training.output_dir", "x"],
        "training.output_dir does not belong in a recipe",
    ),
    "encoder, file, a list": ("text_encoder: [a]\n", "section 'text_encoder' must hold fields and values"),
    "encoder, file, a list for training": (
        "text_encoder: {training: [a]}\n",
        "section 'text_encoder.training' must hold fields and",
    ),
    "encoder, file, a word for training": (
        "text_encoder: {training: fast}\n",
        "section 'text_encoder.training' must hold fields and",
    ),
    "encoder, file, unknown section": (
        "speech_encodr: {}\n",
        "unknown section 'speech_encodr'. Did you mean 'speech_encoder'?",
    ),
    "encoder, file, unknown in training": (
        "speech_encoder: {training: {epochs: 3}}\n",
        "section 'speech_encoder.training' has no field 'epochs'",
    ),
    "encoder, file, seed": ("speech_encoder: {training: {seed: 3}}\n", "training.seed does not belong in a recipe"),
    # baselines
    "baselines, unknown baseline": (
        "baselines: {bc_lsmt: {}}\n",
        "unknown baseline 'bc_lsmt'. Did you mean 'bc_lstm'?",
    ),
    "baselines, a list": ("baselines: [mult]\n", "section 'baselines' must hold names of baselines"),
    "baselines, a number for a baseline": (
        "baselines: {mult: 3}\n",
        "section 'baselines.mult' must hold the sections model and",
    ),
    "baselines, unknown section": (
        "baselines: {mult: {modle: {}}}\n",
        "unknown section 'baselines.mult.modle'. Did you mean 'baselines.mult.model'?",
    ),
    "baselines, a word for a section": (
        "baselines: {mult: {model: big}}\n",
        "section 'baselines.mult.model' must hold fields",
    ),
    "baselines, unknown field": (
        "baselines: {mult: {model: {num_layer: 2}}}\n",
        "section 'baselines.mult.model' has no field 'num_layer'. Did you mean 'num_layers'?",
    ),
    "baselines, field of another": (
        "baselines: {bc_lstm: {model: {num_attention_heads: 2}}}\n",
        "has no field 'num_attention",
    ),
    "baselines, text for a rate": (
        "baselines: {sdt: {training: {learning_rate: fast}}}\n",
        "'learning_rate' must be float",
    ),
    "baselines, seed": ("baselines: {sdt: {training: {seed: 1}}}\n", "training.seed does not belong in a recipe"),
    "baselines, unknown type": (
        "model: {model_type: bert}\n",
        "'model_type' must be one of 'mister_e', '",
    ),
    "baselines, field of another type": (
        "model: {model_type: erc_bc_lstm, gate: mean}\n",
        "section 'model' has no field 'gate'",
    ),
}


@pytest.mark.parametrize(("given", "said"), [(given, said) for given, *said in MISTAKES.values()], ids=MISTAKES)
def test_mistakes_are_named(tmp_path, given, said):
    for build in (Recipe.model_config, Recipe.read_corpus):
        with pytest.raises(ValueError) as error:
            build(Recipe.load(write(tmp_path, given)) if isinstance(given, str) else recipe_of_encoders(*given))
        for part in (*said, *([str(tmp_path / "recipe.yaml")] if isinstance(given, str) else [])):
            assert part in str(error.value)
