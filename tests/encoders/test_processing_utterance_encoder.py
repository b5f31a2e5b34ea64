import json
import logging
import math
import re
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from mister_e_hf import MisterEProcessor
from mister_e_hf.encoders.speech_backbones import num_windows, windows_of
from support.tiny_backbones import (
    KINDS,
    SPEECH,
    TEXT,
    TOKENS,
    WAVES,
    modality_of,
    noise,
    tiny_encoder,
    tiny_tokenizer,
    turns_of,
)

RATE = 16_000
SETTINGS = {
    "wavlm": {"window_seconds": 0.25},
    "whisper": {"window_seconds": 0.25, "trailing_silence": 0.5},
    "qwen2_audio": {"window_seconds": 0.25, "prompt": "Hear {audio} {now}"},
    "llama": {"prompt": "Ünd {dann}: „{text}“", "max_tokens": 40},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def processor(base):
    return lambda kind, **settings: MisterEProcessor.from_backbone(base(kind), modality_of(kind), **settings)


def text_processor(tokenizer=None, **settings) -> MisterEProcessor:
    return MisterEProcessor("text", "bert", tokenizer=tokenizer or tiny_tokenizer(), **settings)


def wave_processor(**settings) -> MisterEProcessor:
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    return MisterEProcessor("speech", "wavlm", feature_extractor=extractor, **settings)


def mel_processor(chunk_length: int = 30, **settings) -> MisterEProcessor:
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=chunk_length)
    return MisterEProcessor(
        "speech", "whisper", feature_extractor=extractor, **{"window_seconds": chunk_length, **settings}
    )


def tokens_of(processor: MisterEProcessor, row: torch.Tensor, mask: torch.Tensor) -> str:
    return processor.tokenizer.decode(row[mask])


# Saving and loading


def assert_same(one, other):
    assert set(one) == set(other)
    for name, values in one.items():
        assert values.dtype == other[name].dtype and torch.equal(values, other[name]), name


@kinds
def test_a_processor_comes_back(base, processor, kind, tmp_path):
    made = processor(kind, **SETTINGS.get(kind, {}))
    encoder = tiny_encoder(base(kind), kind)
    encoder.save_pretrained(tmp_path / "one")
    made.save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "checkpoint" / "encoder")
    for loaded in (
        MisterEProcessor.from_pretrained(tmp_path / "one"),
        AutoProcessor.from_pretrained(tmp_path / "one"),
        MisterEProcessor.from_pretrained(tmp_path / "checkpoint", subfolder="encoder"),
        AutoProcessor.from_pretrained(tmp_path / "checkpoint", subfolder="encoder"),
    ):
        assert type(loaded) is MisterEProcessor
        for name in ("modality", "backbone_type", "prompt", "max_tokens", "window_seconds", "trailing_silence"):
            assert getattr(loaded, name) == getattr(made, name), name
        assert_same(loaded(turns_of(kind)), made(turns_of(kind)))
    MisterEProcessor.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        same = path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
        assert same, path.name
    with torch.no_grad():
        encoder(**made(turns_of(kind)))  # which takes what it is given


def test_a_processor_does_not_hand_on_its_backbones_own(base, tmp_path):
    """Tokenizers of models of speech and language name a processor that would be taken for this one."""
    folder = tmp_path / "base"
    shutil.copytree(base("qwen2_audio"), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "Qwen2AudioProcessor"}))
    MisterEProcessor.from_backbone(folder, "speech").save_pretrained(tmp_path / "encoder")
    tiny_encoder(base("qwen2_audio"), "qwen2_audio").save_pretrained(tmp_path / "encoder")
    assert type(AutoProcessor.from_pretrained(tmp_path / "encoder")) is MisterEProcessor


def test_a_folder_without_a_processor_is_refused(base, tmp_path):
    tiny_encoder(base("bert"), "bert").save_pretrained(tmp_path)
    with pytest.raises(OSError, match="processor_config.json"):
        MisterEProcessor.from_pretrained(tmp_path)


def test_settings_are_those_of_the_backbone(base, processor):
    assert processor("whisper").feature_extractor.feature_size == 16
    assert processor("whisper").tokenizer is None and processor("bert").feature_extractor is None
    assert processor("qwen2_audio").tokenizer is not None


