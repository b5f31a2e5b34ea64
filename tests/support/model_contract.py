"""What every conversation model keeps, as checks of one model by its registered name.

A check is a function of the model's name and a folder; [`CHECKS`] is all of them.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.modalities import MODALITIES
from mister_e_hf.base.part_weights import GATE, PART_WEIGHTS, WEIGHT_FIELDS
from mister_e_hf.models.registry import entry, entry_of
from mister_e_hf.models.turns import DialogueCache
from support.tiny_language_models import language_model_fields

LABELS = {0: "anger", 1: "joy", 2: "neutral"}
WIDTHS = {"speech": 5, "text": 4, "visual": 3}
SMALL = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "context_num_layers": 2,
    "fusion_num_layers": 2,
    "attention_dim": 6,
    "gate_hidden_size": 4,
}
LENGTHS = (5, 1, 7, 2)
Batch = dict[str, Any]


def small_config(name: str, **changes):
    """Configuration of a registered model, small enough for any test."""
    kind = entry(name).config_class()
    widths = {modality.width: WIDTHS[key] for key, modality in MODALITIES.items()}
    known = {field: value for field, value in (SMALL | widths).items() if field in kind.own_fields()}
    if "language_model" in kind.own_fields():
        known |= language_model_fields()
    return kind(**{**known, "id2label": LABELS, **changes})


def small_model(name: str, dtype: torch.dtype = torch.float64, **changes):
    """In evaluation mode, with no parameter and no buffer at its neutral value."""
    torch.manual_seed(0)
    return away_from_neutral(entry(name).model_class()(small_config(name, **changes)), dtype)


def away_from_neutral(model, dtype: torch.dtype):
    """The model in evaluation mode, with no parameter and no buffer at its neutral value."""
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    for module in model.modules():
        if hasattr(module, "set_statistics"):
            module.set_statistics(0.3 * torch.randn_like(module.mean), 0.5 + torch.rand_like(module.std))
    return model.to(dtype).eval()


def modalities_of(config) -> dict[str, str]:
    """The modalities that the model takes, whether it reads them or not, by name."""
    return {name: modality for name, modality in MODALITIES.items() if hasattr(config, modality.width)}


def small_batch(
    config, lengths: Sequence[int] = LENGTHS, dtype: torch.dtype = torch.float64, absent: float = 0.3, seed: int = 0
) -> Batch:
    """Dialogues of these lengths, padded at the end; each modality of a turn is absent with probability `absent`."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    real = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    batch: Batch = {"attention_mask": real}
    for modality in modalities_of(config).values():
        width = getattr(config, modality.width)
        batch[modality.embeddings] = torch.randn(*shape, width, generator=generator).to(dtype)
        batch[modality.mask] = real & (torch.rand(shape, generator=generator) >= absent)
    batch["labels"] = torch.randint(config.num_labels, shape, generator=generator).masked_fill(~real, -100)
    if config.reads_transcripts:
        batch["transcripts"] = [["yes " * (turn + row) for turn in range(shape[1])] for row in range(shape[0])]
    return batch


def rows_of(batch: Batch, rows: Sequence[int], turns: int | None = None) -> Batch:
    """Some dialogues of a batch, and of each its first turns."""
    return {
        name: [values[row][:turns] for row in rows] if isinstance(values, list) else values[list(rows), :turns]
        for name, values in batch.items()
    }


def spread(batch: Batch, places: Sequence[Sequence[int]], total: int, content: float) -> Batch:
    """The same dialogues with their turns at these places, and `content` in padding and in absent vectors."""
    wide: Batch = {}
    for name, values in batch.items():
        if isinstance(values, list):
            wide[name] = [["padding"] * total for _ in values]
            fill = values
        else:
            fill = content if values.is_floating_point() else 1 if name == "labels" else name != "attention_mask"
            wide[name] = torch.full((len(values), total, *values.shape[2:]), fill, dtype=values.dtype)
        for row, where in enumerate(places):
            for turn, place in enumerate(where):
                wide[name][row][place] = values[row][turn]
    for name in MODALITIES:
        if f"{name}_embeddings" in wide:
            wide[f"{name}_embeddings"][wide["attention_mask"] & ~wide[f"{name}_mask"]] = content
    return wide


