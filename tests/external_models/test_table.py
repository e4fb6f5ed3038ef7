"""The table of all models, from what is published."""

from __future__ import annotations

import json

import pytest

from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Build,
    EvaluationSuite,
    Handle,
    Report,
)
from tts_assets.external_models.config import ModelSource, markdown, row

NOTES = {"old": "the demo's | voice"}


def publish(
    store: ArtifactStore, kind: type[Handle], build: Build, facts: object, **report: object
) -> Handle:
    folder = store.work_folder(build) / "result"
    folder.mkdir()
    (folder / "file").write_text(build.fingerprint)
    (folder / "report.json").write_text(json.dumps(report))
    return store.publish(kind, build, folder, facts)


def report(
    store: ArtifactStore,
    name: str,
    suite: Handle,
    wer: float,
    similarity: float = 0.8,
    target: str = "the voice",
    **config: object,
) -> Report:
    known = {
        "of": [wer, similarity, target],
        "versions": {"words": "1", "similarity": "2"},
        **config,
    }
    build = Build(f"report/{name}", {"suite": suite, "serving": suite}, known, "2")
    facts = {"recipe": name, "texts": 1, "wer": wer, "wer_by_category": {}, "dnsmos_p808": 3.0}
    facts["metrics"] = {"wer": wer, "speaker_similarity": similarity}
    made = publish(store, Report, build, facts, target=target)
    assert isinstance(made, Report)
    return made


def test_a_row_has_the_best_figures_of_the_current_suite(store: ArtifactStore) -> None:
    texts = {"texts": 1, "categories": {}}
    before, suite = (
        publish(store, EvaluationSuite, Build("evaluation_suite", {}, {"n": n}, "1"), texts)
        for n in range(2)
    )
    report(store, "old", before, 0.01)  # of another suite: does not count
    report(store, "old", suite, 0.2)
    report(store, "old", suite, 0.3)
    old = row(store, "old", ModelSource("speechlm", "sft"), NOTES)
    assert (old.status, old.figures_of, old.wer, old.dnsmos_p808) == ("reported", 2, 0.2, 3.0)
    new = row(store, "new", ModelSource("vits", "family"), NOTES)
    assert (new.status, new.runs, new.wer) == ("not trained yet", 0, None)
    lines = markdown([old, new]).splitlines()
    assert lines[2] == "| old | speechlm | reported | 0 | 20.0 % |  | 3.00 | the demo's \\| voice |"
    assert len(lines) == 4


def test_metrics_of_another_asr_model_do_not_count(store: ArtifactStore) -> None:
    texts = {"texts": 1, "categories": {}}
    suite = publish(store, EvaluationSuite, Build("evaluation_suite", {}, {}, "1"), texts)
    report(store, "old", suite, 0.01, whisper="large-v3")
    report(store, "old", suite, 0.2)
    known = row(store, "old", ModelSource("speechlm", "sft"), NOTES)
    assert (known.figures_of, known.wer) == (1, 0.2)


def test_an_incomplete_old_report_does_not_count(store: ArtifactStore) -> None:
    texts = {"texts": 1, "categories": {}}
    suite = publish(store, EvaluationSuite, Build("evaluation_suite", {}, {}, "1"), texts)
    old, _, current = (report(store, "old", suite, wer) for wer in (0.1, 0.2, 0.3))
    (old.path / "file").unlink()
    known = row(store, "old", ModelSource("speechlm", "sft"), NOTES)
    assert (known.figures_of, known.wer) == (2, 0.2)
    (current.path / "file").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        row(store, "old", ModelSource("speechlm", "sft"), NOTES)
