"""EGMF's training and scoring with language models of real sizes and random weights.

Letters: R turns of a step, L tokens of a turn's prompt, K nodes of the tree of answers, W width, V vocabulary.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gpu_measures import Device, table, training_step
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mister_e_hf.models.egmf.asked_turns import ask
from mister_e_hf.models.egmf.configuration_egmf import EgmfConfig
from mister_e_hf.models.egmf.modeling_egmf import EgmfModel
from mister_e_hf.vectors.collator import DialogueCollator

# The shapes of SmolLM2-135M and of Qwen2-1.5B.
SIZES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "Qwen2-1.5B": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
TINY = {
    "model_type": "llama",
    "vocab_size": 1500,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}
# How the language model is trained: not, with what is before the pseudo tokens kept on disk; or with LoRA.
MODES: dict[str, dict[str, Any]] = {"LoRA": {"lora": {}}, "frozen, kept prefix": {"lora": None}}
# Turns of a step, and how many the language model reads at once. More turns than that are computed in blocks, and
# again for their gradient.
STEPS = [(32, 32), (128, 128), (128, 32)]
LABELS = dict(enumerate(["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"]))
WORDS = (
    "you know I think that we should go there now but it was not what they said about him when she came home so well "
    "really never mind just tell me why all of this is happening again okay oh no yes right come on see her look here"
).split()
_PROMPT = (
    "Recognize the emotion of the current turn of this English dialogue: Earlier turns: Current turn: The emotion is "
    "(no audio) (no video) or"
).split()


def write_tokenizer(folder: Path, words: Sequence[str], special: Sequence[str], **named: str):
    """A tokenizer to which a word is a token, with special tokens that have names such as `pad_token`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f" {word}" for word in words] * 3, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


