"""Real clips for the codec's tests, and a codec small enough to train in seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    NeuCodecConfig,
    NeuCodecModel,
    PreTrainedModel,
    Wav2Vec2BertConfig,
    Xcodec2Config,
    Xcodec2Model,
)

from tts_assets.codec.config import CodecArchitecture
from tts_assets.codec.model import Codec
from tts_assets.codec.xcodec2 import CompactXcodec2, build, calibrate
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.audio import Wave, read_wave
from tts_assets.corpora.samples import Sample, write_samples

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "examples/corpora/asterisk_en"
VENDORED = ROOT / "examples/codecs/announcer-16khz"


@pytest.fixture(autouse=True, scope="session")
def one_thread_a_rank() -> None:
    """As the launcher sets it for as many ranks as cores; the clips are short."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """Thirty utterances of one to two seconds, some of them validation utterances."""
    found = []
    for line in (CORPUS / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        path = CORPUS / row["wav_path"]
        if 1.0 <= row["duration"] <= 2.0:
            identity = sha256_file(path)[:16]
            found.append(
                Sample(
                    id=identity,
                    wav_path=str(path),
                    transcript=row["transcript"],
                    duration=row["duration"],
                    sample_rate=row["sample_rate"],
                    original_data={"audio_sha256": sha256_file(path)},
                )
            )
    return found[:30]


@pytest.fixture(scope="session")
def sample_list(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "kept.jsonl"
    write_samples(path, samples)
    return path


@pytest.fixture(scope="session")
def waves(samples: list[Sample]) -> list[Wave]:
    """Three clips of different lengths."""
    return [read_wave(Path(sample.wav_path), 16_000) for sample in samples[:3]]


@pytest.fixture(scope="session")
def speech(samples: list[Sample]) -> list[Wave]:
    """Thirty clips, 2,200 codes."""
    return [read_wave(Path(sample.wav_path), 16_000) for sample in samples]


def compact() -> CompactXcodec2:
    """A codec of the filterbank with random weights, whose latents spread over the codes."""
    model = build(CodecArchitecture(levels=(4, 4, 4, 4, 4, 4)), seed=0)
    noise = torch.randn(4, 16_000, generator=torch.Generator().manual_seed(0))
    calibrate(model, noise * torch.linspace(1e-3, 0.3, 4).unsqueeze(1))
    return model.eval()


@pytest.fixture(scope="session")
def vendored() -> Codec:
    return Codec.load(VENDORED)


@pytest.fixture(scope="session")
def tiny() -> CodecArchitecture:
    return CodecArchitecture(
        hidden=32, layers=1, heads=2, intermediate=32, semantic_hidden=32, levels=(5, 5, 5)
    )


PUBLISHED = {"xcodec2": (Xcodec2Config, Xcodec2Model), "neucodec": (NeuCodecConfig, NeuCodecModel)}


def small(**semantic: Any) -> dict[str, Any]:
    """Sizes of a small published codec; ``semantic`` are those of its semantic encoder."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    return {
        **sizes,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "encoder_hidden_size": 2,
        "semantic_model_config": Wav2Vec2BertConfig(**sizes, **semantic),
        "quantization_dim": 64,
    }


@torch.no_grad()
def published(kind: str, positions: str = "relative_key") -> PreTrainedModel:
    """A small model of transformers with random weights of gain 1 and biases other than zero."""
    make_config, make_model = PUBLISHED[kind]
    config = make_config(**small(num_hidden_layers=2, position_embeddings_type=positions))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_model(config)
        for module in model.modules():
            if isinstance(module, (nn.Conv1d, nn.Linear)):
                nn.init.normal_(module.weight, std=0.5 / math.sqrt(module.weight[0].numel()))
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.3)
    assert isinstance(model, PreTrainedModel)
    return model