def outputs_of(model, batch: Batch) -> dict[str, torch.Tensor]:
    """The tensors (B, T, ...) of the model's common view, by name."""
    with torch.no_grad():
        view = model.view(model(**batch))
    found = {"logits": view.logits, **{f"head {name}": logits for name, logits in (view.head_logits or {}).items()}}
    weights = {field: getattr(view, field) for field in WEIGHT_FIELDS}
    return found | {name: values for name, values in weights.items() if values is not None}


def streamed(model, batch: Batch, sizes: Sequence[int]) -> dict[str, torch.Tensor]:
    """The outputs (1, T, ...) of a batch of one dialogue whose turns are given so many at a time."""
    past, start, found = DialogueCache(), 0, []
    with torch.no_grad():
        for size in sizes:
            found.append(model(**{name: values[:, start : start + size] for name, values in batch.items()}, past=past))
            start += size
            assert past.num_turns == start
    assert start == batch["speech_embeddings"].shape[1]
    return {name: torch.cat([output[name] for output in found], dim=1) for name in found[0]}


def assert_streams(model):
    """A causal model gives in a stream what it gives of the whole dialogue, whatever pieces come."""
    batch = small_batch(model.config, [9])
    batch = {name: values for name, values in batch.items() if name != "labels"}
    with torch.no_grad():
        whole = dict(model(**batch))
    for sizes in ([1] * 9, [4, 1, 4], [1, 8]):
        assert_same(streamed(model, batch, sizes), whole)


def gradients_of(model, *batches: Batch, **options) -> dict[str, torch.Tensor]:
    """Gradients of the loss, added up over batches."""
    model.zero_grad()
    for batch in batches:
        model(**batch, **options).loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-10):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# The checks


def view_has_the_declared_heads(name: str, folder: Path):
    model = small_model(name)
    config, batch = model.config, small_batch(model.config)
    output = model(**batch)
    view = model.view(output)
    assert entry_of(config) is entry(name) and config.model_type == entry(name).model_type
    assert view.logits is output.logits and view.loss is output.loss and view.loss.shape == ()
    assert view.logits.shape == (4, 7, 3)
    assert tuple(view.head_logits or ()) == tuple(config.heads)
    assert all(logits.shape == (4, 7, 3) for logits in (view.head_logits or {}).values())
    for kind in PART_WEIGHTS:
        weights, parts = getattr(view, kind.field), getattr(config, kind.parts)
        assert weights is None or weights.shape == (4, 7, len(parts))
        assert kind is GATE or (weights is None) == (not parts)
    real = batch["attention_mask"]
    seen = real & torch.stack([batch[MODALITIES[each].mask] for each in config.modalities]).any(0)
    for key, values in outputs_of(model, batch).items():
        answered = seen if key in WEIGHT_FIELDS and key != GATE.field else real
        assert (values[~answered] == 0).all() and values[answered].any(-1).all()
        if key in WEIGHT_FIELDS:
            torch.testing.assert_close(values.sum(-1), answered.to(values))
    assert model(**{**batch, "labels": None}).loss is None
    assert set(model.loss_terms(output, batch["labels"], None)) <= set(model.loss_term_weights)
    parts = model.loss_parts(output)
    assert not parts or torch.allclose(sum(parts.values()), output.loss)


def class_says_what_it_is(name: str, folder: Path):
    model = entry(name).model_class()
    assert model.title == entry(name).title and model.method == entry(name).method
    assert all(isinstance(text, str) and text for text in (model.title, model.method))
    taken = inspect.signature(model.forward).parameters
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    config = small_config(name)
    for modality in modalities_of(config).values():
        assert {modality.embeddings, modality.mask} <= set(taken)
    assert ("transcripts" in taken) == config.reads_transcripts
    assert config.task == "classification"
    assert entry(name).streams or not config.streams


def padding_changes_nothing(name: str, folder: Path):
    """Wherever it is and whatever it and absent vectors hold."""
    model = small_model(name)
    batch, total = small_batch(model.config), 10
    expected, gradients = outputs_of(model, batch), gradients_of(model, batch)
    loss = model(**batch).loss
    generator = torch.Generator().manual_seed(4)
    patterns = {
        "after": [[*range(7)]] * 4,
        "before": [[*range(total - 7, total)]] * 4,
        "inside": [[0, *range(total - 6, total)]] * 4,
        "irregular": [sorted(torch.randperm(total, generator=generator)[:7].tolist()) for _ in range(4)],
    }
    for places, content in zip(patterns.values(), (0.0, 1e30, -math.inf, math.nan), strict=True):
        wide = spread(batch, places, total, content)
        found = outputs_of(model, wide)
        gathered = {
            key: torch.stack([values[row][where] for row, where in enumerate(places)]) for key, values in found.items()
        }
        assert_same(gathered, expected)
        torch.testing.assert_close(model(**wide).loss, loss, rtol=0, atol=1e-10)
        assert_same(gradients_of(model, wide), gradients)


