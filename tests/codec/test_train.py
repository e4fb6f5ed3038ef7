"""Codec training on real clips: it learns, resumes exactly, and never hears validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tts_assets.artifacts import CodecFacts, sha256_file
from tts_assets.audio import Wave
from tts_assets.codec.config import AdversarialConfig, CodecArchitecture, CodecProgram, CodecRecipe
from tts_assets.codec.model import Codec
from tts_assets.codec.train import Trainer, main
from tts_assets.codec.windows import TrainingAudio
from tts_assets.corpora.samples import Sample
from tts_assets.program import STOPPED, Run
from tts_assets.split import ValidationSplit, is_validation

SPLIT = ValidationSplit(fraction=0.2)


def recipe(tiny: CodecArchitecture, **changes: Any) -> CodecRecipe:
    values: dict[str, Any] = {
        "corpora": {"asterisk_en": 1.0},
        "architecture": tiny,
        "steps": 6,
        "batch_seconds": 2,
        "window_seconds": (1,),
        "warmup": 1,
        "adversarial": AdversarialConfig(start=0.3, warmup=1, sizes=(256,), channels=4),
        "eval_every": 100,
        "save_every": 100,
    }
    return CodecRecipe(**values | changes)


def write(folder: Path, recipe: CodecRecipe, samples: Path) -> CodecProgram:
    folder.mkdir(exist_ok=True)
    program = CodecProgram(
        run_dir=folder, recipe=recipe, samples={"asterisk_en": samples}, validation=SPLIT
    )
    (folder / "run.json").write_text(program.to_json())
    return program


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupted_run_ends_in_the_same_bytes(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    for name in ("whole", "parts"):
        write(tmp_path / name, recipe(tiny), sample_list)
    main([str(tmp_path / "whole" / "run.json")])
    program = CodecProgram.from_json(tmp_path / "parts" / "run.json")
    with Run(program.run_dir) as run, pytest.raises(SystemExit) as stopped:
        trainer = Trainer(run, program)
        step = trainer.train_step

        def stop_after_three(number: int) -> dict[str, float]:
            run.stop_requested = number == 2
            return step(number)

        trainer.train_step = stop_after_three  # type: ignore[method-assign]
        trainer.train()
    assert stopped.value.code == STOPPED
    main([str(tmp_path / "parts" / "run.json")])
    files = ("model.safetensors", "config.json", "recipe.json")
    for file in files:
        whole, parts = (tmp_path / name / "result" / file for name in ("whole", "parts"))
        assert sha256_file(whole) == sha256_file(parts), file
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    facts = CodecFacts.from_json(tmp_path / "parts" / "result.json")
    assert (facts.token_rate, facts.codebook_size, facts.sample_rate) == (50.0, 125, 16_000)


def test_the_loss_falls(tmp_path: Path, tiny: CodecArchitecture, sample_list: Path) -> None:
    write(tmp_path, recipe(tiny, steps=60, lr=3e-3, adversarial=None, final_share=1.0), sample_list)
    main([str(tmp_path / "run.json")])
    losses = [record["loss"] for record in metrics(tmp_path)]
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:10])
    assert metrics(tmp_path)[-1]["val_mel"] > 0


def test_a_frozen_encoder_keeps_its_codes(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path, waves: list[Wave]
) -> None:
    write(tmp_path / "base", recipe(tiny, steps=3, adversarial=None), sample_list)
    main([str(tmp_path / "base" / "run.json")])
    base = tmp_path / "base" / "result"
    frozen = recipe(tiny, base=base, freeze_encoder=True)
    write(tmp_path / "decoder", frozen, sample_list)
    main([str(tmp_path / "decoder" / "run.json")])
    before, after = (Codec.load(folder) for folder in (base, tmp_path / "decoder" / "result"))
    published = json.loads((tmp_path / "decoder" / "result" / "recipe.json").read_text())
    assert published["base"] == sha256_file(base / "model.safetensors")
    old, new = before.encode(waves), after.encode(waves)
    assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    assert not np.array_equal(before.decode(old)[0], after.decode(new)[0])


def test_a_run_folder_of_another_recipe_is_refused(
    tmp_path: Path, tiny: CodecArchitecture, sample_list: Path
) -> None:
    write(tmp_path, recipe(tiny, steps=1), sample_list)
    main([str(tmp_path / "run.json")])
    write(tmp_path, recipe(tiny, steps=2), sample_list)
    with pytest.raises(ValueError, match="another recipe"):
        main([str(tmp_path / "run.json")])


def test_validation_is_never_heard(
    tiny: CodecArchitecture, sample_list: Path, samples: list[Sample]
) -> None:
    audio = TrainingAudio({"asterisk_en": sample_list}, recipe(tiny), SPLIT)
    held_out = {sample.id for sample in samples if is_validation(sample.id, SPLIT)}
    assert held_out
    assert {sample.id for sample in audio.validation} == held_out
    for step in range(50):
        audio.batch(step, 0, 1)
    assert not held_out & {s.id for s in samples if s.wav_path in audio.cache.waves}


def test_ranks_share_the_batch_of_one(tiny: CodecArchitecture, sample_list: Path) -> None:
    audio = TrainingAudio({"asterisk_en": sample_list}, recipe(tiny, batch_seconds=4), SPLIT)
    whole = audio.batch(7, 0, 1)
    parts = [audio.batch(7, rank, 2) for rank in range(2)]
    assert all((parts[index % 2][index // 2] == whole[index]).all() for index in range(4))
    with pytest.raises(ValueError, match="raise batch_seconds"):
        audio.batch(7, 4, 5)
