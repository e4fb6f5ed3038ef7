"""Training of an encoder: it learns, resumes exactly, and uses all voices equally often."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.speakers.conftest import TESTED, recipe, write
from tests.support.interrupting import assert_same_bytes_after_a_stop
from tts_assets.core.accounting import read_set_aside
from tts_assets.core.artifacts import SpeakerEncoderFacts
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run
from tts_assets.speakers.config import (
    RESEMBLYZER,
    AdversaryConfig,
    EncoderArchitecture,
    EncoderProgram,
    EncoderRecipe,
    SpeakerSelection,
    resolve,
)
from tts_assets.speakers.encoder import VoiceEncoder
from tts_assets.speakers.model import open_encoder
from tts_assets.speakers.train import encoder_trainer, main


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_interrupted_run_ends_in_the_same_bytes(
    tmp_path: Path, selection: SpeakerSelection, index: Path
) -> None:
    def prepared(folder: Path) -> EncoderProgram:
        return write(folder, recipe(), selection, index)

    parts = assert_same_bytes_after_a_stop(tmp_path, prepared, encoder_trainer, main, after=3)
    result = parts / "result"
    assert {"model.safetensors", "config.json", "check.py"} <= {p.name for p in result.iterdir()}
    facts = SpeakerEncoderFacts.from_json(parts / "result.json")
    assert (facts.speakers, facts.test_speakers) == (4, 2)
    aside = read_set_aside(result / "set_aside.jsonl")
    assert facts.utterances + facts.test_utterances + len(aside) == 6 * 13


@pytest.mark.slow
def test_the_loss_falls_and_the_check_script_passes(
    tmp_path: Path, selection: SpeakerSelection, index: Path
) -> None:
    write(tmp_path, recipe(steps=150, lr=3e-3, final_lr=3e-3), selection, index)
    main([str(tmp_path / "run.json")])
    losses = [record["loss"] for record in metrics(tmp_path)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    check = f"import runpy; runpy.run_path({str(tmp_path / 'result' / 'check.py')!r})"
    checked = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert "4 examples, largest difference" in checked.stdout, checked.stderr


def test_fine_tuning_starts_from_the_public_weights(
    tmp_path: Path, selection: SpeakerSelection, index: Path, clips: Path
) -> None:
    tuned = recipe(base=RESEMBLYZER, steps=1, lr=1e-12, final_lr=1e-12, speakers=2, utterances=2)
    write(tmp_path, tuned, selection, index)
    main([str(tmp_path / "run.json")])
    path = clips / "audio/conf-invalid.g722"
    found = VoiceEncoder.load(tmp_path / "result").wav_to_embedding(path)
    public = VoiceEncoder.load(resolve(RESEMBLYZER, Path())).wav_to_embedding(path)
    assert np.abs(found - public).max() < 1e-5
    assert metrics(tmp_path)[0]["scale"] == pytest.approx(
        70.8929, abs=1e-3
    )  # the value in the public file
    assert open_encoder(tmp_path / "result")[1].offset == pytest.approx(-4.1807, abs=1e-3)


@pytest.mark.parametrize("what", ["resnet34", "adversary", "contrast, speeds and equalizer"])
def test_other_recipes_train(
    what: str, tmp_path: Path, selection: SpeakerSelection, index: Path
) -> None:
    changes = {
        "resnet34": {"architecture": EncoderArchitecture(kind="resnet34", channels=4)},
        "adversary": {"adversary": AdversaryConfig(attribute="language")},
        "contrast, speeds and equalizer": {
            "loss": "contrast",
            "speeds": (0.95, 1.0),
            "equalize": 6.0,
            "speakers": 8,
            "utterances": 2,
        },
    }[what]
    program = write(tmp_path, recipe(steps=2, **changes), selection, index)
    with Run(program.run_dir) as run:
        if what == "adversary":
            with pytest.raises(ConfigError, match="at least two of language"):
                encoder_trainer(run, program)
            return
        trainer = encoder_trainer(run, program)
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        after = list(trainer.model.parameters())
        assert all(not (a == b).all() for a, b in zip(before, after, strict=True))


@pytest.mark.slow
def test_ranks_compute_the_loss_of_the_whole_batch(
    tmp_path: Path, selection: SpeakerSelection, index: Path
) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, recipe(), selection, index)
    main([str(tmp_path / "one" / "run.json")])
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = ["-m", "tts_assets.speakers.train", str(tmp_path / "two" / "run.json")]
    subprocess.run([sys.executable, *command, *program], check=True, capture_output=True)
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "gradient_norm", "scale"):
        expected = [record[name] for record in one]
        assert [record[name] for record in two] == pytest.approx(expected, rel=1e-4), name


def test_batches_use_all_voices_equally_often(
    tmp_path: Path, selection: SpeakerSelection, index: Path
) -> None:
    """Each voice occurs equally often, and each of its recordings before any is repeated."""
    program = write(tmp_path, recipe(speakers=2, utterances=4), selection, index)
    with Run(program.run_dir) as run:
        batches = encoder_trainer(run, program).batches
    voices: Counter[str] = Counter()
    used: dict[str, list[str]] = {}
    for step in range(26):  # 13 passes over four voices
        items, frames = batches.rows(step)
        assert 60 <= frames <= 80
        chosen = [item.voice for item in items]
        assert chosen == [voice for voice in dict.fromkeys(chosen) for _ in range(4)]
        voices.update(chosen)
        for item in items:
            used.setdefault(item.voice, []).append(item.recording.id)
    assert set(voices.values()) == {13 * 4}
    assert not set(voices) & set(TESTED)
    for voice, ids in used.items():
        assert len(set(ids[: len(batches.voices[voice])])) == len(batches.voices[voice])
    whole, _ = batches.crops(3)
    parts = [batches.crops(3, rank, 2)[0] for rank in range(2)]
    assert (whole[:4] == parts[0]).all() and (whole[4:] == parts[1]).all()


def test_invalid_programs_are_rejected(
    tmp_path: Path, selection: SpeakerSelection, index: Path
) -> None:
    program = write(tmp_path, recipe(speakers=5), selection, index)
    with pytest.raises(ConfigError, match="set speakers = 4 or less"), Run(program.run_dir) as run:
        encoder_trainer(run, program)
    nobody = selection.model_copy(update={"test_speakers": ("voices/nobody",)})
    program = write(tmp_path, recipe(), nobody, index)
    rejected = pytest.raises(ConfigError, match=r"\['voices/nobody'\] have no recording")
    with rejected, Run(program.run_dir) as run:
        encoder_trainer(run, program)
    with pytest.raises(ValueError, match="architecture and audio are those of the base"):
        EncoderRecipe(base=RESEMBLYZER, architecture=EncoderArchitecture(hidden=768))