def dialogue_is_the_same_alone_and_in_any_order(name: str, folder: Path):
    model = small_model(name)
    batch = small_batch(model.config)
    together = outputs_of(model, batch)
    order = [2, 0, 3, 1]
    assert_same(outputs_of(model, rows_of(batch, order)), {key: values[order] for key, values in together.items()})
    assert_same({"loss": model(**rows_of(batch, order)).loss}, {"loss": model(**batch).loss})
    for row, length in enumerate(LENGTHS):
        alone = outputs_of(model, rows_of(batch, [row], length))
        assert_same(alone, {key: values[[row], :length] for key, values in together.items()})


def micro_batches_add_up(name: str, folder: Path):
    model = small_model(name, class_weights={"joy": 2.0})
    batch = small_batch(model.config)
    batch["labels"][0, 2] = -100
    whole, count = gradients_of(model, batch), (batch["labels"] != -100).sum()
    parts = [rows_of(batch, [row]) for row in range(4)]
    for items in (count, int(count)):
        assert_same(gradients_of(model, *parts, num_items_in_batch=items), whole)
        assert_same({"loss": model(**batch, num_items_in_batch=items).loss}, {"loss": model(**batch).loss})


def class_weights_weigh_turns(name: str, folder: Path):
    batch = small_batch(small_config(name))
    batch["labels"].masked_fill_(batch["attention_mask"], 1)
    plain, doubled = (gradients_of(small_model(name, class_weights=w), batch) for w in (None, {"joy": 2.0}))
    only = small_model(name, class_weights={"joy": 0.0})
    assert any(not torch.allclose(doubled[key], plain[key]) for key in plain)
    for key in only.loss_parts(only(**batch)) or ():
        assert only.loss_parts(only(**batch))[key] == 0


def labels_that_cannot_be_are_refused(name: str, folder: Path):
    model = small_model(name)
    batch = small_batch(model.config)
    for labels in (batch["labels"] + 3, batch["labels"].double(), batch["labels"][:, :3]):
        with pytest.raises(InputError, match="labels"):
            model(**{**batch, "labels": labels})


def without_a_label_the_loss_is_zero_with_a_graph(name: str, folder: Path):
    model = small_model(name)
    batch = small_batch(model.config)
    batch["labels"][:] = -100
    assert model(**batch).loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients_of(model, batch).values())


def padding_alone_takes_part_with_zeros(name: str, folder: Path):
    for content in (0.0, math.nan):
        model = small_model(name).train()
        batch = small_batch(model.config)
        batch["attention_mask"][:] = False
        for modality in modalities_of(model.config).values():
            batch[modality.embeddings][:] = content
        output = model(**batch, num_items_in_batch=5)
        view = model.view(output)
        # a model that is trained on the right answers alone has no logits here
        found = [values for values in (view.logits, *(view.head_logits or {}).values()) if values is not None]
        assert output.loss.item() == 0 and all((values == 0).all() for values in found)
        # the Trainer's further terms depend on these, too
        (output.loss + sum(values.sum() for values in found)).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and (parameter.grad == 0).all(), key


def every_parameter_gets_a_gradient(name: str, folder: Path):
    for absent in (0.3, 0.0):
        model = small_model(name).train()
        for key, gradient in gradients_of(model, small_batch(model.config, absent=absent)).items():
            assert gradient.isfinite().all()
            # a bias of keys raises all scores of a turn alike, which the softmax does not see
            unused = key.endswith("key.bias") or absent == 0.0 and "null" in key
            assert gradient.any() or unused, key