def write_language_model(folder: Path, size: dict[str, Any], device: torch.device):
    """A language model of a size with random weights, in bfloat16, and a tokenizer to which a word is a token."""
    words = [*WORDS, *_PROMPT, *LABELS.values()]
    write_tokenizer(folder, words, ["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    with device:
        config = transformers.AutoConfig.for_model(**size, **ids)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def dialogues(turns: int, width: int) -> dict[str, Any]:
    """A batch of dialogues of MELD's lengths with this many turns in all, of eight words on average."""
    generator = np.random.default_rng(0)
    lengths = json.loads((Path(__file__).parent / "dialogue_lengths.json").read_text(encoding="utf-8"))["meld"]
    rows, left = [], turns
    for length in lengths:
        count = min(length, left)
        left -= count
        vectors = torch.from_numpy(generator.standard_normal((2, count, width), dtype=np.float32))
        said = [" ".join(generator.choice(WORDS, generator.geometric(1 / 8))) for _ in range(count)]
        labels = torch.from_numpy(generator.integers(len(LABELS), size=count))
        rows.append(
            {"speech_embeddings": vectors[0], "text_embeddings": vectors[1], "transcripts": said, "labels": labels}
        )
        if not left:
            break
    return DialogueCollator(transcripts=True)(rows)


class Work:
    """The operations of a language model on a batch; a multiply-add counts 2, and what is not a product counts 0."""

    def __init__(self, model: EgmfModel, batch: dict[str, Any], trains: bool):
        masks = {name: batch.get(f"{name}_mask") for name in model.config.modalities}
        turns, _ = model.fuse({name: batch[f"{name}_embeddings"] for name in masks}, batch["attention_mask"], masks)
        places = range(turns.layout.count)
        prompts = ask(model.prompts, model.config.modalities, turns, batch["transcripts"], places)
        # training reads the right answer alone
        labels = turns.layout.flatten(batch["labels"]).tolist()
        nodes = [len(model.tree.answers[label]) if trains else len(model.tree.depths) for label in labels]
        self.tokens, pairs = 0, 0
        for prompt, own in zip(prompts, nodes, strict=True):
            before, after = len(prompt.before), len(prompt.after[0]) + model.config.num_pseudo_tokens
            longest = before + after
            pairs += longest * (longest + 1) // 2 + (own - 1) * longest
            self.tokens += longest + own - 1
            if model.prefix_store is not None:
                pairs -= before * (before + 1) // 2
                self.tokens -= before
        layers = model.language_model.base_model.layers
        linear = [module for module in layers.modules() if isinstance(module, torch.nn.Linear)]
        weights = sum(module.weight.numel() for module in linear)
        config = model.language_model.config
        attention = 4 * config.num_hidden_layers * config.hidden_size * pairs
        head = 2 * config.hidden_size * config.vocab_size * sum(nodes)
        self.operations = 2 * weights * self.tokens + attention + head
        if trains:  # what is frozen has a gradient of its input, but none of its weights
            trained = sum(module.weight.numel() for module in linear if module.weight.requires_grad)
            self.operations = 2 * self.operations + 2 * trained * self.tokens


def measure_steps(device: Device, model: EgmfModel, turns: int, rows: int, quick: bool) -> dict[str, Any]:
    """Seconds of a training step and of scoring, and the operations of both."""
    model.config.rows_per_forward = rows
    batch = {
        name: values.to(device.device) if isinstance(values, torch.Tensor) else values
        for name, values in dialogues(turns, model.config.speech_embedding_dim).items()
    }
    least, most = (0.0, 1) if quick else (1.5, 20)

    @torch.no_grad()
    def score():
        with torch.autocast(device.device.type, torch.bfloat16):
            return model(**{name: values for name, values in batch.items() if name != "labels"}).logits

    found: dict[str, Any] = {"turns": turns, "rows_per_forward": rows}
    for kind, call in (("training", training_step(model, batch)), ("scoring", score)):
        with torch.no_grad():
            work = Work(model, batch, trains=kind == "training")
        model.train(kind == "training")
        device.forget_peak()
        seconds = device.seconds(call, least, most)
        rates = {"turns_per_second": turns / seconds, "tokens_per_second": work.tokens / seconds}
        measured = {"seconds": seconds, **rates, "peak_bytes": device.peak_bytes()}
        found[kind] = {"tokens": work.tokens, "operations": work.operations, **measured}
    return found


def contestants(device: Device, quick: bool) -> Iterator[tuple[str, str, EgmfModel]]:
    """Language model, mode, and the model, one at a time."""
    fields = {"speech_embedding_dim": 1024, "text_embedding_dim": 1024, "hidden_size": 256}
    if quick:
        fields = {"speech_embedding_dim": 8, "text_embedding_dim": 8, "hidden_size": 16}
    for name, size in {"tiny": TINY}.items() if quick else SIZES.items():
        with tempfile.TemporaryDirectory() as place:
            write_language_model(Path(place) / "language_model", size, device.device)
            given = {"language_model": str(Path(place) / "language_model"), "language_model_dtype": "bfloat16"}
            for mode, changes in MODES.items():
                torch.manual_seed(0)
                config = EgmfConfig(id2label=LABELS, max_length=384, **fields, **given, **changes)
                model = EgmfModel.from_language_model(config).to(device.device)
                if changes["lora"] is None:
                    model.keep_prefixes(Path(place) / "prefixes", torch.bfloat16)
                yield name, mode, model
                del model


def measure_egmf(device: Device, rate: float, quick: bool) -> list[dict[str, Any]]:
    """A row for each language model, mode and step; a row whose step does not fit in memory is marked."""
    rows = []
    for name, mode, model in contestants(device, quick):
        for turns, at_once in [(4, 4), (8, 4)] if quick else STEPS:
            if not device.has_time:
                break
            own = {"language_model": name, "mode": mode}
            try:
                found = measure_steps(device, model, turns, at_once, quick)
            except torch.OutOfMemoryError:
                print(f"{name}, {mode}: {turns} turns, {at_once} at once, do not fit in memory")
                found = {"turns": turns, "rows_per_forward": at_once, "out_of_memory": True}
            for kind in {"training", "scoring"} & set(found):
                found[kind]["share_of_rate"] = found[kind]["operations"] / found[kind]["seconds"] / rate
            rows.append(own | found)
            model.zero_grad()
    print(_report([row for row in rows if "out_of_memory" not in row]))
    return rows


def _report(rows: list[dict[str, Any]]) -> str:
    def memory(row: dict[str, Any], kind: str) -> str:
        peak = row[kind]["peak_bytes"]
        return "" if peak is None else f"{peak / 2**30:.1f} GiB"

    columns: list[tuple[str, Any]] = [
        ("language model", lambda row: row["language_model"]),
        ("mode", lambda row: row["mode"]),
        ("turns", lambda row: str(row["turns"])),
        ("at once", lambda row: str(row["rows_per_forward"])),
    ]
    for kind in ("training", "scoring"):
        columns += [
            (f"{kind}, tokens a turn", lambda row, kind=kind: f"{row[kind]['tokens'] / row['turns']:.0f}"),
            ("turns/s", lambda row, kind=kind: f"{row[kind]['turns_per_second']:,.1f}"),
            ("of the rate", lambda row, kind=kind: f"{row[kind]['share_of_rate']:.1%}"),
            ("peak", lambda row, kind=kind: memory(row, kind)),
        ]
    return table(rows, columns)