# What is refused


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="modality must be one of speech, text, visual, got 'video'"):
        MisterEProcessor("video", "bert")
    with pytest.raises(ValueError, match="needs the backbone's tokenizer"):
        MisterEProcessor("text", "bert")
    with pytest.raises(ValueError, match="needs the backbone's feature_extractor"):
        MisterEProcessor("speech", "wavlm")
    with pytest.raises(ValueError, match="needs the backbone's tokenizer"):
        MisterEProcessor("speech", "qwen2_audio", feature_extractor=WhisperFeatureExtractor())
    with pytest.raises(ValueError, match="Expected a backbone of 16000 Hz, got one of 8000 Hz"):
        MisterEProcessor("speech", "wavlm", feature_extractor=Wav2Vec2FeatureExtractor(sampling_rate=8000))
    for prompt in ("Emotion?", "{text} {text}", "{audio}"):
        with pytest.raises(ValueError, match=re.escape("prompt must hold {text} once")):
            text_processor(prompt=prompt)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        text_processor(max_tokens=0)
    for seconds in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="window_seconds must be over 0"):
            wave_processor(window_seconds=seconds)
    for seconds in (None, 30.5):
        with pytest.raises(ValueError, match="window_seconds must be over 0 and, for whisper, 30 at most"):
            mel_processor(window_seconds=seconds)
    for seconds in (-0.5, math.nan, math.inf):
        with pytest.raises(
            ValueError, match="trailing_silence must be None or a number of seconds that is not negative"
        ):
            mel_processor(trailing_silence=seconds)