def embeddings_left_out_are_absent(name: str, folder: Path):
    model = small_model(name)
    batch = small_batch(model.config)
    for modality in modalities_of(model.config).values():
        masked = {**batch, modality.mask: torch.zeros_like(batch["attention_mask"])}
        assert_same(outputs_of(model, {**masked, modality.embeddings: None}), outputs_of(model, masked), 0.0)
        with pytest.raises(
            InputError, match=f"{modality.mask} is true at some turns, but {modality.embeddings} is None"
        ):
            model(**{**batch, modality.embeddings: None})
        changed = {**batch, modality.embeddings: batch[modality.embeddings] + 1}
        read = not torch.equal(model(**changed).logits, model(**batch).logits)
        assert read == (modality.name in model.config.modalities)
    masks = {modality.mask for modality in modalities_of(model.config).values()}
    everything = {key: values for key, values in small_batch(model.config, [4, 4], absent=0.0).items()}
    without = {key: values for key, values in everything.items() if key not in {*masks, "attention_mask"}}
    assert_same(outputs_of(model, without), outputs_of(model, everything), 0.0)
    nothing = {**batch, **{mask: torch.zeros_like(batch["attention_mask"]) for mask in masks}}
    assert all(values.isfinite().all() for values in outputs_of(model, nothing).values())


def masks_of_numbers_are_booleans(name: str, folder: Path):
    model = small_model(name)
    batch = small_batch(model.config)
    numbers = {
        key: values.long() if isinstance(values, torch.Tensor) and values.dtype == torch.bool else values
        for key, values in batch.items()
    }
    assert_same(outputs_of(model, numbers), outputs_of(model, batch), 0.0)


def inputs_that_do_not_fit_are_refused(name: str, folder: Path):
    model = small_model(name)
    batch = small_batch(model.config)
    taken = modalities_of(model.config)
    given = {modality.embeddings: None for modality in taken.values()}
    wrong: dict[str, dict[str, Any]] = {
        f"{type(model).__name__} needs at least one of {', '.join(given)}": given,
        "attention_mask must have shape": {"attention_mask": torch.ones(4, 8)},
        "at least 1": {key: torch.zeros(2, 0, WIDTHS[key.partition("_")[0]]) for key in given},
    }
    for key, modality in taken.items():
        wrong |= {
            rf"{modality.embeddings} must have shape \(B, T, {WIDTHS[key]}\)": {
                modality.embeddings: torch.zeros(4, 7, 9)
            },
            rf"{modality.embeddings} must have shape": {modality.embeddings: torch.zeros(4, WIDTHS[key])},
            "agree in B and T": {modality.embeddings: torch.zeros(4, 6, WIDTHS[key])},
            f"{modality.mask} must have shape": {modality.mask: torch.ones(4)},
        }
    for message, changes in wrong.items():
        with pytest.raises(ValueError, match=message):
            model(**{**batch, **changes})
    for misspelt in ("speech_embedding", "attention_masks", "input_ids", "speaker"):
        with pytest.raises(TypeError, match=misspelt):
            model(**batch, **{misspelt: batch["attention_mask"]})


def one_turn_is_a_dialogue(name: str, folder: Path):
    model = small_model(name)
    output = model(**small_batch(model.config, [1]))
    assert output.logits.shape == (1, 1, 3) and output.logits.isfinite().all() and output.loss.isfinite()


