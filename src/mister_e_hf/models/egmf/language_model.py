"""The causal language model of [`EgmfModel`]: loaded, tried, given LoRA, saved to `language_model/`.

Letters: V size of the vocabulary, W width.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers  # the Auto classes when they are used: loading them registers what is here
from transformers import PreTrainedModel
from transformers.utils.hub import resolve_revision

from ...base.errors import InputError
from ...encoders.adapters import LoraSettings, add_adapter, fetch_adapter, save_adapter, set_adapter_state
from ...hub.loading import (
    ACCESS_OPTIONS,
    explained,
    find_file,
    finish_loading,
    load_strictly,
    require_config,
)
from ...hub.pretrained import without_report
from .configuration_egmf import EgmfConfig
from .label_likelihood import embedding_table
from .language_model_fingerprint import same_language_model

FOLDER = "language_model"

# Types whose logits are tested to be the same from embeddings as from ids, with every mask that is used here.
TESTED = ("llama", "qwen2", "gemma3_text", "gpt2")
# Names of modules that get LoRA where the configuration names none.
_LORA_TARGETS = {"gpt2": r".*\.c_attn"}
_OTHER_LORA_TARGETS = r".*\.(q_proj|v_proj)"
_CHUNK = 2**10  # rows of a table: a block stays in the cache of a processor
# Of tokenizers of every kind.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
# Fields of its configuration that are not those of the architecture.
_NOT_DESCRIBED = ("transformers_version", "auto_map", "quantization_config")


def build_language_model(config: EgmfConfig) -> PreTrainedModel:
    """The language model of a configuration with random weights."""
    stored = config.require_language_model_config()
    return transformers.AutoModelForCausalLM.from_config(
        stored, dtype=torch.get_default_dtype(), trust_remote_code=False
    )


def width_of(config: EgmfConfig) -> int:
    """Width W of the language model's embeddings."""
    return config.require_language_model_config().get_text_config().hidden_size


def longest_prompt(language_model: PreTrainedModel, config: EgmfConfig) -> int:
    """How many tokens a prompt and its answer may have: within all positions, and all layers see them all."""
    own = language_model.config.get_text_config()
    limits = [config.max_length, getattr(own, "max_position_embeddings", None)]
    layers = getattr(own, "layer_types", None)
    # some types have a window in every layer, and do not list their layers
    if "sliding_attention" in layers if layers else getattr(own, "use_sliding_window", True):
        limits.append(getattr(own, "sliding_window", None))
    if "chunked_attention" in (layers or ()):
        limits.append(getattr(own, "attention_chunk_size", None))
    return min(limit for limit in limits if limit is not None)


@torch.no_grad()
def embedding_scale(language_model: PreTrainedModel) -> torch.Tensor:
    """Root mean square of the embeddings that the model reads, over its whole table (V, W): ()."""
    table = embedding_table(language_model)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids in torch.arange(table.num_embeddings, device=table.weight.device).split(_CHUNK):
        # through the layer: Gemma's multiplies what its table holds
        embeddings = table(ids)
        total += embeddings.double().square().sum().cpu()
        count += embeddings.numel()
    return (total / count).sqrt()


def describe_language_model(config: EgmfConfig, options: Mapping[str, Any]):
    r"""
    Write the language model's own configuration, and the commit that its revision is now, into a configuration; no
    weights are read.

    Args:
        config: with a `language_model`.
        options: `token`, `cache_dir`, `local_files_only`.

    Raises:
        InputError: if the model does not exist, or is not a causal language model.
    """
    name = config.language_model
    if name is None:
        raise InputError("language_model must name a causal language model: its folder, or its name on the Hub")
    revision = resolve_revision(name, config.language_model_revision, **options)
    where = {**options, **({} if revision is None else {"revision": revision})}
    stated = require_config(name, where)
    if "model_type" not in stated:
        raise InputError(
            f"language_model '{name}' has no config.json with a model_type; expected a causal language model as "
            "save_pretrained writes it, with its tokenizer"
        )
    model_type, known = stated["model_type"], transformers.CONFIG_MAPPING
    kind = known[model_type] if isinstance(model_type, str) and model_type in known else None
    is_causal = kind is not None and kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if kind is not None and kind in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        # BERT's kind reads both ways unless its configuration says so
        is_causal = is_causal and bool(stated.get("is_decoder"))
    if not is_causal:
        raise InputError(f"language_model '{name}' is of type '{model_type}', not a causal language model")
    with explained(name, where):
        found = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **where).to_dict()
    described = {key: value for key, value in found.items() if not key.startswith("_") and key not in _NOT_DESCRIBED}
    config.language_model_config = json.loads(json.dumps(described))  # as its file has it
    config.language_model_revision = getattr(revision, "resolved", revision)


