"""Training of X-Codec-2 as transformers publishes it, with small random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModel, Wav2Vec2BertConfig, Wav2Vec2BertModel, Xcodec2Model

from tests.codec.conftest import published, small
from tests.support.codec_training import opened, write
from tests.support.interrupting import assert_same_bytes_after_a_stop
from tts_assets.codec.backends import save_codec
from tts_assets.codec.config import CodecArchitecture, CodecProgram, CodecRecipe, SemanticConfig
from tts_assets.codec.model import Codec
from tts_assets.codec.original import PublishedCodec
from tts_assets.codec.train import codec_trainer, main
from tts_assets.codec.xcodec2 import CompactXcodec2, build, centre_latents
from tts_assets.core.audio import Wave
from tts_assets.core.program import read_metrics

SEMANTIC = SemanticConfig(features="codec")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model: Any = published("xcodec2")
    noise = torch.randn(4, 16_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # otherwise all clips have the same few codes
        centre_latents(model.quantizer.project_in, PublishedCodec(model).eval().latents(noise))
    model.save_pretrained(folder)
    return folder


def recipe(base: Path | None, **changes: Any) -> CodecRecipe:
    values: dict[str, Any] = {
        "corpora": {"asterisk_en": 1.0},
        "base": base,
        "steps": 3,
        "batch_seconds": 2,
        "window_seconds": (1,),
        "warmup": 1,
        "adversarial": None,
        "eval_every": 100,
        "save_every": 100,
        "semantic": SEMANTIC,
    }
    return CodecRecipe(**values | changes)


def test_training_computes_what_inference_computes(base: Path, waves: list[Wave]) -> None:
    codec, inference = PublishedCodec.open(base).eval(), Codec.load(base)
    for wave in waves:
        clip = wave[: len(wave) // 320 * 320]
        with torch.no_grad():
            quantized, codes = codec.quantize(codec.latents(torch.from_numpy(clip)[None]))
            made = codec.waves(quantized)[0].numpy()
        (wanted,) = inference.encode([clip])
        assert len(np.unique(wanted)) > 10
        assert np.array_equal(codes[0, :, 0].numpy(), wanted)
        assert np.abs(made - inference.decode([wanted])[0]).max() < 1e-5


@pytest.mark.slow
def test_a_published_codec_is_continued(tmp_path: Path, base: Path, sample_list: Path) -> None:
    def prepared(folder: Path) -> CodecProgram:
        return write(folder, recipe(base), sample_list)

    parts = assert_same_bytes_after_a_stop(tmp_path, prepared, codec_trainer, main, after=2)
    assert all(step["semantic"] > 0 for step in read_metrics(parts / "metrics.jsonl"))
    before, after = (load_file(path / "model.safetensors") for path in (base, parts / "result"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert not [name for name in changed if name.startswith("semantic_encoder.")]
    for part in ("semantic_adapter", "acoustic_encoder", "quantizer", "acoustic_decoder"):
        assert any(name.startswith(part) for name in changed)
    opened: Any = Xcodec2Model.from_pretrained(parts / "result", output_loading_info=True)
    found = opened[1]
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert Codec.load(parts / "result").codebook_size == 65_536


def test_a_frozen_encoder_keeps_its_codes(
    tmp_path: Path, base: Path, sample_list: Path, waves: list[Wave]
) -> None:
    frozen = recipe(base, steps=1, freeze_encoder=True, semantic=None)
    write(tmp_path, frozen, sample_list)
    main([str(tmp_path / "run.json")])
    before, after = Codec.load(base).encode(waves), Codec.load(tmp_path / "result").encode(waves)
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.slow
def test_a_codec_is_trained_from_scratch_around_w2v_bert(tmp_path: Path, sample_list: Path) -> None:
    sizes = small(num_hidden_layers=2)["semantic_model_config"]
    assert isinstance(sizes, Wav2Vec2BertConfig)
    Wav2Vec2BertModel(sizes).save_pretrained(tmp_path / "semantic")
    architecture = CodecArchitecture(
        hidden=32,
        layers=1,
        heads=2,
        intermediate=32,
        semantic_model=tmp_path / "semantic",
        acoustic_hidden=2,
        ratios=(2, 2, 4, 4, 5),
        levels=(4, 4, 4),
    )
    scratch = recipe(None, architecture=architecture, steps=15, lr=3e-3)
    with opened(tmp_path / "run", scratch, sample_list) as trainer:
        losses = [trainer.train_step(step)["loss"] for step in range(15)]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:2])
    theirs = load_file(tmp_path / "semantic/model.safetensors")
    ours = trainer.codec.published().semantic_encoder.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_bases_that_cannot_be_trained_are_refused(tmp_path: Path, sample_list: Path) -> None:
    published("neucodec").save_pretrained(tmp_path / "neucodec")
    write(tmp_path / "run", recipe(tmp_path / "neucodec"), sample_list)
    with pytest.raises(ValueError, match=r"'neucodec' model.*train a decoder"):
        main([str(tmp_path / "run/run.json")])
    with pytest.raises(ValidationError, match="write acoustic_hidden = 48"):
        CodecArchitecture(semantic_model=tmp_path)
    with pytest.raises(ValidationError, match="leave audio_weight out"):
        SemanticConfig(features="codec", audio_weight=1.0)


def test_the_features_of_a_compact_codec_are_refused(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    write(tmp_path, recipe(None, architecture=tiny), sample_list)
    with pytest.raises(ValueError, match='write features = "whisper"'):
        main([str(tmp_path / "run.json")])


def test_transformers_opens_a_compact_codec_as_itself(
    tmp_path: Path, tiny: CodecArchitecture
) -> None:
    save_codec(build(tiny, 0), tmp_path, "fp32")
    model, found = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is CompactXcodec2
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert model.config.model_type == "compact_xcodec2"
