"""Synthesis of texts during training with a real (untrained) codec, which changes no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from tests.sft.conftest import ARCHITECTURE, CODEBOOK, program_values, speaking_folder
from tests.sft.test_train import losses, train, weights
from tts_assets.codec.backends import save_codec
from tts_assets.codec.xcodec2 import build
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run
from tts_assets.sft.config import SftProgram
from tts_assets.sft.train import build_trainer


def sampling_program(run_dir: Path, arrays: Path, codec: Path, **changes: Any) -> SftProgram:
    changes = {"sample_texts": 2, "sample_every": 4, "dropout": 0.1, "code_dropout": 0.2} | changes
    values = program_values(run_dir, arrays, **changes)
    return SftProgram.model_validate(values | {"codec_folder": str(codec)})


def lines(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "result" / "listening" / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sampled(arrays: Path, codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with synthesis after the fourth and after the last."""
    folder = tmp_path_factory.mktemp("sampled")
    train(sampling_program(folder, arrays, codec))
    return folder


def test_texts_are_synthesized_beside_the_recordings(sampled: Path, arrays: Path) -> None:
    found = lines(sampled)
    assert [(line["step"], line["number"]) for line in found] == [
        (step, number) for step in (0, 4, 6) for number in (0, 1)
    ]
    texts = [json.loads(line)["transcript"] for line in (arrays / "val_samples.jsonl").open()]
    recordings = [
        soundfile.info(sampled / "result/listening" / f"recording-{n}.flac") for n in "01"
    ]
    longest = max(info.duration for info in recordings)
    for line in found:
        assert line["text"] in texts and line["text"] == found[line["number"]]["text"]
        info = soundfile.info(sampled / "result" / "listening" / line["audio"])
        assert info.samplerate == 16000 and 0 < info.duration <= 2 * longest
        with soundfile.SoundFile(sampled / "result" / "listening" / line["audio"]) as file:
            assert file.comment.startswith("Synthetic speech by sft/test.") == (line["step"] > 0)
    notebook = json.loads((sampled / "result" / "listening.ipynb").read_text())
    players = [cell["outputs"][0]["data"]["text/html"] for cell in notebook["cells"][2::2]]
    assert [player.count("data:audio/flac;base64,") for player in players] == [3, 3]
    assert "the recording" in players[0] and "step 6" in players[0]


def test_synthesis_does_not_change_training(
    sampled: Path, arrays: Path, codec: Path, tmp_path: Path
) -> None:
    train(sampling_program(tmp_path, arrays, codec, sample_texts=0))
    assert losses(tmp_path) == losses(sampled)
    expected = weights(sampled)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())
    assert not (tmp_path / "result" / "listening.ipynb").exists()


def test_a_resumed_run_synthesizes_the_same(
    sampled: Path, arrays: Path, codec: Path, tmp_path: Path
) -> None:
    """It stops after the synthesis of step 4, resumes from step 3, and repeats the synthesis."""
    config = sampling_program(tmp_path, arrays, codec, save_every=3)
    with Run(tmp_path) as run:
        trainer = build_trainer(run, config)
        for step in range(4):
            trainer.train_step(step)
            if step == 2:
                trainer.checkpoints.save(trainer.strategy, trainer.progress)
        trainer.sampler.sample(trainer.strategy, 4)
        trainer.wait_for_saves()
    train(config)
    assert lines(tmp_path) == lines(sampled)
    for line in lines(sampled):
        name = Path("result") / "listening" / line["audio"]
        assert (tmp_path / name).read_bytes() == (sampled / name).read_bytes(), name


def test_a_codec_that_did_not_make_the_codes_is_rejected(
    arrays: Path, codec: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    save_codec(build(ARCHITECTURE.model_copy(update={"levels": (4, 4, 4)}), 0), small, "fp32")
    with pytest.raises(ConfigError, match=f"has 64 codes, the arrays {CODEBOOK}"):
        train(sampling_program(tmp_path / "run", arrays, small, steps=1))
    with pytest.raises(ConfigError, match="holds no codec"):
        train(sampling_program(tmp_path / "other", arrays, tmp_path))
    with pytest.raises(ConfigError, match="give codec_folder, or write sample_texts = 0"):
        SftProgram.parse(program_values(tmp_path, arrays, sample_texts=1), "run.json")


@pytest.mark.slow
def test_an_adapted_model_synthesizes_like_the_published_one(
    arrays: Path, codec: Path, tmp_path: Path
) -> None:
    """The merged weights of the last step give the same audio as that step."""
    base = {"hub": str(speaking_folder(tmp_path / "base"))}
    optimizer = {"lr": 1e-2, "warmup_share": 0.0}
    changes = {"base": base, "lora": {"rank": 4}, "optimizer": optimizer, "sample_texts": 1}
    config = sampling_program(tmp_path / "adapted", arrays, codec, export="last", **changes)
    train(config)
    last = lines(tmp_path / "adapted")[-1]
    published = sampling_program(
        tmp_path / "plain",
        arrays,
        codec,
        base={"hub": str(tmp_path / "adapted" / "result")},
        sample_texts=1,
    )
    with Run(tmp_path / "plain") as run:
        trainer = build_trainer(run, published)
        trainer.sampler.sample(trainer.strategy, last["step"])
    folders = [tmp_path / name / "result" / "listening" for name in ("adapted", "plain")]
    first, second = (soundfile.read(folder / last["audio"])[0] for folder in folders)
    assert len(first) == len(second) and (first == second).all()


def test_pretraining_synthesizes_nothing(
    arrays: Path, codec: Path, streams: Path, tmp_path: Path
) -> None:
    changes = {"pretraining": {}, "concatenate": None, "max_seq_len": 200, "steps": 2}
    values = program_values(tmp_path, arrays, **changes, sample_texts=2, eval_every=2)
    given = {"tokens": {"asterisk": str(streams)}, "codec_folder": str(codec)}
    train(SftProgram.model_validate(values | given))
    assert not (tmp_path / "result" / "listening.ipynb").exists()
