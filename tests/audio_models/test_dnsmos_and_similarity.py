"""DNSMOS and the speaker encoder on real clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.speaker_similarity import (
    OnnxEncoder,
    SpeakerEncoder,
    SpeakerSimilarity,
    XVectorEncoder,
    filter_banks,
)
from tts_assets.core.audio import Clip
from tts_assets.core.config import ConfigError
from tts_assets.speakers.config import encoder_digest
from tts_assets.speakers.encoder import open_voices

Recordings = dict[str, tuple[str, Clip]]


def noise(seconds: float) -> np.ndarray:
    samples = int(16_000 * seconds)
    return (0.1 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


@pytest.mark.slow
def test_a_recording_scores_higher_than_with_noise(recordings: Recordings) -> None:
    clip = recordings["conf-invalid"][1]
    score = DnsmosScorer()
    clean, noisy = score(clip.wave, clip.rate), score(clip.wave + noise(clip.seconds), clip.rate)
    assert clean is not None
    assert noisy is not None
    assert clean.p808 > 3.3
    assert clean.p808 > noisy.p808 + 0.5
    assert clean.overall > noisy.overall
    assert clean == score(clip.wave, clip.rate)
    assert score(clip.wave[:800], clip.rate) is None


def test_the_same_speaker_is_more_similar_than_a_lower_voice(recordings: Recordings) -> None:
    reference, other = recordings["agent-incorrect"][1], recordings["conf-invalid"][1]
    similarity = SpeakerSimilarity(SpeakerEncoder(), [(reference.wave, reference.rate)])
    same = similarity(other.wave, other.rate)
    lower = similarity(other.wave, 10_000)  # played slower: a lower voice
    assert same is not None
    assert lower is not None
    assert same > 0.8
    assert same > lower + 0.1
    assert similarity(np.zeros(16_000, dtype=np.float32), 16_000) is None


def test_silent_references_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the 1 reference clips"):
        SpeakerSimilarity(SpeakerEncoder(), [(np.zeros(16_000, dtype=np.float32), 16_000)])


def test_a_folder_with_an_x_vector_model(recordings: Recordings, tmp_path: Path) -> None:
    """A small WavLM of random weights: one embedding a clip, as transformers' class gives it."""
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(16, 16, 16, 16, 32),
        xvector_output_dim=16,
    )
    model = WavLMForXVector(config).eval()
    features = Wav2Vec2FeatureExtractor(do_normalize=True)
    for part in (model, features):
        part.save_pretrained(tmp_path)
    assert len(encoder_digest(tmp_path)) == 64
    encoder = open_voices(str(tmp_path))
    assert isinstance(encoder, XVectorEncoder)
    clip = recordings["conf-invalid"][1]
    embedding = encoder.embed(clip.wave, clip.rate)
    inputs = features(clip.wave, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).embeddings[0].numpy()
    assert embedding is not None and embedding.shape == (16,)
    assert np.allclose(embedding, expected / np.linalg.norm(expected), atol=1e-5)
    silence = np.zeros(16_000, np.float32)
    found = encoder.embed_all(
        [(clip.wave, clip.rate), (clip.wave[:7_999], clip.rate), (silence, 16_000)]
    )
    assert found[0] is not None and np.array_equal(found[0], embedding)
    assert found[1:] == [None, None]


def test_a_folder_with_damaged_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["WavLMForXVector"]}')
    with pytest.raises(ConfigError, match="is incomplete or damaged"):
        open_voices(str(tmp_path))  # a download that was interrupted
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    WavLMConfig(architectures=["WavLMForXVector"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(ConfigError, match="is incomplete or damaged"):
        open_voices(str(tmp_path))


def test_filter_banks_are_those_of_kaldi() -> None:
    """The fourth frame of a sine, every tenth band, as kaldi-native-fbank 1.23.0 computes it."""
    sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1600) / 16_000)
    bands = filter_banks(sine.astype(np.float32))
    assert bands.shape == (8, 80)
    known = [14.1787, 14.0867, 14.8323, 12.9070, 11.8650, 11.6149, 11.0711, 10.6917]
    assert np.allclose(bands[3, ::10], known, atol=1e-3)


def test_an_encoder_of_wespeaker(recordings: Recordings, tmp_path: Path) -> None:
    """An ONNX file of the same interface: the standard deviation of the bands, projected."""
    weights = np.random.default_rng(0).standard_normal((80, 16)).astype(np.float32)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        encoder (float[1, frames, 80] feats, float[80, 16] weights) => (float[1, 16] embs) {
            squares = Mul(feats, feats)
            mean = ReduceMean <axes = [1], keepdims = 0> (squares)
            deviation = Sqrt(mean)
            embs = MatMul(deviation, weights)
        }"""
    )
    model.graph.input.pop()
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    path = tmp_path / "encoder.onnx"
    onnx.save(model, path)
    assert len(encoder_digest(path)) == 64
    encoder, clip = open_voices(str(path)), recordings["conf-invalid"][1]
    assert isinstance(encoder, OnnxEncoder)
    expected = filter_banks(clip.wave).std(axis=0) @ weights
    short, silence = clip.wave[:7_999], np.zeros(16_000, np.float32)
    found = encoder.embed_all([(wave, 16_000) for wave in (clip.wave, short, silence)])
    assert found[0] is not None and found[1:] == [None, None]
    assert np.allclose(found[0], expected / np.linalg.norm(expected), atol=1e-4)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="is damaged, or no ONNX file"):
            open_voices(str(path))
    other = onnx.ModelProto.FromString(whole)
    other.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 40
    onnx.save(other, path)
    with pytest.raises(ConfigError, match=r"is damaged|feats, of 80 bands"):
        open_voices(str(path))
    model.graph.input[0].name = model.graph.node[0].input[0] = model.graph.node[0].input[1] = "x"
    onnx.save(model, path)
    with pytest.raises(ConfigError, match=r"maps \['x'\] to \['embs'\]"):
        open_voices(str(path))
