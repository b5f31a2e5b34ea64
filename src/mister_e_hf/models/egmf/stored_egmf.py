"""An EGMF model as a checkpoint folder, and where its language model and tokenizer come from."""

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ...base.errors import InputError
from ...encoders.adapters import read_adapter, set_adapter_state
from ...hub.loading import ACCESS_OPTIONS, check_weight_files, differences, explained, is_local, require_config
from ..stored_models import StoredModel
from .answers import Answers
from .asked_turns import AskedTurns, Reader
from .configuration_egmf import EgmfConfig
from .label_likelihood import LikelihoodTree, embedding_table
from .language_model import (
    FOLDER,
    build_language_model,
    check_tokens,
    describe_language_model,
    embedding_scale,
    fetch_language_model,
    fetch_lora,
    load_tokenizer,
    longest_prompt,
    lora_of,
    prepare_language_model,
    read_language_model,
    save_language_model,
    stored_language_model,
    stored_tokenizer,
    width_of,
)
from .language_model_fingerprint import is_meta, language_model_fingerprint
from .language_model_trial import try_language_model
from .prefix_store import PrefixStore
from .prompts import PromptWriter
from .pseudo_tokens import PseudoTokens
from .wording import WORDINGS

_PREFIX = f"{FOLDER}."


class StoredEgmf(StoredModel):
    """
    What of an [`EgmfModel`] has to do with its language model: it is not in `model.safetensors`, but in
    `language_model/`, or only named there.

    Attributes:
        language_model: with LoRA's layers where the configuration says so.
        prefix_store: where a language model that is not trained keeps the texts that it has read, if anywhere.
    """

    config: EgmfConfig
    language_model: PreTrainedModel
    pseudo_tokens: PseudoTokens
    prefix_store: PrefixStore | None = None
    # the files of a tokenizer, LoRA's, and those of a language model that was trained or is to be stored
    checkpoint_files = (
        *(f"{FOLDER}/*{suffix}" for suffix in (".json", ".safetensors", ".txt", ".model", ".jinja")),
        f"{FOLDER}/adapter/*.json",
        f"{FOLDER}/adapter/*.safetensors",
    )

    # Make

    @classmethod
    def from_language_model(cls, config: EgmfConfig, **options: Any):
        r"""
        A new model of a configuration, whose language model has the weights that `config.language_model` names.

        Args:
            config: is left as it is; the model's own also describes the language model.
            options: `token`, `cache_dir`, `local_files_only`.

        Raises:
            InputError: if the language model cannot be used, or its tokenizer cannot write the answers.
            OSError: if its weights cannot be read.
        """
        if unknown := sorted(set(options) - set(ACCESS_OPTIONS)):
            raise InputError(f"Unknown option '{unknown[0]}'; expected one of {', '.join(ACCESS_OPTIONS)}")
        config = copy.deepcopy(config)
        language_model = fetch_language_model(config, options)
        if not config.train_language_model:
            config.language_model_fingerprint = language_model_fingerprint(language_model)
        model = cls(config, with_language_model=False)
        assert config.language_model is not None  # as `fetch_language_model` made sure
        tokenizer = load_tokenizer(config.language_model, {**options, "revision": config.language_model_revision})
        model._take(language_model, tokenizer)
        model._fit_scale()
        try_language_model(language_model, longest_prompt(language_model, model.config))
        model.prompts, model.answers  # noqa: B018  # raise now if the tokenizer cannot write them
        return model

    @classmethod
    def begin(cls, config):
        return cls.from_language_model(config)

    @classmethod
    def described(cls, config):
        config = copy.deepcopy(config)
        describe_language_model(config, {})
        assert config.language_model is not None  # as `describe_language_model` made sure
        if is_local(config.language_model):
            check_weight_files(config.language_model)
        with torch.device("meta"):
            model = cls(config)
        check_tokens(model.language_model, model.tokenizer)
        model.prompts, model.answers  # noqa: B018  # as `from_language_model` does, without weights
        return config

    @property
    def width(self) -> int:
        """Width W of the language model."""
        return width_of(self.config)

    def make_language_model(self, with_language_model: bool):
        """The end of a model's `__init__`: a language model with random weights, unless another one follows."""
        if with_language_model:
            self.language_model = build_language_model(self.config)
        self.post_init()
        if with_language_model:
            prepare_language_model(self.language_model, self.config)
            self._fit_scale()

    def _take(self, language_model: PreTrainedModel, tokenizer: Any):
        width = embedding_table(language_model).embedding_dim
        if width != self.width:
            raise InputError(
                f"The embeddings of the {language_model.config.model_type} language model have the width "
                f"{width}, its states {self.width}; expected the same"
            )
        self.language_model = language_model
        check_tokens(language_model, tokenizer)
        prepare_language_model(language_model, self.config)
        self.tokenizer = tokenizer
        self.train(self.training)

    @torch.no_grad()
    def _fit_scale(self):
        if self.config.use_pseudo_tokens and not is_meta(self.language_model) and not self.pseudo_tokens.scale.is_meta:
            self.pseudo_tokens.scale.fill_(embedding_scale(self.language_model))

    # Words

    @property
    def tokenizer(self) -> Any:
        """The language model's; that of `config.language_model`, if none was set."""
        if "tokenizer" not in self._words:
            if self.config.language_model is None:
                raise InputError("The model has no tokenizer, and its configuration names no language_model: set one")
            options = {"revision": self.config.language_model_revision}
            self._words["tokenizer"] = load_tokenizer(self.config.language_model, options)
        return self._words["tokenizer"]

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any):
        self._words.clear()
        self._words["tokenizer"] = tokenizer

    @property
    def _words(self) -> dict[str, Any]:
        return vars(self).setdefault("_made_words", {})

    @property
    def answers(self) -> Answers:
        """What can be answered."""
        return self._made("answers", lambda: Answers(self.config, self.tokenizer))

    @property
    def tree(self) -> LikelihoodTree:
        return self._made("tree", lambda: LikelihoodTree(self.answers.token_ids))

    @property
    def prompts(self) -> PromptWriter:
        """Writes the prompts; counts what is too long for the language model."""

        def make() -> PromptWriter:
            pseudo = self.config.num_pseudo_tokens if self.config.use_pseudo_tokens else 0
            longest = longest_prompt(self.language_model, self.config) - pseudo - self.tree.longest
            return PromptWriter(self.config, self.tokenizer, longest)

        return self._made("prompts", make)

    def _made(self, name: str, make) -> Any:
        if name not in self._words:
            self._words[name] = make()
        return self._words[name]

    def prompt_counts(self) -> dict[str, int]:
        return dataclasses.asdict(self.prompts.counts)

    def example_prompt(self, transcripts: Sequence[str | None] = ()) -> str:
        said = list(transcripts) or list(WORDINGS[self.config.language].example)
        pseudo = self.config.num_pseudo_tokens if self.config.use_pseudo_tokens else 0
        return self.prompts.as_text(said, f"<{pseudo} pseudo tokens>" if pseudo else "")

    def what_is_trained(self) -> list[str]:
        config, own = self.config, list(self.language_model.parameters())
        trained = sum(each.numel() for each in own if each.requires_grad)
        others = sum(each.numel() for each in self.parameters() if each.requires_grad) - trained
        adapter = 0 if config.lora is None else trained
        size = sum(each.numel() for each in own) - adapter
        how = "trained whole" if config.train_language_model else f"with LoRA of {adapter:,}" if adapter else "frozen"
        longest = longest_prompt(self.language_model, config)
        return [
            f"language model {config.language_model}: {size:,} parameters ({config.language_model_dtype}), {how}; "
            f"{others:,} others are trained",
            f"prompts in {WORDINGS[config.language].name}, of at most {longest:,} tokens with the answer and "
            f"{config.context_turns} earlier turns",
        ]

    # Run

    @property
    def trains_language_model(self) -> bool:
        return self.config.train_language_model or self.config.lora is not None

    def train(self, mode: bool = True):
        super().train(mode)
        if hasattr(self, "language_model") and not self.trains_language_model:
            self.language_model.eval()
        return self

    def answer_likelihoods(self, asked: AskedTurns, right: torch.Tensor | None = None) -> torch.Tensor:
        """The log-likelihood of each answer to each prompt (R, S, A), or of the right ones (R, S), the others 0."""
        keeps = not self.trains_language_model and self.config.pseudo_position == "last"
        reader = Reader(self.language_model, self.tree, self.config.rows_per_forward, keeps, self.prefix_store)
        return reader.answer_likelihoods(asked.prompts, asked.pseudo, right)

    def keep_prefixes(self, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> PrefixStore:
        r"""
        Keep what the language model reads before the pseudo tokens in a folder, and use it in every later epoch: then
        only the pseudo tokens and the answers are read. See [`PrefixStore`].

        Raises:
            InputError: if the language model is trained, or the pseudo tokens are first, so that it always differs; or
                if the folder holds something else.
        """
        if self.trains_language_model or self.config.pseudo_position != "last":
            raise InputError(
                "Only a language model that is not trained (lora null, train_language_model false) reads the same "
                "text the same way each time, and only with pseudo_position 'last'"
            )
        self.prefix_store = PrefixStore(folder, self.language_model, dtype)
        return self.prefix_store

    # Save and load

    def trained_state(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """The weights in `model.safetensors`: all but the language model's."""
        state = self.state_dict() if state_dict is None else state_dict
        return {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}

    def save_pretrained(self, save_directory, *args, state_dict=None, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.save_pretrained`]. `language_model/` gets the tokenizer, LoRA's weights in
        `adapter/`, and the weights of the language model if they were trained or `config.save_language_model` is set.
        """
        state = self.state_dict() if state_dict is None else state_dict
        if kwargs.get("is_main_process", True):
            own = {name.removeprefix(_PREFIX): values for name, values in state.items() if name.startswith(_PREFIX)}
            save_language_model(save_directory, self.language_model, self.tokenizer, self.config, own)
        super().save_pretrained(save_directory, *args, state_dict=self.trained_state(state), **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        r"""
        As [`~transformers.PreTrainedModel.from_pretrained`]. A language model that the checkpoint does not hold is
        loaded by its name and revision, which may be given as `language_model` and `language_model_revision`.

        Raises:
            InputError: naming the weights that do not fit.
            OSError: naming the file that is damaged, or the language model that cannot be loaded.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        place, dtype = pretrained_model_name_or_path, kwargs.get("dtype", kwargs.get("torch_dtype"))
        options = {name: kwargs[name] for name in (*ACCESS_OPTIONS, "revision", "subfolder") if name in kwargs}
        model, info = super().from_pretrained(
            place, *args, output_loading_info=True, with_language_model=False, **kwargs
        )
        options |= model.hub_options
        language_model = stored_language_model(place, model.config, dtype, options)
        model._take(language_model.to(model.device), stored_tokenizer(place, options))
        if model.config.lora is not None:
            fetch_lora(place, language_model, model.config, options)
        model.eval()
        return (model, info) if wants_info else model

    def load_trained_weights(self, folder: str | os.PathLike):
        """Load the weights of a checkpoint of this model. A language model that was not trained is left as it is."""
        stored = require_config(folder, {}).get("language_model_fingerprint")
        own = self.config.language_model_fingerprint
        if None not in (stored, own) and stored != own:
            raise InputError(
                f"'{folder}' was trained on other weights of the language model '{self.config.language_model}' than "
                "those that are there now; put them back, or start again in another folder"
            )
        with explained(folder, {}):
            state = load_file(os.path.join(folder, "model.safetensors"))
            adapter = None if self.config.lora is None else read_adapter(os.path.join(folder, FOLDER))
        expected = self.trained_state()
        if listed := differences(state, expected):
            raise InputError(f"'{folder}' is not a checkpoint of this model ({listed})")
        self.load_state_dict(state, strict=False)
        if adapter is not None:
            set_adapter_state(self.language_model, lora_of(self.config), adapter)
        elif self.config.train_language_model:
            read_language_model(self.language_model, folder)
