"""Which pretrained models stage 1 takes: those that are listed keep their promises, any other is tried or refused."""

import json

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel

from mister_e_hf import MisterEProcessor, UtteranceEncoder
from mister_e_hf.encoders.backbone_trial import try_backbone
from mister_e_hf.encoders.backbones import kind_of, supported_backbones
from support.tiny_backbones import (
    KINDS,
    LABELS,
    MORE,
    PICTURES,
    modality_of,
    noise,
    tiny_encoder,
    tiny_processor,
    tiny_tokenizer,
    turns_of,
    write_backbone,
)

MODALITIES = ("speech", "text", "visual")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {**SIZES, "vocab_size": 330}
WAVES = {"conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
WAVES |= {**SIZES, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}


def written(folder, config, tokenizer=True):
    """The folder of a pretrained model of this configuration, whose weights are far from neutral."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def test_every_listed_backbone_is_tested(base):
    tested = {modality: set() for modality in MODALITIES}
    for kind in KINDS + MORE + PICTURES:
        tested[modality_of(kind)].add(AutoConfig.from_pretrained(base(kind)).model_type)
    assert {modality: sorted(kinds) for modality, kinds in tested.items()} == {
        modality: supported_backbones(modality) for modality in MODALITIES
    }


@pytest.mark.parametrize("kind", MORE)  # the others: test_utterance_encoder.py
def test_a_turn_alone_and_in_a_batch(base, kind):
    encoder, processor = tiny_encoder(base(kind), kind, layer="weighted_sum"), tiny_processor(base(kind), kind)
    with torch.no_grad():
        together = encoder(**processor(turns_of(kind))).embeddings
        alone = torch.cat([encoder(**processor([turn])).embeddings for turn in turns_of(kind)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS + MORE if kind not in ("whisper", "qwen2_audio")])
def test_default_targets_of_lora_reach_every_module_that_they_name(base, kind):
    encoder = tiny_encoder(base(kind), kind, tuning="lora")
    encoder.train()(**tiny_processor(base(kind), kind)(turns_of(kind)), labels=torch.tensor([0, 1, 2])).loss.backward()
    adapters = {name: p for name, p in encoder.named_parameters() if "lora_" in name}
    assert adapters and all(parameter.grad.any() for parameter in adapters.values())


@pytest.mark.parametrize("kind", [kind for kind in KINDS + MORE if modality_of(kind) == "text"])
@pytest.mark.parametrize("most", [10**30, 12])
def test_the_longest_text_is_cut_and_counted(base, kind, most):
    folder = base(kind)
    tokenizer = tiny_tokenizer(model_max_length=most)
    config = AutoConfig.from_pretrained(folder)
    limit = min(most, kind_of("text", config.model_type).longest(config))
    texts = ["hello there " * (limit // 2), "no", "x " * (limit - 2)]
    made = MisterEProcessor.from_backbone(folder, "text", max_tokens=10**6)
    processor = MisterEProcessor("text", made.backbone_type, tokenizer=tokenizer, max_tokens=made.max_tokens)
    batch = processor(texts[:1] + texts[1:2])
    assert batch["input_ids"].shape == (2, limit) and processor.num_truncated == 1
    assert processor.sizes(texts[:2]) == batch["attention_mask"].sum(-1).tolist()
    if limit < 2000:
        with torch.no_grad():
            assert tiny_encoder(folder, kind)(**batch).embeddings.isfinite().all()
        longer = {name: torch.cat([value, value[:, -1:]], 1) for name, value in batch.items()}
        if most > limit:
            with pytest.raises(ValueError, match=rf"Texts of {limit + 1} tokens, but the .* takes {limit}"):
                tiny_encoder(folder, kind)(**longer)


REFUSED = {
    "encoder and decoder": (
        "text",
        lambda: transformers.T5Config(
            d_model=16, num_layers=1, num_heads=2, d_ff=16, d_kv=8, vocab_size=330, decoder_start_token_id=0
        ),
        "A t5 backbone cannot encode text: it is an encoder-decoder model",
    ),
    "speech to text": (
        "speech",
        lambda: transformers.Speech2TextConfig(
            vocab_size=50,
            encoder_layers=1,
            decoder_layers=1,
            d_model=16,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        ),
        "speech_to_text backbone cannot encode speech: it is an encoder-decoder",
    ),
    "text as speech": (
        "speech",
        lambda: transformers.BertConfig(**WORDS),
        "A bert backbone cannot encode speech: it takes input_ids, not input_values",
    ),
    "speech as text": (
        "text",
        lambda: transformers.HubertConfig(**WAVES),
        "A hubert backbone cannot encode text: it takes input_values, not input_ids",
    ),
    "whisper as text": (
        "text",
        lambda: transformers.WhisperConfig(
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            vocab_size=50,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        "A whisper backbone encodes speech, not text",
    ),
    "vision": (
        "text",
        lambda: transformers.ViTConfig(**SIZES),
        "A vit backbone cannot encode text: it takes pixel_values",
    ),
    "mel frames": (
        "speech",
        lambda: transformers.Wav2Vec2BertConfig(**SIZES, conv_depthwise_kernel_size=5),
        "it takes input_features, not input_values",
    ),
    "spectrograms": (
        "speech",
        lambda: transformers.ASTConfig(**SIZES),
        "A audio-spectrogram-transformer backbone cannot encode speech",
    ),
    "positions halved": (
        "speech",
        lambda: transformers.Wav2Vec2Config(**WAVES, add_adapter=True),
        "its output has fewer positions than its hidden states",
    ),
    "text and vision": (
        "text",
        lambda: transformers.CLIPConfig(
            text_config={**WORDS, "projection_dim": 8}, vision_config={**SIZES, "projection_dim": 8}
        ),
        "A clip backbone cannot encode text",
    ),
    "convolutions see padding": (
        "text",
        lambda: transformers.ConvBertConfig(**WORDS, embedding_size=16, head_ratio=2),
        r"batched with changes its states by \d.\de-0\d of their length",
    ),
    "mixing sees padding": (
        "text",
        lambda: transformers.FNetConfig(**{k: v for k, v in WORDS.items() if k != "num_attention_heads"}),
        "batched with changes its states by",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_encode_is_refused_when_an_encoder_is_made(tmp_path, case):
    modality, config, message = REFUSED[case]
    folder = written(tmp_path, config())
    with pytest.raises(ValueError, match=message):
        UtteranceEncoder.from_backbone(folder, modality, id2label=LABELS, tuning="frozen")


def test_the_wrong_modality_is_refused_by_processors_too(base):
    with pytest.raises(ValueError, match="A bert backbone cannot encode speech: it takes input_ids"):
        MisterEProcessor.from_backbone(base("bert"), "speech")
    with pytest.raises(ValueError, match="A whisper backbone encodes speech, not text"):
        MisterEProcessor.from_backbone(base("whisper"), "text")
    for make in (UtteranceEncoder.from_backbone, MisterEProcessor.from_backbone):
        with pytest.raises(ValueError, match="modality must be one of speech, text, visual, got 'video'"):
            make(base("bert"), "video")


def test_any_other_backbone_is_tried_once_and_that_is_said(tmp_path, caplog, monkeypatch):
    folder = written(tmp_path / "base", transformers.RoFormerConfig(**WORDS, embedding_size=16))
    monkeypatch.setattr(transformers.logging.get_logger("transformers"), "propagate", True)
    monkeypatch.setattr("mister_e_hf.encoders.backbone_trial.logger.propagate", True)
    encoder = UtteranceEncoder.from_backbone(folder, "text", id2label=LABELS, tuning="frozen", embedding_dim=4)
    assert "roformer is not among the backbones that are tested for text; two samples gave the same" in caplog.text
    caplog.clear()
    encoder.save_pretrained(tmp_path / "encoder")
    UtteranceEncoder.from_pretrained(tmp_path / "encoder")
    assert "roformer" not in caplog.text


def test_a_table_of_positions_shorter_than_is_said_is_refused(tmp_path):
    # As those that begin behind the index of padding, of a kind that is not known here to do so.
    folder = written(tmp_path, transformers.ErnieConfig(**WORDS, max_position_embeddings=30))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 30}))
    UtteranceEncoder.from_backbone(folder, "text", id2label=LABELS, tuning="frozen")
    model = AutoModel.from_pretrained(folder)
    model.config.max_position_embeddings = 40
    with pytest.raises(ValueError, match="says that it takes 40 tokens, but running so many fails"):
        try_backbone(model, "text")


def test_weights_that_are_not_finite_make_no_encoder(tmp_path):
    folder = write_backbone(tmp_path, "bert")
    model = AutoModel.from_pretrained(folder)
    model.encoder.layer[1].output.dense.weight.data[0, 0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="A bert backbone cannot encode text: its states are not finite"):
        tiny_encoder(folder, "bert")


def test_adapters_that_are_never_called_are_refused(tmp_path):
    # Of BERT's pooler nothing is used here.
    folder = write_backbone(tmp_path, "bert")
    with pytest.raises(ValueError, match=r"LoRA on 1 modules .* such as 'pooler.dense', would do nothing"):
        tiny_encoder(folder, "bert", tuning="lora", lora_target_modules=r"pooler\.dense")


def test_tokens_of_another_models_tokenizer_are_refused(base):
    encoder = tiny_encoder(base("bert"), "bert")
    with pytest.raises(ValueError, match="Token 330 is outside the vocabulary of the bert backbone, which has 330"):
        encoder(input_ids=torch.tensor([[2, 330, 3]]))


def test_sound_of_every_length_up_to_the_window(base):
    for kind in MORE[-3:]:
        encoder, processor = tiny_encoder(base(kind), kind), tiny_processor(base(kind), kind)
        with torch.no_grad():
            assert encoder(**processor([noise(0.001), noise(3)])).embeddings.isfinite().all()


def changed(path, **fields):
    settings = json.loads(path.read_text())
    settings["backbone_config"] |= fields
    path.write_text(json.dumps(settings | {"transformers_version": fields.get("transformers_version", "5.23.0")}))


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_a_fingerprint_depends_on_no_librarys_version(tmp_path, tuning):
    folder = write_backbone(tmp_path / "base", "bert")
    encoder = tiny_encoder(folder, "bert", tuning=tuning)
    first = encoder.fingerprint()
    encoder.save_pretrained(tmp_path / "encoder")
    path = tmp_path / "encoder" / "config.json"
    for fields in (
        {"transformers_version": "5.23.0"},
        {"transformers_version": "6.0.0", "a_new_field": {"of": "a later release"}, "_name_or_path": "elsewhere"},
        {"dtype": "torch.float32", "architectures": None, "use_cache": False, "id2label": {"0": "x"}},
    ):
        changed(path, **fields)
        assert UtteranceEncoder.from_pretrained(tmp_path / "encoder").fingerprint() == first, fields
    changed(path, hidden_act="relu")
    assert UtteranceEncoder.from_pretrained(tmp_path / "encoder").fingerprint() != first
    changed(path, hidden_act="gelu")
    half = UtteranceEncoder.from_pretrained(tmp_path / "encoder", dtype=torch.bfloat16)
    assert half.fingerprint() != first


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_causal_model_keeps_no_keys_and_values(model_type, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("keys and values are kept")

    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    backbone = transformers.AutoModel.from_config(config).eval()
    monkeypatch.setattr(transformers.cache_utils.DynamicLayer, "update", refuse)
    ids = torch.arange(6).expand(2, 6)
    states, mask = kind_of("text", model_type).run(backbone, {"input_ids": ids})
    assert len(states) == 3 and mask.shape == (2, 6)
