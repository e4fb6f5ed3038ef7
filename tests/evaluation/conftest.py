"""Real clips as syntheses, and the models that score them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.speaking import Speaking, publish_all
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.audio import Clip
from tts_assets.evaluation.config import EvaluationConfig, EvaluationProgram, LineageRow
from tts_assets.evaluation.metric_runner import MetricRunner, SynthesizedUtterance
from tts_assets.evaluation.metrics import Setting
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.report import write_report
from tts_assets.evaluation.suite import SuiteText

SENTENCES = ("agent-newlocation", "check-number-dial-again", "conf-invalid")
LINEAGE = LineageRow(
    asset="raw_corpus", partition="clips", content="8d1f0c2b77aa", code_version="1", detail="13"
)


@pytest.fixture(scope="session")
def absolute_clips(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``samples.jsonl`` with absolute paths, as the pipeline's own."""
    folder = tmp_path_factory.mktemp("absolute")
    rows = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"wav_path": str(clips / row["wav_path"])}) + "\n" for row in rows]
    (folder / "samples.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory, absolute_clips: Path) -> Speaking:
    return publish_all(ArtifactStore(tmp_path_factory.mktemp("storage")), absolute_clips)


def program_of(name: str, **values: object) -> EvaluationProgram:
    """The configuration of a report with this name."""
    given: dict[str, object] = {
        "run_dir": Path(),
        "evaluation": EvaluationConfig(suite=Path("suite.jsonl")),
        "serving_model": Path(),
        "suite": Path(),
        "references": (),
        "lineage": (LINEAGE,),
    }
    return EvaluationProgram.model_validate({"name": name, **given, **values})


@pytest.fixture(scope="session")
def setting(clips: Path) -> Setting:
    return Setting(
        EvaluationConfig(suite=Path("suite.jsonl")),
        references=(clips / "audio" / "agent-incorrect.g722",),
        characters_per_second=14.0,
    )


@pytest.fixture(scope="session")
def report(
    recordings: dict[str, tuple[str, Clip]],
    setting: Setting,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A report of three recordings as syntheses: the last one has the first one's text."""
    folder = tmp_path_factory.mktemp("report")
    metrics = MetricRunner(setting, folder.parent / "metrics.sqlite")
    utterances = []
    for number, key in enumerate(SENTENCES):
        transcript, clip = recordings[key]
        if number == 2:
            transcript = recordings[SENTENCES[0]][0]
        audio = folder / "audio" / f"{key}-42.flac"
        write_flac(audio, clip.wave, clip.rate)
        category = "wrong" if number == 2 else "right"
        text = SuiteText(id=key, category=category, text=transcript, language="en")
        utterances.append(SynthesizedUtterance(text, 42, None, audio, ended=True))
    write_report(folder, program_of("recordings"), metrics.measure(utterances))
    return folder
