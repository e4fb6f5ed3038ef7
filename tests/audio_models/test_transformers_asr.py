"""ASR models of transformers beside Whisper: tiny random models of the real classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import (
    CanaryConfig,
    CanaryForConditionalGeneration,
    CanaryProcessor,
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetForTDT,
    ParakeetProcessor,
    ParakeetTDTConfig,
    ParakeetTokenizer,
    PreTrainedTokenizerFast,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)

from tts_assets.audio_models.transcription import Clip, TransformersTranscriber, open_transcriber
from tts_assets.audio_models.whisper import (
    check_transcribes,
    model_folder,
    pinned_whisper,
    whisper_identity,
)
from tts_assets.core.config import ConfigError

LETTERS = [" ", *ascii_lowercase]
ENCODER: dict[str, Any] = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 32, "subsampling_conv_channels": 8},
}
CANARY_TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "<start><{{ part['source_language'] }}><{{ part['target_language'] }}>{% endif %}{% endfor %}"
    "{% endfor %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% else %}<bos_audio><audio><eos_audio>{% endif %}{% endfor %}{% endfor %}"
)
CLIP_SECONDS = (0.7, 1.3)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    noise = np.random.default_rng(0)
    return [
        (noise.normal(0, 0.1, int(seconds * 16_000)).astype(np.float32), 16_000)
        for seconds in CLIP_SECONDS
    ]


def characters(special: Sequence[str]) -> tuple[Tokenizer, dict[str, int]]:
    """A tokenizer of single letters; the special tokens come first."""
    vocabulary = {sign: number for number, sign in enumerate([*special, *LETTERS])}
    raw = Tokenizer(BPE(vocabulary, [], unk_token=special[0]))
    raw.add_special_tokens(list(special))
    raw.decoder = decoders.Fuse()
    return raw, vocabulary


def parakeet_ctc(folder: Path) -> Path:
    raw, vocabulary = characters(["<pad>"])
    config = ParakeetCTCConfig(
        vocab_size=len(vocabulary), pad_token_id=0, encoder_config=ParakeetEncoderConfig(**ENCODER)
    )
    ParakeetForCTC(config).save_pretrained(folder)
    tokenizer = ParakeetTokenizer(tokenizer_object=raw, pad_token="<pad>")
    ParakeetProcessor(ParakeetFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def parakeet_tdt(folder: Path) -> Path:
    raw, vocabulary = characters(["<pad>", "<blank>"])
    config = ParakeetTDTConfig(
        vocab_size=len(vocabulary),
        pad_token_id=0,
        blank_token_id=1,
        decoder_hidden_size=16,
        num_decoder_layers=1,
        encoder_config=ParakeetEncoderConfig(**ENCODER),
    )
    model = ParakeetForTDT(config)
    first = config.vocab_size  # the logits of the durations are no tokens
    durations = list(range(first, first + len(config.durations)))
    model.generation_config.update(decoder_start_token_id=1, suppress_tokens=durations)
    model.save_pretrained(folder)
    tokenizer = ParakeetTokenizer(tokenizer_object=raw, pad_token="<pad>")
    ParakeetProcessor(ParakeetFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def canary(folder: Path) -> Path:
    raw, vocabulary = characters(["<pad>", "<end>", "<start>", "<en>", "<de>"])
    size: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    config = CanaryConfig(
        **size,
        decoder_start_token_id=2,
        encoder_config={**ENCODER, "num_mel_bins": 80},
        decoder_config={
            **size,
            **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
            **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16},
        },
    )
    CanaryForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
    processor = CanaryProcessor(
        ParakeetFeatureExtractor(), tokenizer, chat_template=CANARY_TEMPLATE
    )
    processor.save_pretrained(folder)
    return folder


def qwen(folder: Path) -> Path:
    special = ["<pad>", "<end>", "<audio>", "<bos_audio>", "<eos_audio>", "<asr_text>"]
    raw, vocabulary = characters(special)
    config = Qwen3ASRConfig(
        audio_token_id=2,
        timestamp_token_id=0,
        pad_token_id=0,
        eos_token_id=[1],
        audio_config={
            **{"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32},
            **{"d_model": 32, "output_dim": 32, "downsample_hidden_size": 8},
        },
        text_config={
            **{"vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 32},
            **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
            **{"head_dim": 16, "pad_token_id": 0, "eos_token_id": 1},
        },
    )
    model = Qwen3ASRForConditionalGeneration(config)
    model.generation_config.update(suppress_tokens=list(range(len(special) + 1)))
    model.save_pretrained(folder)
    audio = {"audio_token": "<audio>", "audio_bos_token": "<bos_audio>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<end>",
        extra_special_tokens={**audio, "audio_eos_token": "<eos_audio>"},
    )
    processor = Qwen3ASRProcessor(
        Qwen3ASRFeatureExtractor(), tokenizer, chat_template=QWEN_TEMPLATE
    )
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("build", [parakeet_ctc, parakeet_tdt, canary, qwen])
def test_a_model_transcribes_by_its_own_class(
    build: Callable[[Path], Path], clips: list[Clip], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    folder = build(tmp_path)
    model = open_transcriber(f"transformers:{folder}", batch_size=1)
    assert isinstance(model, TransformersTranscriber)
    assert type(model.model).__name__ == model.architecture
    transcripts = model(clips)
    assert transcripts[:1] == model(clips[:1], ["en-GB"]), "the transcripts are deterministic"
    assert all(set(text) <= set(LETTERS) for text in transcripts), "no prompt, no special tokens"
    assert any(transcripts)
    assert model([(np.zeros(0, np.float32), 16_000)]) == [""]


def test_parakeet_merges_repeated_tokens_of_its_logits(clips: list[Clip], tmp_path: Path) -> None:
    torch.manual_seed(1)
    folder = parakeet_ctc(tmp_path)
    wave, rate = clips[1]
    inputs = ParakeetProcessor.from_pretrained(folder)([wave], sampling_rate=rate)
    with torch.inference_mode():
        best = ParakeetForCTC.from_pretrained(folder).eval()(**inputs).logits[0].argmax(-1).tolist()
    merged = [n for n, before in zip(best, [None, *best], strict=False) if n not in (before, 0)]
    text = "".join(LETTERS[number - 1] for number in merged).strip()
    assert TransformersTranscriber(str(folder))([clips[1]]) == [text]


def test_the_language_reaches_the_prompt(clips: list[Clip], tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = TransformersTranscriber(str(canary(tmp_path)), language="de")
    inputs, _ = model._inputs([clips[0][0]], ["de"])
    assert inputs["decoder_input_ids"].tolist() == [[2, 4, 4]]
    assert model(clips) == model(clips, ["de", "de"])
    with pytest.raises(ValueError, match="does not know the language 'ja'"):
        model(clips, ["de", "ja"])


def test_parakeet_is_taken_as_english(clips: list[Clip], tmp_path: Path) -> None:
    model = TransformersTranscriber(str(parakeet_ctc(tmp_path)))
    with pytest.raises(ValueError, match=r"knows English only.*'de'"):
        model(clips, ["en", "de"])


def test_a_model_that_is_no_asr_model_here_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConfigError, match=r"Wav2Vec2ForCTC.*not run as an ASR model.*ParakeetForCTC"
    ):
        TransformersTranscriber(str(tmp_path))


def test_weights_of_another_class_are_refused(tmp_path: Path) -> None:
    """The folder of a CTC model whose configuration says that it is a transducer."""
    parakeet_tdt(tmp_path / "tdt")
    folder = parakeet_ctc(tmp_path / "ctc")
    config = (tmp_path / "tdt" / "config.json").read_text()
    (folder / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=r"no weights of \[.*decoder"):
        TransformersTranscriber(str(folder))


def test_a_model_of_transformers_is_named_by_its_prefix(tmp_path: Path) -> None:
    name = f"transformers:{tmp_path}"
    (tmp_path / "config.json").write_text("{}")
    assert pinned_whisper(name) == name
    identity = whisper_identity(name)
    (tmp_path / "config.json").write_text('{"more": 1}')
    assert identity.startswith("transformers:") and whisper_identity(name) != identity
    check_transcribes(name, "de", "evaluation.whisper")
    with pytest.raises(ValueError, match="needs a CTranslate2 model"):
        model_folder(name, Path())
