"""The gate's baseline, and a gate that fails: an untrained model is worse than recordings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult

from tests.conftest import CORPUS
from tests.core.test_tracking import records, runs
from tests.evaluation.conftest import program_of
from tests.evaluation.test_assets import CHECKS, GIVEN, checks, run
from tests.evaluation.test_gates import SIMILARITY, WER
from tests.external_models.test_table import publish, report
from tests.support.links import linked_file
from tests.support.speaking import Speaking
from tts_assets.core.artifacts import ArtifactError, ArtifactStore, Build, EvaluationSuite, Report
from tts_assets.core.audio import read_clip
from tts_assets.core.program import Run
from tts_assets.core.tracking import WandbConfig, write_card
from tts_assets.evaluation.assets import CODE_VERSION
from tts_assets.evaluation.checks import baseline
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.evaluate import write_result
from tts_assets.evaluation.metric_runner import MetricRunner, SynthesizedUtterance
from tts_assets.evaluation.metrics import Column, Setting
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.recipes import determined
from tts_assets.evaluation.results import FIGURES_FILE
from tts_assets.evaluation.suite import SuiteText

SENTENCES = (
    "all-circuits-busy-now",
    "conf-invalidpin",
    "conf-leaderhasleft",
    "conf-now-recording",
    "conf-placeintoconf",
    "conf-waitforleader",
    "confbridge-invalid",
    "feature-not-avail-line",
    "please-try-call-later",
    "pls-hold-while-try",
    "vm-msgsaved",
    "vm-undelete",
)
PAIR = ("recorded", "tiny")


@dataclass
class Recorded:
    """A report whose syntheses are recordings; ``run_dir`` is that of a finished program."""

    texts: list[str]
    run_dir: Path
    facts: dict[str, object]

    def publish(self, speaking: Speaking, recipe: str) -> Report:
        """Publish it as the current report of ``recipe`` on the current suite."""
        suite = speaking.store.current("evaluation_suite")
        inputs = {
            "serving": speaking.serving,
            "suite": suite,
            "arrays": {"clips": speaking.arrays},
        }
        evaluation = EvaluationConfig.model_validate(GIVEN)
        _, known = determined(evaluation, None, speaking.store.root)
        build = Build(f"report/{recipe}", inputs, known | {"recorded": True}, CODE_VERSION)
        work = speaking.store.work_folder(build) / "result"
        work.parent.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "result").rename(work)
        handle = speaking.store.publish(Report, build, work, {**self.facts, "recipe": recipe})
        assert isinstance(handle, Report)
        return handle


@pytest.fixture
def recorded(setting: Setting, tmp_path: Path) -> Recorded:
    samples = [json.loads(line) for line in (CORPUS / "samples.jsonl").read_text().splitlines()]
    by_key = {row["original_data"]["key"]: row for row in samples}
    folder = tmp_path / "recorded"
    folder.mkdir()
    write_card(folder, WandbConfig(project="voices"), "report/recorded")
    texts = [by_key[key]["transcript"] for key in SENTENCES]
    with Run(folder) as program:
        utterances = []
        for number, key in enumerate(SENTENCES):
            clip = read_clip(CORPUS / by_key[key]["wav_path"])
            audio = program.result_dir / "audio" / f"t{number}-42.flac"
            write_flac(audio, clip.wave, clip.rate)
            text = SuiteText(id=f"t{number}", category="c", text=texts[number], language="en")
            utterances.append(SynthesizedUtterance(text, 42, None, audio, ended=True))
        metrics = MetricRunner(setting, tmp_path / "metrics.sqlite")
        rows = [row.model_dump() for row in metrics.measure(utterances)]
        record = {"rows": rows, "elapsed": 1.0, "measuring": {}}
        facts = write_result(program_of("recorded"), program, [record])
        program.finish(facts)
    return Recorded(texts, folder, facts)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        ephemeral.add_dynamic_partitions("corpus", ["clips"])
        yield ephemeral


def made(result: ExecuteInProcessResult) -> set[str]:
    events = result.get_asset_materialization_events()
    return {event.asset_key.to_user_string() for event in events if event.asset_key}


def test_an_unreadable_report_counts_only_if_it_is_current(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "storage")
    texts = {"texts": 1, "categories": {}}
    suite = publish(store, EvaluationSuite, Build("evaluation_suite", {}, {}, "1"), texts)
    old, better, last = (report(store, "tiny", suite, wer) for wer in (0.1, 0.2, 0.3))
    (old.path / "file").unlink()
    found = baseline(store, last, "", WER, "words")
    assert found is not None and found.path == better.path
    assert baseline(store, last, "other", WER, "words") is None  # it has no report
    (report(store, "other", suite, 0.1).path / "file").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        baseline(store, last, "other", WER, "words")


@pytest.mark.parametrize("recipe", ["", "other"])
def test_the_baseline_is_the_best_report_in_the_gated_metric(
    store: ArtifactStore, recipe: str
) -> None:
    """The report with the lowest WER is not the baseline for speaker similarity."""
    texts = {"texts": 1, "categories": {}}
    suite = publish(store, EvaluationSuite, Build("evaluation_suite", {}, {}, "1"), texts)
    reports = [
        report(store, recipe or "tiny", suite, wer, similarity)
        for wer, similarity in ((0.2, 0.9), (0.1, 0.7), (0.3, 0.8))
    ]
    elsewhere = report(store, recipe or "tiny", suite, 0.4, 0.95, target="another voice")
    last = report(store, "tiny", suite, 0.5, 0.69)

    def best(column: Column, metric: str) -> Path:
        found = baseline(store, last, recipe, column, metric)
        assert found is not None
        return found.path

    assert best(SIMILARITY, "similarity") == reports[0].path
    assert best(WER, "words") == reports[1].path
    moved = report(store, "tiny", suite, 0.5, 0.69, target="another voice")
    found = baseline(store, moved, recipe, SIMILARITY, "similarity")
    assert found is not None and found.path == elsewhere.path


@pytest.mark.slow
def test_a_worse_report_stops_the_run_and_the_comparison_has_the_difference(
    instance: DagsterInstance, speaking: Speaking, recorded: Recorded, tmp_path: Path
) -> None:
    options = {"recipes": PAIR, "comparisons": {"pair": {"models": PAIR}}, "seeds": [42]}
    select = ["report/tiny", "comparison/pair"]
    first = run(instance, speaking, tmp_path, recorded.texts, ["evaluation_suite"], **options)
    assert first.success
    published = recorded.publish(speaking, "recorded")
    assert published.facts.wer < 0.3

    gates = {"wer": 0.05, "baseline": "recorded"}
    stopped = run(instance, speaking, tmp_path, recorded.texts, select, gates=gates, **options)
    assert not stopped.success
    assert checks(stopped) == {**dict.fromkeys(CHECKS, True), "wer_gate": False}
    assert made(stopped) == {"report/tiny"}

    free = run(instance, speaking, tmp_path, recorded.texts, select, **options)
    assert free.success and made(free) == set(select)
    comparison = speaking.store.current("comparison/pair")
    figures = json.loads((comparison.path / FIGURES_FILE).read_text())
    assert figures["categories"]["c"]["low"] > 0.05
    events = free.get_asset_materialization_events()
    (metadata,) = [
        e.materialization.metadata for e in events if "blind_test" in e.materialization.metadata
    ]
    root = speaking.store.root
    assert linked_file(metadata["page"], root).is_file()
    listen = linked_file(metadata["listen"], root).read_text()
    assert listen.count("<audio ") == 2 * len(SENTENCES)


@pytest.mark.slow
def test_weights_and_biases_gets_the_table_of_a_report(recorded: Recorded) -> None:
    (folder,) = runs(recorded.run_dir / "wandb")
    logged = [item for record in records(folder) for item in record.history.item]
    (path,) = [item for item in logged if list(item.nested_key) == ["samples", "path"]]
    table = json.loads((folder / "files" / json.loads(path.value_json)).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["text"] for row in rows] == recorded.texts
    assert sum(row["wer"] for row in rows) / len(rows) < 0.3
    assert all(row["heard"] and row["dnsmos_p808"] > 1 for row in rows)