def fetch_language_model(config: EgmfConfig, options: Mapping[str, Any]) -> PreTrainedModel:
    """The pretrained model that a configuration names, which then describes it. Raises as the function above."""
    describe_language_model(config, options)
    assert config.language_model is not None
    return _load(config.language_model, _dtype(config), {**options, "revision": config.language_model_revision})


def stored_language_model(place: str | os.PathLike, config: EgmfConfig, dtype: Any, options: Mapping[str, Any]):
    r"""
    The language model of a checkpoint, from its `language_model/`, or from the place that its configuration names.

    Args:
        place: folder, or id on the Hub, of the checkpoint.
        dtype: of the weights; None for the one that the configuration names.
        options: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        OSError: if it cannot be loaded, in one line.
        InputError: if the name belongs to another model now.
    """
    access = {key: options[key] for key in ACCESS_OPTIONS if options.get(key) is not None}
    if config.holds_language_model:
        return _load(place, dtype or "auto", access | _inside(options))
    dtype = _dtype(config) if dtype in (None, "auto") else dtype
    name, revision = config.language_model, config.language_model_revision
    try:
        if name is None:
            raise InputError("its configuration names none")
        model = _load(name, dtype, access | {"revision": revision})
    except (OSError, InputError) as error:
        raise OSError(
            f"'{place}' is trained on the language model '{name}' (revision {revision}), which could not be loaded: "
            f"{error}. Restore it, or pass language_model=... with its new place (it is a field of config.json, too); "
            "save_language_model=True stores its weights in the checkpoint"
        ) from error
    if _sizes(config.require_language_model_config()) != _sizes(model.config):
        raise InputError(
            f"'{name}' is another language model than the one that '{place}' was trained on; pass language_model=... "
            "and language_model_revision=... of that one"
        )
    if not same_language_model(config.language_model_fingerprint, config.language_model_dtype, model):
        raise InputError(
            f"The language model '{name}' has other weights than when '{place}' was trained on it. Put those back, or "
            "pass language_model=... with their new place; language_model_fingerprint=None reads with these instead"
        )
    return model


def _sizes(config: transformers.PreTrainedConfig) -> list[Any]:
    """What two language models of one architecture and size have in common."""
    return [config.model_type, *(getattr(config.get_text_config(), name, None) for name in _SIZES)]


def read_language_model(language_model: PreTrainedModel, folder: str | os.PathLike):
    """Read the weights of a language model that was trained from the `language_model/` of a checkpoint folder."""
    found = _load(folder, language_model.dtype, _inside({}))
    language_model.load_state_dict(found.state_dict())


def _load(name: str | os.PathLike, dtype: torch.dtype | str, options: Mapping[str, Any]) -> PreTrainedModel:
    options = {key: value for key, value in options.items() if value is not None}
    load: Callable[..., Any] = transformers.AutoModelForCausalLM.from_pretrained
    advice = "A causal language model is expected whole, with the weights of its head, as save_pretrained writes it."
    with explained(name, options), without_report():
        model, _ = load_strictly(load, name, dtype=dtype, trust_remote_code=False, advice=advice, **options)
    finish_loading(model, name)
    return model.eval()


def load_tokenizer(name: str | os.PathLike, options: Mapping[str, Any]):
    r"""
    The tokenizer of a language model.

    Raises:
        InputError, OSError: if it cannot be loaded.
    """
    given = {key: options[key] for key in (*ACCESS_OPTIONS, "revision", "subfolder") if options.get(key) is not None}
    with explained(name, given, or_pickle=True):
        try:
            return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, **given)
        except ValueError as error:
            _require_tokenizer(name, given, _VOCABULARIES, error)
            raise


def _require_tokenizer(
    name: str | os.PathLike, given: Mapping[str, Any], files: Sequence[str], cause: BaseException | None = None
):
    """Raise, in one line, if a tokenizer has none of these files."""
    if not any(find_file(name, file, given) for file in files):
        place = "/".join(filter(None, (str(name), given.get("subfolder"))))
        raise FileNotFoundError(
            f"'{place}' holds no whole tokenizer: {files[0]} is missing; save, copy or push the whole folder again"
        ) from cause


