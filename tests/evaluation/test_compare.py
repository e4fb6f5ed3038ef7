"""Comparisons: differences, the text summary, the blind test, and counting its votes."""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
from pathlib import Path

import pytest

from tests.evaluation.conftest import LINEAGE
from tts_assets.core.audio import statement
from tts_assets.core.config import ConfigError
from tts_assets.evaluation import blind_test
from tts_assets.evaluation.blind_test import BlindKey, Trial, Votes, count_votes
from tts_assets.evaluation.compare import ComparisonError, compare
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.metrics import columns_of
from tts_assets.evaluation.page import commented
from tts_assets.evaluation.results import difference, read_samples, write_samples
from tts_assets.settings import load_settings

CONFIG = EvaluationConfig(suite=Path("suite.jsonl"))
WER = next(column for column in columns_of(CONFIG) if column.name == "wer")


def better_copy(report: Path, folder: Path, name: str = "better") -> Path:
    """A copy of the report without word errors; speaker similarity is the same."""
    copy = folder / name
    shutil.copytree(report, copy)
    rows = [
        s.model_copy(update={"word_errors": 0, "heard": s.text, "values": s.values | {"wer": 0.0}})
        for s in read_samples(report)
    ]
    write_samples(copy / "samples.jsonl", rows)
    return copy


def digest(clip: bytes) -> bytes:
    """The MD5 of a FLAC file's samples, from its header."""
    return clip[26:42]


def compared(reports: dict[str, Path], result: Path) -> Path:
    result.mkdir()
    compare(reports, CONFIG, (LINEAGE,), result)
    return result


def test_three_models(report: Path, tmp_path: Path) -> None:
    better = better_copy(report, tmp_path)
    again = better_copy(report, tmp_path, "again")
    reports = {"base": report, "first": better, "second": again}
    result = tmp_path / "result"
    result.mkdir()
    facts = compare(reports, CONFIG, (), result)
    assert (facts["baseline"], facts["candidate"]) == ("base", "second")
    assert facts["wer_candidate"] == 0
    assert facts["wer_difference"] == -facts["wer_baseline"]
    assert facts["ci_low"] <= facts["wer_difference"] <= facts["ci_high"] <= 0
    figures = json.loads((result / "comparison.json").read_text())
    pairs = [row["models"] for row in figures["differences"] if row["column"] == "wer"]
    assert pairs == [["base", "first"], ["base", "second"], ["first", "second"]]
    page = (result / "comparison.html").read_text()
    assert page.count("<audio ") == 9
    assert "3 texts are too few to compare second and first" in (result / "summary.md").read_text()


def twenty_texts(report: Path, folder: Path, digit_errors: float, **shift: float) -> Path:
    """The first synthesis of a report under twenty ids in each of two categories.

    The texts of ``digits`` have the WER ``digit_errors``, more or less; ``shift`` is added to the
    values of every other text.
    """
    shutil.copytree(report, folder)
    (first, *_) = read_samples(report)
    rows = []
    draw = random.Random(folder.name)
    for number in range(40):
        category = "digits" if number < 20 else "sentences"
        error = digit_errors + draw.uniform(-0.05, 0.05) if number < 20 else 0.2
        values = {name: first.values[name] + (number % 2) * by for name, by in shift.items()}
        update = {"id": f"{category}-{number}", "category": category}
        rows.append(
            first.model_copy(update=update | {"values": first.values | values | {"wer": error}})
        )
    write_samples(folder / "samples.jsonl", rows)
    return folder


def test_the_summary_starts_with_the_decisive_category(report: Path, tmp_path: Path) -> None:
    before = twenty_texts(report, tmp_path / "before", 0.3)
    after = twenty_texts(
        report, tmp_path / "after", 0.1, speaker_similarity=0.02, f0_spread=0.01, dnsmos_p808=0.5
    )
    result = tmp_path / "result"
    result.mkdir()
    compare({"before": before, "after": after}, CONFIG, (), result, decisive=["digits"])
    first, better, same, intervals = (result / "summary.md").read_text().splitlines()
    assert first.startswith("- digits, which decides on promotion: after is better, WER ")
    assert " % instead of " in first and first.endswith(" compared with before.")
    assert better.startswith("- after is better in WER: ") and "DNSMOS P.808: " in better
    assert "similarity" not in better, "0.01 is certain, but too small to matter"
    assert "pitch deviation" in same and "speaker similarity" in same and "digits" not in same
    assert "WER of sentences" in same
    figures = json.loads((result / "comparison.json").read_text())
    number = figures["intervals"]
    assert number == len(figures["differences"]) + 2
    assert f"corrected for their number, {number} (Bonferroni)" in intervals
    (wer,) = [row for row in figures["differences"] if row["column"] == "wer"]
    alone = difference(read_samples(before), read_samples(after), WER)
    assert alone is not None and wer["high"] - wer["low"] > alone.high - alone.low


def test_a_decisive_category_without_a_change_is_named(report: Path, tmp_path: Path) -> None:
    folders = {
        name: twenty_texts(report, tmp_path / name, error)
        for name, error in (("before", 0.3), ("after", 0.302))
    }
    result = tmp_path / "result"
    result.mkdir()
    compare(folders, CONFIG, (), result, decisive=["digits", "of another suite"])
    first, *rest = (result / "summary.md").read_text().splitlines()
    assert "digits, which decides on promotion: after does not differ significantly" in first
    assert len(rest) == 2


def test_categories_of_promotions_come_from_the_project() -> None:
    chosen = {"promotion": {"announcer": {"category": "digits"}}}
    assert load_settings(environment={}, overrides=chosen).decisive == {
        "announcer": ["digits"],
        "announcer_grpo": ["digits"],
    }


