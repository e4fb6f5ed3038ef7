"""Content codecs: the codes hold what is said, the decoder holds the voice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModel

from tests.codec.conftest import published
from tests.support.codec_training import opened, write
from tests.support.interrupting import assert_same_bytes_after_a_stop
from tts_assets.audio_models.whisper import packaged_model
from tts_assets.codec.backends import open_compact, save_codec
from tts_assets.codec.config import CodecArchitecture, CodecProgram, CodecRecipe, SemanticConfig
from tts_assets.codec.model import Codec
from tts_assets.codec.semantic import ContentCodec
from tts_assets.codec.train import codec_trainer, main, perturbed_features
from tts_assets.codec.xcodec2 import build
from tts_assets.core.audio import Wave, resample
from tts_assets.core.program import Run

BOTH = {"asterisk_en": 1.0, "other": 0.5}


def recipe(tiny: CodecArchitecture, steps: int, **values: object) -> CodecRecipe:
    return CodecRecipe.model_validate(
        {
            "corpora": BOTH,
            "voice": ("asterisk_en",),
            "architecture": tiny,
            "steps": steps,
            "batch_seconds": 2,
            "window_seconds": (1,),
            "warmup": 1,
            "lr": 3e-3,
            "adversarial": {"start": 0.5, "warmup": 1, "channels": 4, "sizes": (512,)},
            "eval_every": 100,
            "save_every": 100,
            "semantic": SemanticConfig(weight=0.5, audio_weight=1.0),
            **values,
        }
    )


@pytest.fixture(scope="module")
def content(tiny: CodecArchitecture, speech: list[Wave]) -> ContentCodec:
    codec = ContentCodec.build(tiny, packaged_model(), seed=1)
    codec.calibrate(torch.from_numpy(np.stack([wave[:16_000] for wave in speech])))
    return codec.eval()


@pytest.fixture(scope="module")
def folder(content: ContentCodec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("content")
    save_codec(content, path, "fp32")
    return path


def test_a_folder_opens_as_the_same_codec(
    content: ContentCodec, folder: Path, speech: list[Wave]
) -> None:
    wave = speech[0][:16_000]
    with torch.inference_mode():
        wanted = content.quantize(content.latents(torch.from_numpy(wave)[None]))[1].flatten()
    codec = Codec.load(folder)
    (codes,) = codec.encode([wave])
    assert codes.tolist() == wanted.tolist()
    assert len(codec.decode([codes])[0]) == 16_000
    opened_by_name = AutoModel.from_pretrained(folder).eval()
    assert isinstance(opened_by_name, ContentCodec)
    for name, tensor in opened_by_name.state_dict().items():
        assert torch.equal(tensor, content.state_dict()[name]), name


def test_codes_do_not_depend_on_the_batch(folder: Path, speech: list[Wave]) -> None:
    codec = Codec.load(folder)
    assert codec.masking_problem is not None and "WhisperFeatures" in codec.masking_problem
    waves = [speech[0][:16_000], speech[1][:9_600]]
    alone = [codec.encode([wave])[0].tolist() for wave in waves]
    width = max(map(len, waves))
    batch = torch.stack([torch.from_numpy(np.pad(w, (0, width - len(w)))) for w in waves])
    codes, counts = codec.encode_batch(batch, torch.tensor([len(wave) for wave in waves]))
    assert [row[:n].tolist() for row, n in zip(codes, counts, strict=True)] == alone


def test_long_clips_are_encoded_in_parts_that_whisper_can_see(content: ContentCodec) -> None:
    long = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 16_000 * 31 // 320 * 320))
    found = content.features(long.float()[None])
    half = content.features(long[: 775 * 320].float()[None])
    assert found.shape == (1, 1550, 384)
    assert torch.allclose(found[:, :775], half, atol=1e-4)


def test_perturbed_input_has_the_features_of_its_length(
    content: ContentCodec, speech: list[Wave]
) -> None:
    wave = torch.from_numpy(speech[0][:16_000])[None]
    same = perturbed_features(content, wave, 1.0, torch.device("cpu"))
    assert torch.equal(same, content.features(wave))
    slow = perturbed_features(content, wave, 0.8, torch.device("cpu"))
    assert slow.shape == same.shape and not torch.allclose(slow, same, atol=0.1)
    played = resample(wave[0].numpy(), 12_800, 16_000)
    assert len(played) == 20_000  # a fifth lower, and so longer
    # What is said stays where it is: each frame resembles itself more than one 0.2 s later.
    near = torch.cosine_similarity(slow, same, dim=-1).mean()
    shifted = torch.cosine_similarity(slow[:, 10:], same[:, :-10], dim=-1).mean()
    assert near > shifted + 0.1


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bytes(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    def prepared(folder: Path) -> CodecProgram:
        return write(folder, recipe(tiny, 4), sample_list)

    parts = assert_same_bytes_after_a_stop(tmp_path, prepared, codec_trainer, main, after=3)
    published = load_file(parts / "result/model.safetensors")
    whisper = ContentCodec.build(tiny, packaged_model(), seed=2).semantic_encoder.encoder
    for name, tensor in whisper.state_dict().items():  # frozen
        assert torch.equal(published[f"semantic_encoder.encoder.{name}"].float(), tensor)
    assert isinstance(open_compact(parts / "result"), ContentCodec)


def test_the_decoder_of_a_compact_codec_is_a_start(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    base = build(tiny, seed=5)
    save_codec(base, tmp_path / "base", "fp32")
    asked = recipe(CodecArchitecture(), 4, base=tmp_path / "base", corpora={"asterisk_en": 1.0})
    with opened(tmp_path / "run", asked, sample_list) as trainer:
        started: Any = trainer.codec
        started = started.acoustic_decoder.state_dict()
    copied = [
        n for n, t in base.acoustic_decoder.state_dict().items() if torch.equal(started[n], t)
    ]
    assert len(copied) >= len(started) - 2  # its first layer takes more channels


def test_a_new_voice_keeps_the_codes(
    tmp_path: Path, folder: Path, sample_list: Path, speech: list[Wave]
) -> None:
    asked = recipe(
        CodecArchitecture(), 2, base=folder, freeze_encoder=True, corpora={"asterisk_en": 1.0}
    )
    program = write(tmp_path / "run", asked, sample_list)
    main([str(program.run_dir / "run.json")])
    before, after = Codec.load(folder), Codec.load(program.run_dir / "result")
    waves = [wave[:16_000] for wave in speech]
    for one, two in zip(before.encode(waves), after.encode(waves), strict=True):
        assert one.tolist() == two.tolist()
    spoken, now = (codec.decode([one])[0] for codec in (before, after))
    assert not np.allclose(spoken, now)


def test_impossible_voices_are_rejected(tiny: CodecArchitecture) -> None:
    with pytest.raises(ValidationError, match=r"voice \['nobody'\]: corpora has"):
        recipe(tiny, 4, voice=("nobody",))
    with pytest.raises(ValidationError, match=r"nothing trains the speech of \['other'\]"):
        recipe(tiny, 4, semantic=None)


def test_a_voice_needs_a_compact_base(tmp_path: Path, sample_list: Path) -> None:
    published("xcodec2").save_pretrained(tmp_path / "base")
    asked = recipe(CodecArchitecture(), 4, base=tmp_path / "base")
    program = write(tmp_path, asked, sample_list)
    with (
        Run(program.run_dir) as run,
        pytest.raises(ValueError, match="not that of a compact codec"),
    ):
        codec_trainer(run, program)
