"""The packaged tiny.en in transformers: the same weights give the same words."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

from tts_assets.audio_models.transcription import Transcriber, TransformersTranscriber
from tts_assets.audio_models.wer import corpus_wer, match
from tts_assets.audio_models.whisper import packaged_model
from tts_assets.core.audio import Clip

Arrays = dict[str, NDArray[np.float32]]
HALF = 4  # CTranslate2's number of float16
SOT, EOT, NO_TIMESTAMPS = 50257, 50256, 50362  # of the English models
NORMS = {"gamma": "weight", "beta": "bias"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged CTranslate2 model as a folder of transformers."""
    source, folder = packaged_model(), tmp_path_factory.mktemp("whisper")
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIZES.items()}
    config = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        decoder_start_token_id=SOT,
        bos_token_id=EOT,
        eos_token_id=EOT,
        pad_token_id=EOT,
        **sizes,
    )
    whisper = WhisperForConditionalGeneration(config)
    missing = whisper.load_state_dict(dict(renamed(source / "model.bin")), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["proj_out.weight"], [])
    whisper.tie_weights()
    given = json.loads((source / "config.json").read_text())
    whisper.generation_config = GenerationConfig(
        decoder_start_token_id=SOT,
        eos_token_id=EOT,
        pad_token_id=EOT,
        forced_decoder_ids=None,
        no_timestamps_token_id=NO_TIMESTAMPS,
        is_multilingual=False,
        return_timestamps=False,
        suppress_tokens=given["suppress_ids"],
        begin_suppress_tokens=given["suppress_ids_begin"],
        max_length=448,
    )
    whisper.save_pretrained(folder)
    tokenizer = WhisperTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


SIZES = {"layers": 4, "attention_heads": 6, "ffn_dim": 1536}


@pytest.mark.slow
def test_same_transcripts_as_the_packaged_model(
    model: Path, recordings: dict[str, tuple[str, Clip]]
) -> None:
    kept = [(text, (c.wave, c.rate)) for text, c in recordings.values() if c.seconds > 2][:4]
    texts, clips = zip(*kept, strict=True)
    transcripts = TransformersTranscriber(str(model), batch_size=3)(clips)
    same = Transcriber(beam_size=1)(clips)
    assert (
        corpus_wer(match(text, words) for text, words in zip(texts, transcripts, strict=True))
        <= 0.06
    )
    assert corpus_wer(match(a, b) for a, b in zip(same, transcripts, strict=True)) <= 0.03


def test_an_empty_clip_has_an_empty_transcript(model: Path) -> None:
    assert TransformersTranscriber(str(model))([(np.zeros(0, np.float32), 16_000)]) == [""]


def test_an_english_model_refuses_another_language(model: Path) -> None:
    with pytest.raises(ValueError, match=r"knows English only.*'es'"):
        TransformersTranscriber(str(model))([(np.ones(16_000, np.float32), 16_000)], ["es"])


def renamed(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a CTranslate2 Whisper under the names of transformers."""
    for name, array in weights(path).items():
        side, *parts = name.split("/")
        place = f"model.{side}"
        if parts[0].startswith("layer_") and parts[0] != "layer_norm":
            place += f".layers.{parts.pop(0).removeprefix('layer_')}"
        for key, value in renamed_part(parts, array):
            yield f"{place}.{key}", torch.from_numpy(value.copy())


def renamed_part(
    parts: list[str], array: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    block, kind = parts[0], parts[-1]
    kind = NORMS.get(kind, kind)
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}.get(block)
    if block == "position_encodings":
        yield "embed_positions.weight", array
    elif block == "embeddings":
        yield "embed_tokens.weight", array
    elif block == "ffn":
        names = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}
        yield f"{names[parts[1]]}.{kind}", array
    elif attention is None:
        yield f"{block}.{kind}", array
    elif parts[1] == "layer_norm":
        yield f"{attention}_layer_norm.{kind}", array
    else:
        fused = {
            ("self_attn", "linear_0"): "qkv",
            ("encoder_attn", "linear_0"): "q",
            ("encoder_attn", "linear_1"): "kv",
        }.get((attention, parts[1]))
        names = [f"{letter}_proj" for letter in fused] if fused else ["out_proj"]
        for name, part in zip(names, np.split(array, len(names)), strict=True):
            if (name, kind) != ("k_proj", "bias"):  # zeros: Whisper has none
                yield f"{attention}.{name}.{kind}", part


def weights(path: Path) -> Arrays:
    """The float arrays of a ``model.bin``."""
    found: Arrays = {}
    with path.open("rb") as stream:
        number(stream, "I")
        text(stream)
        number(stream, "I")
        for _ in range(number(stream, "I")):
            name = text(stream)
            shape = [number(stream, "I") for _ in range(number(stream, "B"))]
            kind, size = number(stream, "B"), number(stream, "I")
            data = stream.read(size)
            if kind == HALF:
                found[name] = np.frombuffer(data, np.float16).astype(np.float32).reshape(shape)
    return found


def text(stream: BufferedReader) -> str:
    return stream.read(number(stream, "H")).rstrip(b"\0").decode()


def number(stream: BufferedReader, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", stream.read(struct.calcsize(f"<{kind}")))[0])