def check_tokens(language_model: PreTrainedModel, tokenizer: Any):
    r"""
    Raises:
        InputError: if the tokenizer writes tokens that the language model has no embedding for.
    """
    size = embedding_table(language_model).num_embeddings
    # special tokens that were added are not written, other ones are where a transcript has their text
    added = [token for token, each in tokenizer.added_tokens_decoder.items() if not each.special]
    largest = max(tokenizer.vocab_size - 1, tokenizer.eos_token_id or 0, *added)
    if largest >= size:
        raise InputError(
            f"The tokenizer writes tokens up to {largest}, and the {language_model.config.model_type} language model "
            f"has embeddings up to {size - 1}: they do not belong together"
        )


def stored_tokenizer(place: str | os.PathLike, options: Mapping[str, Any]):
    """The tokenizer in the `language_model/` of a checkpoint."""
    options = {**options, **_inside(options)}
    _require_tokenizer(place, options, ["tokenizer_config.json"])
    return load_tokenizer(place, options)


def _inside(options: Mapping[str, Any]) -> dict[str, Any]:
    subfolder = "/".join(filter(None, (options.get("subfolder"), FOLDER)))
    return {"revision": options.get("revision"), "subfolder": subfolder}


def _dtype(config: EgmfConfig) -> torch.dtype:
    return getattr(torch, config.language_model_dtype)


def lora_of(config: EgmfConfig) -> LoraSettings:
    """The settings of a configuration that has `lora`."""
    given = config.lora_settings
    assert given is not None
    model_type = config.require_language_model_config().model_type
    return LoraSettings(
        r=given["r"],
        alpha=given["alpha"],
        dropout=given["dropout"],
        targets=given["target_modules"] or _LORA_TARGETS.get(model_type, _OTHER_LORA_TARGETS),
        backbone=config.language_model,
        revision=config.language_model_revision,
        field="lora.target_modules",
    )


def prepare_language_model(language_model: PreTrainedModel, config: EgmfConfig):
    """Freeze what is not trained, and add LoRA's layers."""
    language_model.requires_grad_(config.train_language_model)
    if config.lora is not None:
        own = {name for name, module in language_model.named_modules() if module is embedding_table(language_model)}

        def check(modules: Sequence[str]):
            if reached := sorted(own & set(modules)):
                raise InputError(
                    f"lora.target_modules matches '{reached[0]}', the embeddings of the language model, which also "
                    "set the scale of the pseudo tokens and stay as they are; name projections, such as the default "
                    f"'{_LORA_TARGETS.get(language_model.config.model_type, _OTHER_LORA_TARGETS)}'"
                )

        add_adapter(language_model, dataclasses.replace(lora_of(config), check=check))


def fetch_lora(place: str | os.PathLike, language_model: PreTrainedModel, config: EgmfConfig, options):
    """Load LoRA's weights from the `language_model/` of a checkpoint."""
    access = {key: options[key] for key in ACCESS_OPTIONS if options.get(key) is not None}
    given = {key: value for key, value in (access | _inside(options)).items() if value is not None}
    with explained(place, options):
        set_adapter_state(language_model, lora_of(config), fetch_adapter(place, given))


def save_language_model(
    folder: str | os.PathLike,
    language_model: PreTrainedModel,
    tokenizer: Any,
    config: EgmfConfig,
    state_dict: Mapping[str, torch.Tensor],
):
    r"""
    Write `language_model/` in a checkpoint folder, which is replaced whole: the tokenizer, LoRA's weights in
    `adapter/`, and the model's own weights if the checkpoint holds them.

    Args:
        state_dict: of the language model.
    """
    place = Path(folder) / FOLDER
    unfinished = Path(folder) / f".unfinished-{FOLDER}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tokenizer.save_pretrained(unfinished)
    if config.lora is not None:
        save_adapter(unfinished, language_model, lora_of(config), state_dict)
    if config.holds_language_model:
        # as they are without LoRA around them
        own = {name.replace(".base_layer.", "."): tensor for name, tensor in state_dict.items() if "lora_" not in name}
        with torch.device("meta"):
            plain = transformers.AutoModelForCausalLM.from_config(language_model.config, trust_remote_code=False)
        plain.load_state_dict(own, assign=True)
        plain.save_pretrained(unfinished)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(unfinished, place)
