"""Turns with audio and without text are transcribed."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    pipeline,
)

from mister_e_hf import (
    load_audio,
)
from support.small_checkpoint import WIDTH
from support.small_encoders import LABELS, RATE
from support.small_pipeline import TASK, assert_same


def write_recogniser(folder: Path) -> Path:
    """A tiny Whisper with random weights that spells twelve letters at most, as a pretrained one would lie there."""
    special = "endoftext startoftranscript en translate transcribe startoflm startofprev nospeech notimestamps".split()
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    letters = [number for token, number in vocabulary.items() if re.fullmatch("[a-z]", token)]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_tokens([AddedToken(f"<|{name}|>", special=True) for name in special])
    first_time = len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>") for step in range(1501)])
    end, start, past, no_times = (tokenizer.convert_tokens_to_ids(f"<|{special[place]}|>") for place in (0, 1, 6, 8))
    sizes = {
        f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")
    }
    tokens = {"pad_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer), num_mel_bins=16, d_model=16, init_std=1.0, **sizes, **tokens, bos_token_id=end
        )
    )
    model.model.decoder.embed_tokens.weight.data[first_time:] = 0
    model.generation_config = GenerationConfig(
        max_length=12,
        **tokens,
        no_timestamps_token_id=no_times,
        prev_sot_token_id=past,
        is_multilingual=False,
        return_timestamps=False,
        max_initial_timestamp_index=50,
        suppress_tokens=[number for number in range(first_time) if number not in letters],
    )
    for part in (model, tokenizer, WhisperFeatureExtractor(feature_size=16)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    return pipeline("automatic-speech-recognition", model=write_recogniser(tmp_path_factory.mktemp("recogniser")))


def test_turns_without_text_are_transcribed(pipe, recogniser, sounds, clip, folder):
    speaking = pipeline(TASK, model=pipe.model, transcriber=recogniser)
    long = np.tile(clip, 35)
    turns = [
        {"audio": sounds / "clip.wav", "text": "so you see"},
        {"audio": sounds / "clip.wav"},
        {"text": "well"},
        {"audio": sounds / "long.wav", "start": 4, "text": " "},
        {"audio": sounds / "clip.wav", "text_embedding": [0.5] * WIDTH},
        {"audio": sounds / "clip.wav", "speech_embedding": [0.5] * WIDTH},
        {"audio": long, "sampling_rate": RATE},
        {},
    ]
    found = speaking(turns)
    assert [number for number, turn in enumerate(found) if "text" in turn] == [1, 3, 5, 6]
    texts = {number: found[number]["text"] for number in (1, 3, 5, 6)}
    assert all(text and text.strip() == text for text in texts.values())
    assert texts[1] == texts[5] != texts[3] and len(texts[6]) > 12  # longer than one window of 30 s
    expected = recogniser({"raw": load_audio(sounds / "long.wav", start=4), "sampling_rate": RATE})["text"]
    assert texts[3] == expected.strip()
    given = [turn | {"text": texts[number]} if number in texts else turn for number, turn in enumerate(turns)]
    assert_same(found, pipe(given))
    by_name = pipeline(TASK, model=pipe.model, transcriber=recogniser.model.config._name_or_path)
    assert [turn.get("text") for turn in by_name(turns[:4])] == [turn.get("text") for turn in found[:4]]


def test_a_stream_and_a_recording_are_transcribed(causal, recogniser, sounds):
    speaking = pipeline(TASK, model=causal.model, transcriber=recogniser)
    segments = [(0, 1), (2, 3, "well"), (4, 5)]
    whole = speaking({"audio": sounds / "long.wav", "segments": segments})
    assert ["text" in turn for turn in whole] == [True, False, True]
    stream = speaking.stream()
    turns = [dict(zip(("start", "end", "text"), segment, strict=False)) for segment in segments]
    found = [stream({"audio": sounds / "long.wav"} | turn) for turn in turns]
    assert [turn.get("text") for turn in found] == [turn.get("text") for turn in whole]
    assert_same(found, whole)


def letters_and_spaces(text: str) -> list[str]:
    return re.sub("[^a-z ]", "", text.lower().replace("\x92", "'")).split()


@pytest.mark.slow
@pytest.mark.shared
def test_whisper_hears_what_is_said_in_real_clips(pipe, shared_dir):
    with (shared_dir / "data" / "meld_raw" / "test_sent_emo.csv").open(newline="", encoding="utf-8") as file:
        rows = {f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}": row["Utterance"] for row in csv.DictReader(file)}
    clips = sorted((shared_dir / "data" / "meld_clips").glob("*.wav"))
    whisper = str(shared_dir / "models" / "whisper-tiny.en")
    recogniser = pipeline("automatic-speech-recognition", model=whisper, dtype=torch.float32)
    found = pipeline(TASK, model=pipe.model, transcriber=recogniser)([{"audio": path} for path in clips])
    shares = []  # of the words said, how many were heard, wherever
    for path, turn in zip(clips, found, strict=True):
        said, heard = letters_and_spaces(rows[path.stem]), letters_and_spaces(turn["text"])
        shares.append(len([word for word in said if word in heard]) / len(said))
        assert turn["label"] in LABELS and turn["gate"]["speech"] > 0 and turn["gate"]["text"] > 0
    assert len(shares) == 4 and np.mean(shares) > 0.9, shares
