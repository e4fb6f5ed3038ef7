"""The model speaks while it learns, through a real (untrained) codec, and learns the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from tests.sft.conftest import ARCHITECTURE, CODEBOOK, program_values, speaking_folder
from tests.sft.test_train import losses, train, weights
from tts_assets.codec.storage import save_compact
from tts_assets.codec.xcodec2 import build
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run
from tts_assets.sft.config import SftProgram
from tts_assets.sft.train import build_trainer


def listening(run_dir: Path, arrays: Path, codec: Path, **changes: Any) -> SftProgram:
    changes = {"sample_texts": 2, "sample_every": 4, "dropout": 0.1, "code_dropout": 0.2} | changes
    values = program_values(run_dir, arrays, **changes)
    return SftProgram.model_validate(values | {"codec_folder": str(codec)})


def lines(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "result" / "listening" / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def heard(arrays: Path, codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that spoke after the fourth and after the last."""
    folder = tmp_path_factory.mktemp("heard")
    train(listening(folder, arrays, codec))
    return folder


def test_texts_are_spoken_beside_the_recordings(heard: Path, arrays: Path) -> None:
    found = lines(heard)
    assert [(line["step"], line["number"]) for line in found] == [
        (step, number) for step in (0, 4, 6) for number in (0, 1)
    ]
    texts = [json.loads(line)["transcript"] for line in (arrays / "val_samples.jsonl").open()]
    recordings = [soundfile.info(heard / "result/listening" / f"recording-{n}.flac") for n in "01"]
    longest = max(info.duration for info in recordings)
    for line in found:
        assert line["text"] in texts and line["text"] == found[line["number"]]["text"]
        info = soundfile.info(heard / "result" / "listening" / line["audio"])
        assert info.samplerate == 16000 and 0 < info.duration <= 2 * longest
        with soundfile.SoundFile(heard / "result" / "listening" / line["audio"]) as file:
            assert file.comment.startswith("Synthetic speech by sft/test.") == (line["step"] > 0)
    notebook = json.loads((heard / "result" / "listening.ipynb").read_text())
    players = [cell["outputs"][0]["data"]["text/html"] for cell in notebook["cells"][2::2]]
    assert [player.count("data:audio/flac;base64,") for player in players] == [3, 3]
    assert "the recording" in players[0] and "step 6" in players[0]


def test_listening_changes_nothing(heard: Path, arrays: Path, codec: Path, tmp_path: Path) -> None:
    train(listening(tmp_path, arrays, codec, sample_texts=0))
    assert losses(tmp_path) == losses(heard)
    expected = weights(heard)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())
    assert not (tmp_path / "result" / "listening.ipynb").exists()


def test_a_resumed_run_sounds_the_same(
    heard: Path, arrays: Path, codec: Path, tmp_path: Path
) -> None:
    """It stops after it has spoken at step 4, is set back to step 3, and speaks there again."""
    config = listening(tmp_path, arrays, codec, save_every=3)
    with Run(tmp_path) as run:
        trainer = build_trainer(run, config)
        for step in range(4):
            trainer.train_step(step)
            if step == 2:
                trainer.checkpoints.save(trainer.strategy, trainer.progress)
        trainer.sampler.sample(trainer.strategy, 4)
        trainer.wait_for_saves()
    train(config)
    assert lines(tmp_path) == lines(heard)
    for line in lines(heard):
        name = Path("result") / "listening" / line["audio"]
        assert (tmp_path / name).read_bytes() == (heard / name).read_bytes(), name


def test_a_codec_that_did_not_make_the_codes_is_refused(
    arrays: Path, codec: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    save_compact(build(ARCHITECTURE.model_copy(update={"levels": (4, 4, 4)}), 0), small, "fp32")
    with pytest.raises(ConfigError, match=f"has 64 codes, the arrays {CODEBOOK}"):
        train(listening(tmp_path / "run", arrays, small, steps=1))
    with pytest.raises(ConfigError, match="holds no codec"):
        train(listening(tmp_path / "other", arrays, tmp_path))
    with pytest.raises(ConfigError, match="give codec_folder, or write sample_texts = 0"):
        SftProgram.parse(program_values(tmp_path, arrays, sample_texts=1), "run.json")


def test_an_adapted_model_speaks_as_the_published_one(
    arrays: Path, codec: Path, tmp_path: Path
) -> None:
    """The weights of the last step, merged, say what was heard of that step."""
    base = {"hub": str(speaking_folder(tmp_path / "base"))}
    optimizer = {"lr": 1e-2, "warmup_share": 0.0}
    changes = {"base": base, "lora": {"rank": 4}, "optimizer": optimizer, "sample_texts": 1}
    config = listening(tmp_path / "adapted", arrays, codec, export="last", **changes)
    train(config)
    heard = lines(tmp_path / "adapted")[-1]
    published = listening(
        tmp_path / "plain",
        arrays,
        codec,
        base={"hub": str(tmp_path / "adapted" / "result")},
        sample_texts=1,
    )
    with Run(tmp_path / "plain") as run:
        trainer = build_trainer(run, published)
        trainer.sampler.sample(trainer.strategy, heard["step"])
    folders = [tmp_path / name / "result" / "listening" for name in ("adapted", "plain")]
    first, second = (soundfile.read(folder / heard["audio"])[0] for folder in folders)
    assert len(first) == len(second) and (first == second).all()


def test_pretraining_has_nothing_to_say(
    arrays: Path, codec: Path, streams: Path, tmp_path: Path
) -> None:
    changes = {"pretraining": {}, "concatenate": None, "max_seq_len": 200, "steps": 2}
    values = program_values(tmp_path, arrays, **changes, sample_texts=2, eval_every=2)
    given = {"tokens": {"asterisk": str(streams)}, "codec_folder": str(codec)}
    train(SftProgram.model_validate(values | given))
    assert not (tmp_path / "result" / "listening.ipynb").exists()
