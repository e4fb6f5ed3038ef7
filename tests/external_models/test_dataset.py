"""The dataset for coqui: every sample is listed once, or set aside with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from tts_assets.core.accounting import ValidationSplit, is_validation
from tts_assets.core.config import ConfigError
from tts_assets.external_models.config import ExternalRecipe, ExternalTrainProgram
from tts_assets.external_models.train import TOO_LONG, Dataset, add, all_samples, check

SPLIT = ValidationSplit(fraction=0.3)


def test_every_clip_is_accounted_for(kept: Path, tmp_path: Path) -> None:
    gone = json.loads(kept.read_text().splitlines()[0]) | {"wav_path": "/nowhere.wav", "id": "gone"}
    kept.write_text(kept.read_text() + json.dumps(gone) + "\n")
    recipe = ExternalRecipe(family="vits", corpora=("clips",), sample_rate=16000, max_seconds=4.0)
    dataset = Dataset()
    samples = list(all_samples({"clips": kept}))
    for corpus, sample in samples:
        add(dataset, tmp_path, corpus, sample, recipe, SPLIT)
    reasons = sorted({record.reason for record in dataset.set_aside})
    assert reasons == sorted(["no such file", TOO_LONG])
    assert len(dataset.train) + len(dataset.val) + len(dataset.set_aside) == len(samples) == 14
    validation = {sample.transcript for _, sample in samples if is_validation(sample.id, SPLIT)}
    assert {clip["text"] for clip in dataset.val} <= validation
    assert not {clip["text"] for clip in dataset.train} & validation
    info = soundfile.info(dataset.train[0]["audio_file"])
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")


def test_nothing_to_train_on_is_an_error_with_counted_reasons(kept: Path, tmp_path: Path) -> None:
    recipe = ExternalRecipe(family="vits", corpora=("clips",), sample_rate=16000, max_seconds=0.3)
    program = ExternalTrainProgram(
        run_dir=tmp_path,
        name="mine",
        python=tmp_path,
        recipe=recipe,
        samples={"clips": kept},
        validation=SPLIT,
    )
    dataset = Dataset()
    for corpus, sample in all_samples(program.samples):
        add(dataset, tmp_path, corpus, sample, recipe, SPLIT)
    with pytest.raises(ConfigError, match=rf"no clip to train on, and 0 .*\n{TOO_LONG}: 13, for"):
        check(program, dataset)
