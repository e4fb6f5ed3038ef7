"""Codec training on real clips: it learns, resumes exactly, and never uses validation clips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from tests.support.codec_training import SPLIT, opened, write
from tests.support.interrupting import assert_same_bytes_after_a_stop
from tts_assets.codec.backends import CompactBackend
from tts_assets.codec.config import CodecArchitecture, CodecProgram, CodecRecipe
from tts_assets.codec.losses import usage
from tts_assets.codec.model import Codec
from tts_assets.codec.train import Reconstruction, codec_trainer, main
from tts_assets.codec.training_config import CodecAdversarialConfig
from tts_assets.codec.windows import TrainingAudio, WindowLoader
from tts_assets.codec.xcodec2 import build, calibrate
from tts_assets.core.accounting import is_validation
from tts_assets.core.artifacts import CodecFacts, sha256_file
from tts_assets.core.audio import Clip, Wave
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run
from tts_assets.core.training import saved, step_of
from tts_assets.corpora.samples import Sample, write_samples

ADVERSARIAL = CodecAdversarialConfig(start=0.3, warmup=1, sizes=(256,), channels=4)


def recipe(tiny: CodecArchitecture, **changes: Any) -> CodecRecipe:
    values: dict[str, Any] = {
        "corpora": {"asterisk_en": 1.0},
        "architecture": tiny,
        "steps": 6,
        "batch_seconds": 2,
        "window_seconds": (1,),
        "warmup": 1,
        "adversarial": ADVERSARIAL,
        "eval_every": 100,
        "save_every": 100,
    }
    return CodecRecipe(**values | changes)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("after", "precision"),
    [(2, "fp32"), (3, "fp32"), (3, "bf16")],
    ids=["between the stages", "in the adversarial stage", "in half precision"],
)
def test_an_interrupted_run_ends_in_the_same_bytes(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path, after: int, precision: str
) -> None:
    def prepared(folder: Path) -> CodecProgram:
        return write(folder, recipe(tiny, precision=precision), sample_list)

    parts = assert_same_bytes_after_a_stop(tmp_path, prepared, codec_trainer, main, after=after)
    assert {"model.safetensors", "config.json", "recipe.json"} <= names(parts / "result")
    facts = CodecFacts.from_json(parts / "result.json")
    assert (facts.token_rate, facts.codebook_size, facts.sample_rate) == (50.0, 125, 16_000)


@pytest.mark.slow
def test_the_loss_falls(
    tmp_path: Path,
    tiny: CodecArchitecture,
    sample_list: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CodecRecipe, "min_lr_ratio", 1.0)
    write(tmp_path, recipe(tiny, steps=60, lr=3e-3, adversarial=None), sample_list)
    main([str(tmp_path / "run.json")])
    losses = [record["loss"] for record in metrics(tmp_path)]
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:10])
    assert metrics(tmp_path)[-1]["val_mel"] > 0


def test_a_kill_between_saves_leaves_the_same_metrics(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    """The steps after the last save are repeated, but neither reported nor counted twice."""
    changes: dict[str, Any] = {"save_every": 2, "eval_every": 4, "adversarial": None}
    for name in ("whole", "parts"):
        write(tmp_path / name, recipe(tiny, **changes), sample_list)
    main([str(tmp_path / "whole" / "run.json")])
    program = CodecProgram.from_json(tmp_path / "parts" / "run.json")
    with pytest.raises(KeyboardInterrupt), Run(program.run_dir) as run:
        trainer = codec_trainer(run, program)
        step = trainer.train_step

        def fail_in_the_sixth(number: int) -> dict[str, float]:
            if number == 5:
                raise KeyboardInterrupt
            return step(number)

        trainer.train_step = fail_in_the_sixth  # type: ignore[method-assign]
        trainer.train()
    assert metrics(tmp_path / "parts")[-1]["step"] == 5
    main([str(tmp_path / "parts" / "run.json")])
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    facts = [CodecFacts.from_json(tmp_path / name / "result.json") for name in ("whole", "parts")]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("name", ["average.safetensors", "optimizers.pt"])
def test_a_damaged_checkpoint_is_skipped(
    tmp_path: Path,
    tiny: CodecArchitecture,
    sample_list: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """The run resumes from the older checkpoint and ends with the same weights."""
    write(tmp_path, recipe(tiny, save_every=3), sample_list)
    main([str(tmp_path / "run.json")])
    whole = sha256_file(tmp_path / "result" / "model.safetensors")
    unpublish(tmp_path)
    newest = tmp_path / "checkpoints" / "step-0000006"
    (newest / name).write_bytes((newest / name).read_bytes()[:-1000])
    main([str(tmp_path / "run.json")])
    log = capfd.readouterr().err
    assert f"step-0000006 is passed over and removed: {name} is truncated" in log
    assert "resuming after step 3 of 6" in log
    assert sha256_file(tmp_path / "result" / "model.safetensors") == whole


def test_a_gradient_that_explodes_does_not_reach_the_weights(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    with opened(tmp_path, recipe(tiny), sample_list) as trainer:
        with torch.no_grad():
            trainer.codec.acoustic_decoder.fc.weight.mul_(1e38)
        before = {name: p.clone() for name, p in trainer.codec.state_dict().items()}
        with pytest.raises(FloatingPointError, match="the gradient of step 1 is not finite"):
            trainer.train_step(0)
    after = trainer.codec.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_diverging_discriminators_are_named(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    with opened(tmp_path, recipe(tiny), sample_list) as trainer:
        assert trainer.discriminators is not None
        with torch.no_grad():
            next(trainer.discriminators.parameters()).fill_(float("inf"))
        with pytest.raises(FloatingPointError, match=r"discriminators.*lower adversarial\.lr"):
            trainer.train_step(trainer.recipe.first_adversarial_step)


def test_a_short_stage_reaches_the_full_weight(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    """With a warm-up longer than the stage the adversarial weight would stay 0."""
    config = ADVERSARIAL.model_copy(update={"start": 0.8, "warmup": 200})
    with opened(tmp_path, recipe(tiny, steps=100, adversarial=config), sample_list) as trainer:
        weights = [trainer.adversarial_weight(step) for step in (79, 80, 85, 90, 99)]
    assert weights == [None, 0.0, 0.0, 1.0, 1.0]


def test_the_moving_average_is_published(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    """With weights 1 - decay for each step, decay = min(0.999, (step + 1) / (step + 10))."""
    with opened(tmp_path, recipe(tiny, adversarial=None), sample_list) as trainer:
        name, trained = next((n, p) for n, p in trainer.codec.named_parameters() if p.requires_grad)
        expected, take = trained.detach().clone(), trainer.train_step

        def follow(step: int) -> dict[str, float]:
            report = take(step)
            decay = min(0.999, (step + 1) / (step + 10))
            expected.mul_(decay).add_(trained.detach(), alpha=1 - decay)
            return report

        trainer.train_step = follow  # type: ignore[method-assign]
        trainer.train()
        trainer.export()
    published = load_file(tmp_path / "result" / "model.safetensors")[name]
    torch.testing.assert_close(published, expected)
    assert not torch.allclose(published, trained.detach(), atol=1e-4)


def test_dead_codes_are_reported(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    write(tmp_path, recipe(tiny, steps=2, adversarial=None), sample_list)
    main([str(tmp_path / "run.json")])
    last, facts = metrics(tmp_path)[-1], CodecFacts.from_json(tmp_path / "result.json")
    assert 1 < last["perplexity"] <= last["codes_used"] <= 125
    assert last["codes_used"] + last["dead_codes"] == 125
    assert (facts.perplexity, facts.dead_codes) == (last["perplexity"], last["dead_codes"])
    counts = np.array([6, 0, 2, 0])
    assert usage(counts) == {
        "entropy": pytest.approx(0.811278),
        "perplexity": pytest.approx(1.7548, abs=1e-4),
        "codes_used": 2,
        "dead_codes": 2,
    }


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_frozen_encoder_keeps_its_codes(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path, waves: list[Wave], dtype: str
) -> None:
    write(tmp_path / "base", recipe(tiny, steps=3, adversarial=None), sample_list)
    main([str(tmp_path / "base" / "run.json")])
    base = tmp_path / "base" / "result"
    frozen = recipe(CodecArchitecture(), base=base, freeze_encoder=True, export_dtype=dtype)
    write(tmp_path / "decoder", frozen, sample_list)
    main([str(tmp_path / "decoder" / "run.json")])
    before, after = (Codec.load(folder) for folder in (base, tmp_path / "decoder" / "result"))
    published = json.loads((tmp_path / "decoder" / "result" / "recipe.json").read_text())
    assert published["base"] == sha256_file(base / "model.safetensors")
    assert "architecture" not in published  # the base has one
    old, new = before.encode(waves), after.encode(waves)
    assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    assert not np.array_equal(before.decode(old)[0], after.decode(new)[0])
    parts = [nn.ModuleList(codec.backend.model.encoder_parts()) for codec in (before, after)]
    weights, same = (part.state_dict() for part in parts)
    assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_adversarial_stage_uses_the_codes_of_inference(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path, precision: str
) -> None:
    """Also for silence, which only inference clamps to the range of speech."""
    silence = torch.zeros(1, 16_000)
    with (
        opened(tmp_path, recipe(tiny, precision=precision), sample_list) as trainer,
        torch.no_grad(),
    ):
        before = trainer.reconstruct(silence)[2].flatten()
        trainer.begin_adversarial()
        after = trainer.reconstruct(silence)[2].flatten()
        (codes,) = Codec(CompactBackend(trainer.average), "cpu").encode(list(silence.numpy()))
    assert after.tolist() == codes.tolist() != before.tolist()


def test_a_run_folder_of_another_recipe_is_refused(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    write(tmp_path, recipe(tiny, steps=1), sample_list)
    main([str(tmp_path / "run.json")])
    write(tmp_path, recipe(tiny, steps=2), sample_list)
    with pytest.raises(ValueError, match="another recipe"):
        main([str(tmp_path / "run.json")])


def test_validation_clips_are_never_used(
    tiny: CodecArchitecture, sample_list: Path, samples: list[Sample]
) -> None:
    audio = TrainingAudio({"asterisk_en": sample_list}, recipe(tiny), SPLIT)
    held_out = {sample.id for sample in samples if is_validation(sample.id, SPLIT)}
    assert held_out
    assert set(audio.validation["id"]) == held_out
    for step in range(50):
        audio.batch(step, 0, 1)
    used = {path for path, _ in audio.cache.waves}
    assert used and not held_out & {s.id for s in samples if s.wav_path in used}


def test_codes_encode_the_loudness_of_a_frame(
    tiny: CodecArchitecture, recordings: dict[str, tuple[str, Clip]]
) -> None:
    """Also without a waveform branch: 20 dB are far more than one level."""
    wave = torch.from_numpy(recordings["auth-incorrect"][1].wave[:32_000])[None]
    model = build(tiny, seed=1)
    calibrate(model, wave)
    model.eval()
    with torch.no_grad():
        loud, quiet = model.latents(wave), model.latents(0.1 * wave)
    assert (loud - quiet).abs().mean() > 0.5


@pytest.mark.parametrize("acoustic_hidden", [0, 1])
def test_half_precision_changes_latents_by_rounding_only(
    acoustic_hidden: int, tiny: CodecArchitecture, recordings: dict[str, tuple[str, Clip]]
) -> None:
    """Rounding is 0.01 of the latents; with a defective kernel the difference was 0.5."""
    wave = torch.from_numpy(recordings["auth-incorrect"][1].wave[:32_000])[None]
    model = build(tiny.model_copy(update={"acoustic_hidden": acoustic_hidden}), seed=1)
    calibrate(model, wave)
    made = []
    for precision in ("fp32", "bf16"):
        reconstruct = Reconstruction(model, frozen=False, bf16=precision == "bf16")
        with torch.no_grad():
            made.append(reconstruct(wave)[1].float())
    assert (made[1] - made[0]).norm() < 0.1 * made[0].norm()


def starts_of(window: Wave, wave: Wave) -> list[int]:
    """The positions of a window in a wave."""
    positions = np.flatnonzero(wave[: len(wave) - len(window) + 1] == window[0])
    return [int(s) for s in positions if np.array_equal(wave[s : s + len(window)], window)]


def test_the_adversarial_stage_trains_the_decoder_only(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path, waves: list[Wave]
) -> None:
    config = ADVERSARIAL.model_copy(update={"start": 0.5, "generator_lr": 2e-4})
    with opened(tmp_path, recipe(tiny, steps=8, adversarial=config), sample_list) as trainer:
        rates = [trainer.train_step(step)["lr"] for step in range(4)]
        codec = Codec(CompactBackend(trainer.average), "cpu")
        codes, made = codec.encode(waves), codec.decode(codec.encode(waves))
        later = [trainer.train_step(step)["lr"] for step in range(4, 8)]
        again, otherwise = codec.encode(waves), codec.decode(codes)
    assert rates[0] == 1e-3 > rates[-1] and later[0] == 2e-4 > later[-1], "a schedule each"
    assert all(np.array_equal(a, b) for a, b in zip(codes, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(made, otherwise, strict=True))
    with pytest.raises(ValidationError, match=r"freeze a random encoder: write start = 0\.6"):
        recipe(tiny, adversarial=CodecAdversarialConfig(start=0.0))


@pytest.mark.slow
def test_two_ranks_go_through_both_stages(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    """And resume from a checkpoint of two ranks or of one."""
    for name in ("one", "two"):
        write(tmp_path / name, recipe(tiny, save_every=3), sample_list)
    main([str(tmp_path / "one" / "run.json")])
    on_two_ranks(tmp_path / "two" / "run.json")
    one, two = metrics(tmp_path / "one")[-1], metrics(tmp_path / "two")[-1]
    assert two["step"] == 6 and two["val_mel"] == pytest.approx(one["val_mel"], rel=0.05)
    whole = sha256_file(tmp_path / "two" / "result" / "model.safetensors")
    go_back_to(tmp_path / "two", 3)
    on_two_ranks(tmp_path / "two" / "run.json")
    assert sha256_file(tmp_path / "two" / "result" / "model.safetensors") == whole
    go_back_to(tmp_path / "two", 3)
    main([str(tmp_path / "two" / "run.json")])
    assert metrics(tmp_path / "two")[-1]["val_mel"] == pytest.approx(one["val_mel"], rel=0.05)


def on_two_ranks(program: Path) -> None:
    ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [sys.executable, "-m", *ranks, "-m", "tts_assets.codec.train", str(program)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )


def go_back_to(folder: Path, step: int) -> None:
    """Restore the state of a run that was killed before its next save."""
    unpublish(folder)
    (newest,) = (p for p in saved(folder / "checkpoints") if step_of(p) > step)
    shutil.rmtree(newest)


def unpublish(folder: Path) -> None:
    shutil.rmtree(folder / "result")
    (folder / "result.json").unlink()


def keep_only(audio: TrainingAudio, sample: Sample) -> None:
    """Draw windows of this utterance only."""
    audio.train = audio.train.filter(pl.col("id") == sample.id)
    audio.cumulative = np.array([1.0])


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_ahead_of_the_step_are_those_of_the_step(
    tiny: CodecArchitecture, sample_list: Path, workers: int
) -> None:
    audio = TrainingAudio({"asterisk_en": sample_list}, recipe(tiny), SPLIT)
    ahead = WindowLoader(audio, 12, 0, 1, workers=workers)
    for step in (3, 4, 5, 9, 10, 11):  # resumed at 3, then at 9
        assert torch.equal(ahead.at(step), audio.batch(step, 0, 1))


def test_relative_paths_are_below_the_folder_of_the_list(
    tmp_path: Path, tiny: CodecArchitecture, samples: list[Sample]
) -> None:
    """Published lists of a corpus have paths relative to its folder."""
    (tmp_path / "audio").mkdir()
    here = []
    for sample in samples:
        name = f"audio/{Path(sample.wav_path).name}"
        shutil.copyfile(sample.wav_path, tmp_path / name)
        here.append(sample.model_copy(update={"wav_path": name}))
    write_samples(tmp_path / "kept.jsonl", here)
    audio = TrainingAudio({"asterisk_en": tmp_path / "kept.jsonl"}, recipe(tiny), SPLIT)
    assert audio.batch(0, 0, 1).abs().max() > 0.01
    assert {Path(path).parent for path in audio.train["wav_path"]} == {tmp_path / "audio"}


def test_windows_start_anywhere_in_an_utterance(
    tiny: CodecArchitecture, sample_list: Path, samples: list[Sample]
) -> None:
    longest = max(samples, key=lambda sample: sample.duration)
    audio = TrainingAudio({"asterisk_en": sample_list}, recipe(tiny), SPLIT)
    keep_only(audio, longest)
    wave = audio.cache.read(longest.wav_path)
    starts = []
    for step in range(40):
        starts += starts_of(audio.batch(step, 0, 1).numpy()[0], wave)[:1]
    room = len(wave) - 16_000
    assert len(starts) == 40 and min(starts) < 0.1 * room and max(starts) > 0.9 * room


def test_windows_are_played_at_all_speeds(
    tiny: CodecArchitecture, sample_list: Path, samples: list[Sample]
) -> None:
    longest = max(samples, key=lambda sample: sample.duration)
    audio = TrainingAudio({"asterisk_en": sample_list}, recipe(tiny), SPLIT, speeds=(0.8, 1.0))
    keep_only(audio, longest)
    slow, plain = audio.cache.read(longest.wav_path, 0.8), audio.cache.read(longest.wav_path)
    assert len(slow) == pytest.approx(len(plain) / 0.8, abs=1)
    windows = [audio.batch(step, 0, 1).numpy()[0] for step in range(20)]
    parts = [sum(bool(starts_of(window, wave)) for window in windows) for wave in (slow, plain)]
    assert sum(parts) == 20 and min(parts) >= 5
    with pytest.raises(ValidationError, match=r"write for example \[0.9, 1.0, 1.1\]"):
        recipe(tiny, speeds=(1.0, 3.0))


def test_windows_are_amplified_by_all_gains(tiny: CodecArchitecture, sample_list: Path) -> None:
    plain = TrainingAudio({"asterisk_en": sample_list}, recipe(tiny), SPLIT)
    levels = TrainingAudio({"asterisk_en": sample_list}, recipe(tiny), SPLIT, gains=(-12, 0))
    found = []
    for step in range(20):
        one, other = plain.batch(step, 0, 1), levels.batch(step, 0, 1)
        factors = (other * one).sum(dim=1) / (one * one).sum(dim=1)
        assert torch.allclose(other, factors[:, None] * one)
        found += factors.tolist()
    quiet = [factor == pytest.approx(10 ** (-12 / 20)) for factor in found]
    assert len(found) / 4 < sum(quiet) < 3 * len(found) / 4
    assert all(factor == pytest.approx(1) for factor in np.array(found)[np.logical_not(quiet)])
    with pytest.raises(ValidationError, match=r"write for example \[-12, 0, 0\]"):
        recipe(tiny, gains=(0.0, 25.0))


def test_ranks_split_the_batch_of_one(tiny: CodecArchitecture, sample_list: Path) -> None:
    audio = TrainingAudio({"asterisk_en": sample_list}, recipe(tiny, batch_seconds=4), SPLIT)
    whole = audio.batch(7, 0, 1)
    parts = [audio.batch(7, rank, 2) for rank in range(2)]
    assert all((parts[index % 2][index // 2] == whole[index]).all() for index in range(4))
    uneven = recipe(tiny, batch_seconds=4, window_seconds=(1, 2))
    uneven.check_ranks(2)
    with pytest.raises(ConfigError, match=r"4 processes.*a multiple of 8"):
        uneven.check_ranks(4)
