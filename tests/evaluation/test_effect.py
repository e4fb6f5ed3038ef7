"""The effect of training: assessments of each step, regressions, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.conftest import LINEAGE
from tests.evaluation.test_compare import CONFIG, twenty_texts
from tts_assets.evaluation.compare import ComparisonError
from tts_assets.evaluation.effect import SAME, SuiteReports, write_effect
from tts_assets.evaluation.results import read_samples, write_samples

STEPS = {"base": "", "voice": "base", "voice_grpo": "voice", "voice_dpo": "voice"}


@pytest.fixture(scope="module")
def written(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The effect of a voice: SFT helps the digits, GRPO lowers the MOS, DPO changes nothing."""
    root = tmp_path_factory.mktemp("effect")
    folders = {
        "base": twenty_texts(report, root / "base", 0.5),
        "voice": twenty_texts(report, root / "voice", 0.1),
        "voice_grpo": twenty_texts(report, root / "voice_grpo", 0.1, dnsmos_p808=-1.0),
        "voice_dpo": twenty_texts(report, root / "voice_dpo", 0.1),
    }
    rows = read_samples(folders["voice_grpo"])
    worst = rows[5].model_copy(update={"values": rows[5].values | {"wer": 1.0}})
    write_samples(folders["voice_grpo"] / "samples.jsonl", [*rows[:5], worst, *rows[6:]])
    suites = {
        "main": SuiteReports(folders, CONFIG, decisive=["digits"]),
        "numerals": SuiteReports(folders, CONFIG, measured_differently=["similarity"]),
    }
    result = root / "result"
    result.mkdir()
    facts = write_effect(result, "voice", STEPS, suites, (LINEAGE,))
    assert facts["voice"] == "voice"
    # WER, CER and the WER of the digits on each suite; P.808 of GRPO on each.
    assert (facts["better"], facts["worse"]) == (4, 2)
    return result


def test_each_step_is_assessed_against_its_own_base(written: Path) -> None:
    sft, grpo, dpo, intervals = (written / "summary.md").read_text().splitlines()
    assert sft.startswith("- voice, trained from base: training helped. Of ")
    assert "training made the model worse" in grpo and grpo.endswith(" 0 are better and 2 worse.")
    assert dpo.startswith("- voice_dpo, trained from voice: training had no measurable effect.")
    found = json.loads((written / "effect.json").read_text())
    assert f"their number, {found['intervals']} (Bonferroni)" in intervals
    rows = found["suites"]["main"]["differences"]
    assert found["intervals"] > len(rows), "the intervals of both suites count"
    digits = {row["model"]: row for row in rows if row["title"] == "WER of digits"}
    assert digits["voice"]["assessment"] == "better" and digits["voice"]["high"] < 0
    assert digits["voice_dpo"]["assessment"] == SAME
    assert "base" not in digits


def test_the_worst_regression_comes_first_and_is_played_beside_its_base(written: Path) -> None:
    found = json.loads((written / "effect.json").read_text())["suites"]["main"]["regressions"]
    first, *_ = [row for row in found if row["model"] == "voice_grpo"]
    assert first["id"] == "digits-5"
    page = (written / "effect.html").read_text()
    heading = page.index("Worst regressions of voice_grpo")
    part = page[heading : page.index("<h3>", heading)]
    assert part.count("<audio ") == 2 * part.count('<li><p class="text"') > 0
    assert "WER 100.0 % instead of " in part and "DNSMOS P.808 " in part
    assert "raw_corpus" in page and "digits, which decides on promotion" in page


def test_what_is_measured_differently_is_not_assessed(written: Path) -> None:
    suites = json.loads((written / "effect.json").read_text())["suites"]
    titles = {name: {row["title"] for row in suites[name]["differences"]} for name in suites}
    assert titles["main"] - titles["numerals"] == {"Speaker similarity"}
    assert "speaker similarity: not compared" in (written / "effect.html").read_text().lower()


def test_reports_on_other_texts_are_refused(report: Path, tmp_path: Path) -> None:
    folders = {"base": report, "voice": twenty_texts(report, tmp_path / "voice", 0.1)}
    with pytest.raises(ComparisonError, match="not of the same suite"):
        write_effect(
            tmp_path,
            "voice",
            {"base": "", "voice": "base"},
            {"main": SuiteReports(folders, CONFIG)},
        )
