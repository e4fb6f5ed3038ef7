"""Real clips as syntheses, and the real models that score them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.speaking import Speaking, publish_all
from tts_assets.artifacts import ArtifactStore
from tts_assets.audio import Clip
from tts_assets.evaluation.config import EvaluationConfig, LineageRow
from tts_assets.evaluation.report import write_report
from tts_assets.evaluation.results import SampleResult
from tts_assets.evaluation.scoring import Scorer, write_flac
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


@pytest.fixture(scope="session")
def report(
    recordings: dict[str, tuple[str, Clip]],
    clips: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A report of three recordings as syntheses: two under their texts, one under another's."""
    folder = tmp_path_factory.mktemp("report")
    config = EvaluationConfig(suite=Path("suite.jsonl"))
    scorer = Scorer(config, [clips / "audio" / "agent-incorrect.g722"])
    samples: list[SampleResult] = []
    for number, key in enumerate(SENTENCES):
        said, clip = recordings[key]
        if number == 2:
            said = recordings[SENTENCES[0]][0]
        audio = folder / "audio" / f"{key}-42.flac"
        write_flac(audio, clip.wave, clip.rate)
        category = "wrong" if number == 2 else "right"
        text = SuiteText(id=key, category=category, text=said)
        samples.append(scorer.score(text, 42, audio, ended=True))
    write_report(folder, "recordings", samples, config, [LINEAGE])
    return folder