def autocast_gives_a_finite_loss_and_gradient(name: str, folder: Path):
    model = small_model(name, torch.float32)
    batch = small_batch(model.config, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(output.logits.float(), model(**batch).logits, rtol=0, atol=0.2)


def few_dialogues_are_learned_by_heart(name: str, folder: Path):
    known = entry(name).config_class().own_fields()
    dropouts = {field: 0.0 for field in known if field.endswith("dropout")}
    model = small_model(name, torch.float32, **dropouts).train()
    batch = small_batch(model.config, [4, 2, 3], dtype=torch.float32, absent=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scored = batch["attention_mask"]
    for _ in range(200):
        optimizer.zero_grad()
        output = model(**batch)
        logits = output.logits
        if logits is None:  # of a model that is trained on the right answers alone
            with torch.no_grad():
                logits = model.eval()(**batch).logits
            model.train()
        if (logits.argmax(-1) == batch["labels"])[scored].all():
            return
        output.loss.backward()
        optimizer.step()
    raise AssertionError("not learned within 200 steps")


def configuration_survives_its_file(name: str, folder: Path):
    config = small_config(name, feature_clip=3.0, class_weights={"joy": 2.0}, calibration_temperature=1.5)
    config.save_pretrained(folder)
    again = AutoConfig.from_pretrained(folder)
    assert type(again) is type(config)
    for field in (*config.own_fields(), "id2label", "label2id"):
        assert getattr(again, field) == getattr(config, field), field
    for field in ("feature_clip", "calibration_temperature"):
        with pytest.raises(Exception, match=field):
            small_config(name, **{field: -1.0})
    with pytest.raises(InputError, match="has no field 'hiden_size'"):
        small_config(name, hiden_size=3)


def loaded_model_is_bit_equal(name: str, folder: Path):
    model = small_model(name, torch.float32)
    model.save_pretrained(folder)
    written = {path.name for path in folder.iterdir() if path.suffix != ".py"}
    declared = {pattern.partition("/")[0] for pattern in model.checkpoint_files}
    assert {"config.json", "model.safetensors"} <= written <= {"config.json", "model.safetensors", *declared}
    assert (folder / f"{type(model).__module__.rpartition('.')[2]}.py").is_file()
    batch = small_batch(model.config, dtype=torch.float32)
    for load in (AutoModel.from_pretrained, type(model).from_pretrained):
        again = load(folder)
        assert type(again) is type(model) and not again.training
        assert_same(again.state_dict(), model.state_dict(), 0.0)
        assert_same(outputs_of(again, batch), outputs_of(model, batch), 0.0)
    half = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    torch.testing.assert_close(half(**batch).logits.float(), model(**batch).logits, rtol=0, atol=0.2)


def weights_that_do_not_fit_are_refused(name: str, folder: Path):
    small_model(name, torch.float32).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"of another shape: .*head\.bias.*ignore_mismatched_sizes"):
        AutoModel.from_pretrained(folder, id2label={0: "calm", 1: "tense"})
    with pytest.raises(ValueError, match="of another shape: .*text_input.mean"):
        AutoModel.from_pretrained(folder, text_embedding_dim=9)


def new_classes_start_the_heads_alone(name: str, folder: Path):
    model = small_model(name, torch.float32)
    model.save_pretrained(folder)
    before = model.state_dict()
    for labels in (["calm", "tense"], ["a", "b", "c"]):
        again = AutoModel.from_pretrained(folder, id2label=dict(enumerate(labels)), ignore_mismatched_sizes=True)
        changed = {
            key
            for key, value in again.state_dict().items()
            if value.shape != before[key].shape or not torch.equal(value, before[key])
        }
        assert changed == {key for key in before if key.startswith("gate.") or ".head." in f".{key}"}
        assert again(**small_batch(again.config, dtype=torch.float32)).logits.shape[-1] == len(labels)


def meta_device_loses_nothing(name: str, folder: Path):
    model = small_model(name, torch.float32)
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    empty.load_state_dict(model.state_dict(), assign=True)
    batch = small_batch(model.config, dtype=torch.float32)
    assert_same(outputs_of(empty.eval(), batch), outputs_of(model, batch), 0.0)


def a_stream_gives_what_the_whole_dialogue_gives(name: str, folder: Path):
    """If the model streams; it does not unless it is causal."""
    if not entry(name).streams:
        return
    given = {"modalities": tuple(MODALITIES)} if "modalities" in entry(name).config_class().own_fields() else {}
    assert_streams(small_model(name, causal=True, **given))
    model = small_model(name)
    with pytest.raises(InputError, match="Only a causal model can take turns one by one"):
        model(**small_batch(model.config, [3]), past=DialogueCache())


CHECKS: tuple[Callable[[str, Path], None], ...] = (
    view_has_the_declared_heads,
    class_says_what_it_is,
    padding_changes_nothing,
    dialogue_is_the_same_alone_and_in_any_order,
    micro_batches_add_up,
    class_weights_weigh_turns,
    labels_that_cannot_be_are_refused,
    without_a_label_the_loss_is_zero_with_a_graph,
    padding_alone_takes_part_with_zeros,
    every_parameter_gets_a_gradient,
    embeddings_left_out_are_absent,
    masks_of_numbers_are_booleans,
    inputs_that_do_not_fit_are_refused,
    one_turn_is_a_dialogue,
    a_stream_gives_what_the_whole_dialogue_gives,
    autocast_gives_a_finite_loss_and_gradient,
    few_dialogues_are_learned_by_heart,
    configuration_survives_its_file,
    loaded_model_is_bit_equal,
    weights_that_do_not_fit_are_refused,
    new_classes_start_the_heads_alone,
    meta_device_loses_nothing,
)