def test_texts_with_the_largest_differences_come_first(report: Path, tmp_path: Path) -> None:
    better = better_copy(report, tmp_path)
    rows = read_samples(report)
    rows[1] = rows[1].model_copy(update={"audio": None, "values": rows[1].values | {"wer": 1.0}})
    shutil.copytree(report, tmp_path / "mute")
    write_samples(tmp_path / "mute" / "samples.jsonl", rows)
    result = compared({"mute": tmp_path / "mute", "better": better}, tmp_path / "result")
    cells = json.loads((result / "listening.ipynb").read_text())["cells"]
    titles = [cell["source"] for cell in cells if cell["source"]]
    assert [title.split(":")[0] for title in titles] == ["# Listening", "## right", "## wrong"]
    assert titles[2].startswith("## wrong: WER mute ") and ", better 0.0 %" in titles[2]
    right, wrong = (c["outputs"][0]["data"]["text/html"] for c in cells if not c["source"])
    assert (right.count("<audio "), wrong.count("<audio ")) == (3, 2)
    assert right.index(f"{rows[1].text} (no audio of mute)") < right.index(rows[0].text)
    assert "mute; ASR transcript: " in wrong and "better; ASR transcript: as written" in wrong


def test_reports_of_other_suites_are_refused(report: Path, tmp_path: Path) -> None:
    other = better_copy(report, tmp_path)
    write_samples(other / "samples.jsonl", read_samples(report)[1:])
    with pytest.raises(ComparisonError, match=r"1 texts differ.*'agent-newlocation'"):
        compare({"a": report, "b": other}, CONFIG, (), tmp_path)


def test_metrics_with_other_references_are_left_out(report: Path, tmp_path: Path) -> None:
    better = better_copy(report, tmp_path)
    written = json.loads((better / "report.json").read_text())
    (better / "report.json").write_text(json.dumps(written | {"target": "of other clips"}))
    result = compared({"a": report, "b": better}, tmp_path / "result")
    figures = json.loads((result / "comparison.json").read_text())
    columns = {row["column"] for row in figures["differences"]}
    assert "wer" in columns
    assert not columns & {"speaker_similarity", "duration_ratio"}
    message = "not compared: the reports measure it against other recordings"
    assert (
        f"Speaker similarity and duration ratio: {message}" in (result / "summary.md").read_text()
    )
    alike = compared({"a": report, "b": report}, tmp_path / "alike")
    assert "speaker_similarity" in (alike / "comparison.json").read_text()
    assert message not in (alike / "summary.md").read_text()


def test_the_blind_page_names_no_model(report: Path, tmp_path: Path) -> None:
    better = better_copy(report, tmp_path)
    names = {"carthage": better_copy(report, tmp_path, "worse"), "palmyra": better}
    for name, folder in names.items():
        for path in (folder / "audio").iterdir():
            path.write_bytes(commented(path, statement(f"sft/{name}", "a citizen")))
    result = compared(names, tmp_path / "result")
    page = (result / "blind.html").read_text()
    clips = [
        base64.b64decode(data) for data in re.findall(r"data:audio/flac;base64,([^\"]+)", page)
    ]
    assert len(clips) == 6
    known = {digest(path.read_bytes()) for path in (report / "audio").iterdir()}
    for clip in clips:
        assert b"Synthetic speech. DigitalSourceType" in clip and b"citizen" not in clip
        assert not any(name.encode() in clip for name in names)
        assert digest(clip) in known, "the audio samples are unchanged"
    assert not any(name in page for name in names)
    key = BlindKey.from_json(result / "blind_key.json")
    assert len(key.trials) == 3
    assert all(trial.id in page for trial in key.trials)
    again = compared(names, tmp_path / "again")
    assert (again / "blind.html").read_text() == page


def ballot_of(choices: str) -> tuple[BlindKey, Votes]:
    """A letter for each trial of a and b: the winner, or = for a tie."""
    trials = tuple(
        Trial(id=f"t{n}", text="x", first="ab"[n % 2], second="ba"[n % 2])
        for n in range(len(choices))
    )
    given = {
        trial.id: "same" if choice == "=" else "first" if trial.first == choice else "second"
        for trial, choice in zip(trials, choices, strict=True)
    }
    return BlindKey(test="t", trials=trials), Votes.model_validate({"test": "t", "votes": given})


def test_votes_are_counted_by_model() -> None:
    key, ballot = ballot_of("bbbbbbbbba==")
    (row,) = count_votes(key, [ballot])
    assert (row.a_wins, row.b_wins, row.ties) == (1, 9, 2)
    assert row.p == pytest.approx(2 * 11 / 2**10), "the two-sided binomial test"
    assert row.low < 0.9 < row.high
    even, split = ballot_of("ab")
    assert count_votes(even, [split])[0].p == 1.0
    with pytest.raises(ConfigError, match=r"are of test u.*this comparison's is t"):
        count_votes(key, [ballot.model_copy(update={"test": "u"})])


def test_votes_are_counted_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, ballot = ballot_of("bbbb")
    (tmp_path / "blind_key.json").write_text(key.to_json())
    (tmp_path / "votes.json").write_text(ballot.to_json())
    blind_test.main([str(tmp_path), str(tmp_path / "votes.json")])
    assert "a 0, b 4, no difference 0: b wins 100%" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        blind_test.main([str(tmp_path), str(tmp_path / "nowhere.json")])
    assert "no such configuration file" in capsys.readouterr().err