def test_a_tokenizer_that_does_not_tell_places_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "<pad>": 1, "<s>": 2, "</s>": 3, "a": 4}))
    with pytest.raises(ValueError, match="Expected a fast tokenizer"):
        text_processor(Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")))


@pytest.mark.parametrize("turn", ["", "  \n", None, 5])
def test_a_turn_without_words_is_refused(turn):
    with pytest.raises(ValueError, match="Turn 1 of the batch has no words"):
        text_processor()(["hello", turn])


@pytest.mark.parametrize("turn", [[], np.zeros((2, 100)), 0.5])
def test_a_turn_without_samples_is_refused(turn):
    for processor in (wave_processor(), mel_processor()):
        with pytest.raises(ValueError, match=r"Turn 1 of the batch must be samples of shape \(S,\), got"):
            processor([noise(0.1), turn])


def test_a_batch_is_a_list_of_turns():
    with pytest.raises(ValueError, match="No turns given"):
        text_processor()([])
    with pytest.raises(ValueError, match="Expected a list of turns, got the single text 'hello'"):
        text_processor()("hello")


# Text


def test_tokens_are_the_tokenizers_own_padded_at_the_end():
    tokenizer = tiny_tokenizer()
    texts = ["hello there", "no", "what? {text} {} Ünd %s \\ </s> 🙂"]
    batch = text_processor(tokenizer)(texts)
    for row, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        assert batch["input_ids"][row, : len(ids)].tolist() == ids
        assert batch["attention_mask"][row].tolist() == [
            place < len(ids) for place in range(batch["input_ids"].shape[1])
        ]
        assert (batch["input_ids"][row, len(ids) :] == tokenizer.pad_token_id).all()
    assert torch.equal(batch["pooling_mask"], batch["attention_mask"])
    assert batch["input_ids"].shape[1] == max(len(tokenizer(text)["input_ids"]) for text in texts)


@pytest.mark.parametrize("names", [{"pad_token": None}, {"pad_token": None, "eos_token": None}])
def test_a_tokenizer_needs_no_token_for_padding(names):
    tokenizer = tiny_tokenizer(**names)
    batch = text_processor(tokenizer)(["hello there", "no"])
    expected = text_processor()(["hello there", "no"])
    assert_same(
        {**batch, "input_ids": batch["input_ids"] * batch["attention_mask"]},
        {**expected, "input_ids": expected["input_ids"] * expected["attention_mask"]},
    )
    assert tokenizer.pad_token is None  # it stays as it was


def test_a_tokenizer_that_pads_in_front_is_padded_at_the_end(tmp_path):
    tokenizer = tiny_tokenizer(padding_side="left")
    processor = text_processor(tokenizer, prompt="Say: {text}!")
    assert_same(processor(["hello there", "no"]), text_processor(prompt="Say: {text}!")(["hello there", "no"]))
    processor.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"


def test_a_tokenizer_that_was_saved_with_padding_and_a_limit_of_its_own():
    """As those of sentence-transformers are, which would cut without a word."""
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.enable_padding(length=50)
    tokenizer._tokenizer.enable_truncation(6)
    assert_same(text_processor(tokenizer)(TEXTS_OF_MANY_LENGTHS), text_processor()(TEXTS_OF_MANY_LENGTHS))


TEXTS_OF_MANY_LENGTHS = ["no " * count for count in range(1, 12)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_that_are_cut_are_counted_and_told(side, caplog):
    tokenizer = tiny_tokenizer(truncation_side=side)
    lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS_OF_MANY_LENGTHS]
    for limit in range(3, max(lengths) + 1):
        processor = text_processor(tokenizer, max_tokens=limit)
        cut = sum(length > limit for length in lengths)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                batch = processor(TEXTS_OF_MANY_LENGTHS)
        assert processor.num_truncated == 2 * cut
        assert batch["attention_mask"].sum(1).tolist() == [min(length, limit) for length in lengths]
        told = [record.getMessage() for record in caplog.records]
        assert told == [
            f"Texts truncated to {limit} tokens: {cut} ({total} so far)" for total in (cut, 2 * cut) if cut
        ]


def test_a_text_is_cut_where_the_backbone_ends():
    tokenizer = tiny_tokenizer(model_max_length=8)
    processor = text_processor(tokenizer, max_tokens=512)
    assert processor(["no " * 50])["input_ids"].shape == (1, 8)
    assert processor.num_truncated == 1


PROMPTS = [
    "Say: {text}!",
    "{text} <- what is felt?",
    "He said {text}",
    '{"said": "{text}", "felt": {}}',
    "{0} {a} %s {{{text}}} \\",
    "<s>Ünd „{text}“ 🙂</s>",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_utterances_own_tokens_alone_are_pooled(prompt):
    processor = text_processor(prompt=prompt)
    texts = ["hello there", "no", "{text} „x“ %s"]
    batch = processor(texts)
    for row, text in enumerate(texts):
        whole = tokens_of(processor, batch["input_ids"][row], batch["attention_mask"][row])
        assert prompt.replace("{text}", text) in whole
        # A token may hold the space before the text, or a character on both sides of its border.
        own = tokens_of(processor, batch["input_ids"][row], batch["pooling_mask"][row])
        assert text in own and len(own) <= len(text) + 2
        assert "<s>" not in own and "</s>" not in own


def test_a_prompt_counts_into_the_limit():
    processor = text_processor(prompt="Say: {text}", max_tokens=12)
    batch = processor(["no way " * 10, "no"])
    assert batch["input_ids"].shape == (2, 12) and processor.num_truncated == 1
    assert tokens_of(processor, batch["input_ids"][0], batch["pooling_mask"][0]).startswith(" no way")


# Sound


def test_windows_are_of_nearly_equal_length_and_hold_all_of_the_sound():
    for samples in (1, 400, 1599, 1600, 1601, 3200, 3201, 4801, 16_000, 16_001):
        sound = noise(samples / RATE)
        windows = windows_of(sound, 0.1)
        assert len(windows) == num_windows(samples, 0.1) == max(1, math.ceil(samples / 1600))
        assert np.array_equal(np.concatenate(windows), sound)
        sizes = [len(window) for window in windows]
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 1600


@pytest.mark.parametrize("kind", SPEECH)
def test_all_windows_are_there_and_in_order(processor, kind):
    made = processor(kind, window_seconds=0.1)
    sounds = [noise(0.05), noise(0.25, 1), noise(0.1, 2)]
    batch = made(sounds)
    assert batch["utterance_index"].tolist() == [0, 1, 1, 1, 2]
    rows = [made([window]) for sound in sounds for window in windows_of(sound, 0.1)]
    main = "input_values" if kind in WAVES else "input_features"
    mask = "feature_attention_mask" if kind == "qwen2_audio" else "attention_mask"
    for row, alone in enumerate(rows):
        width = int(alone[mask].sum())
        found, expected = batch[main][row, ..., :width], alone[main][0, ..., :width]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert batch[mask][row].sum() == width


def test_a_sound_is_never_cut():
    """Neither at the border of a window nor by the tokens that stand for it."""
    whisper = mel_processor(chunk_length=2)
    for samples in (31_999, 32_000, 32_001, 64_000, 64_001, 100_000):
        batch = whisper([noise(samples / RATE)])
        windows = math.ceil(samples / 32_000)
        assert batch["input_features"].shape == (windows, 16, 200)
        # Each window's last frame may be one that has begun.
        assert samples / 160 <= batch["pooling_mask"].sum() < samples / 160 + windows
    wave = wave_processor(window_seconds=None)
    assert wave([noise(3.3)])["attention_mask"].sum() == round(3.3 * RATE)


def test_a_model_of_speech_and_language_hears_its_whole_window(processor):
    made = processor("qwen2_audio", max_tokens=5)
    batch = made([noise(30.0), noise(1.0)])
    counts = (batch["input_ids"] == TOKENS.index("<|AUDIO|>")).sum(1).tolist()
    assert counts == [750, 25] and made.num_truncated == 0


def test_sound_is_cropped_at_random_on_request_alone():
    processor = wave_processor(window_seconds=0.1)
    processor.feature_extractor.do_normalize = False
    short, long = noise(0.1), noise(1.0, 1)
    whole = processor([short, long])
    assert whole["utterance_index"].tolist() == [0] + [1] * 10
    starts = set()
    for seed in range(8):
        crops = [
            processor([short, long], random_crop=True, generator=torch.Generator().manual_seed(seed)) for _ in range(2)
        ]
        assert_same(*crops)
        batch = crops[0]
        assert batch["utterance_index"].tolist() == [0, 1] and batch["attention_mask"].all()
        assert np.array_equal(batch["input_values"][0], short)
        crop = batch["input_values"][1].numpy()
        places = [start for start in range(len(long) - 1599) if np.array_equal(long[start : start + 1600], crop)]
        assert len(places) == 1
        starts |= set(places)
    assert len(starts) > 4
    torch.manual_seed(3)
    first = processor([long], random_crop=True)
    torch.manual_seed(3)
    assert_same(processor([long], random_crop=True), first)


def test_a_random_crop_reaches_both_ends():
    sound = np.arange(1603, dtype=np.float32)
    starts = {int(windows_of(sound, 0.1, True, torch.Generator().manual_seed(seed))[0][0]) for seed in range(60)}
    assert starts == {0, 1, 2, 3}


def test_samples_are_normalised_without_their_padding():
    processor = wave_processor()
    sounds = [3 * noise(0.1) + 1, noise(0.3, 1), noise(0.001, 2)]
    batch = processor(sounds)
    for row, sound in enumerate(sounds):
        expected = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
        np.testing.assert_allclose(batch["input_values"][row, : len(sound)], expected, atol=1e-5)
        assert not batch["input_values"][row, len(sound) :].any()
        # A sound that is shorter than the first position ends in silence.
        assert batch["attention_mask"][row].sum() == max(len(sound), 400)


def test_lists_and_tensors_are_sounds_too():
    processor = wave_processor()
    sound = noise(0.1)
    for other in (sound.tolist(), torch.tensor(sound), sound.astype(np.float64)):
        assert_same(processor([other]), processor([sound]))


@pytest.mark.parametrize("seconds", [1 / RATE, 0.009, 0.1, 0.1234, 29.99, 30.0])
def test_mel_frames_are_the_extractors_own(processor, seconds):
    sound = noise(seconds)
    whisper = processor("whisper")
    whole = whisper.feature_extractor(sound, sampling_rate=RATE, return_tensors="pt").input_features
    batch = whisper([sound])
    assert torch.equal(batch["input_features"], whole) and batch["attention_mask"].all()
    frames = min(3000, max(4, math.ceil(len(sound) / 160)))
    assert batch["pooling_mask"].sum() == frames
    for silence in (0.0, 0.07, 1.0):
        less = processor("whisper", trailing_silence=silence)([sound, noise(0.05, 1)])
        width = less["input_features"].shape[-1]
        attended = min(3000, frames + round(100 * silence))
        assert width == min(3000, attended + 4 + attended % 2) or seconds < 0.05
        assert less["attention_mask"][0].sum() == attended
        assert torch.equal(less["pooling_mask"][:1], batch["pooling_mask"][:, :width])
        torch.testing.assert_close(less["input_features"][0], whole[0, :, :width], rtol=0, atol=1e-6)
    audio = processor("qwen2_audio")([sound])
    width = audio["input_features"].shape[-1]
    torch.testing.assert_close(audio["input_features"][0], whole[0, :, :width], rtol=0, atol=1e-6)
    assert audio["feature_attention_mask"].sum() == frames


def test_loudness_of_another_sound_changes_no_frame(processor):
    quiet, loud = 1e-4 * noise(0.2), 10 * noise(0.4, 1)
    for settings in ({}, {"trailing_silence": 0.3}):
        made = processor("whisper", **settings)
        alone, together = made([quiet])["input_features"][0], made([quiet, loud])["input_features"][0]
        assert torch.equal(alone, together[:, : alone.shape[1]])


def test_audio_tokens_are_as_many_as_positions(processor):
    made = processor("qwen2_audio")
    for samples in (1, 641, 1600, 4799, 4800, 4801, 5200):
        batch = made([noise(samples / RATE)])
        frames = int(batch["feature_attention_mask"].sum())
        _, expected = _positions_of_qwen2_audio(frames)
        assert (batch["input_ids"] == TOKENS.index("<|AUDIO|>")).sum() == expected >= 1


def _positions_of_qwen2_audio(frames: int) -> tuple[int, int]:
    """By the convolution (kernel 3, stride 2, padding 1) and the pooling over two of its tower."""
    convolved = (frames + 2 - 3) // 2 + 1
    return convolved, (convolved - 2) // 2 + 1


@pytest.mark.parametrize("prompt", ["<|audio_bos|>{audio}<|audio_eos|> {felt}?", "{audio}", "{} {0} {audio} 🙂 %s"])
def test_a_prompt_around_sound_is_taken_as_it_is(processor, prompt):
    made = processor("qwen2_audio", prompt=prompt)
    batch = made([noise(0.2), noise(0.1)])
    for row, count in enumerate((batch["input_ids"] == TOKENS.index("<|AUDIO|>")).sum(1).tolist()):
        written = tokens_of(made, batch["input_ids"][row], batch["attention_mask"][row])
        assert written == f"<s>{prompt.replace('{audio}', '<|AUDIO|>' * count)}</s>"
    with pytest.raises(ValueError, match=re.escape("prompt must hold {audio} once")):
        processor("qwen2_audio", prompt="{text}")


def test_seconds_that_are_heard(processor):
    assert wave_processor().sizes([3.5]) == processor("qwen2_audio").sizes([3.5]) == [3.5]
    assert mel_processor().sizes([0.1, 30.0, 30.1, 61.0]) == [30.0, 30.0, 60.0, 90.0]
    assert mel_processor(trailing_silence=1.0).sizes([45.0]) == [47.0]
    assert mel_processor(chunk_length=5).sizes([6.0]) == [10.0]


def test_a_batch_goes_to_a_device(processor):
    assert processor("wavlm")([noise(0.1)]).to("cpu")["attention_mask"].device.type == "cpu"


# Real models


@pytest.mark.shared
def test_real_processors_come_back_and_are_the_models_own(shared_dir, tmp_path):
    whisper = shared_dir / "models" / "whisper-tiny.en"
    made = MisterEProcessor.from_backbone(whisper, "speech")
    made.save_pretrained(tmp_path / "speech")
    tiny_encoder(whisper, "whisper").save_pretrained(tmp_path / "speech")
    loaded = AutoProcessor.from_pretrained(tmp_path / "speech")
    assert type(loaded) is MisterEProcessor
    sound = noise(1.3)
    own = AutoFeatureExtractor.from_pretrained(whisper)(sound, sampling_rate=RATE, return_tensors="pt").input_features
    assert torch.equal(loaded([sound])["input_features"], own)

    minilm = shared_dir / "models" / "all-MiniLM-L6-v2"
    made = MisterEProcessor.from_backbone(minilm, "text")
    texts = ["You did what?", "no " * 300]
    own = AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")
    batch = made(texts)
    assert torch.equal(batch["input_ids"], own["input_ids"]) and made.num_truncated == 0
    assert torch.equal(batch["attention_mask"], own["attention_mask"].bool())
    assert made(["no " * 1000])["input_ids"].shape == (
        1,
        AutoModel.from_pretrained(minilm).config.max_position_embeddings,
    )
    assert made.num_truncated == 1
    assert len(TEXT) == 6
