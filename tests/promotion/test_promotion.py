"""Promotion: a candidate must reach all margins; rollback; the command line."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from dagster import AssetKey, DagsterInstance, materialize
from pydantic import ValidationError

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.promotion.conftest import TEXTS, Publisher
from tts_assets.core.artifacts import MANIFEST, ArtifactError, Handle, PromotionEvent, Report
from tts_assets.promotion import __main__ as command
from tts_assets.promotion import decision
from tts_assets.promotion import history as records
from tts_assets.promotion.assets import promoted_asset
from tts_assets.promotion.decision import PromotionConfig

VOICE = "voice"


def promoted_weights(publisher: Publisher) -> str:
    handle = records.promoted_now(publisher.store, VOICE)
    assert handle is not None
    handle.verify()
    return (handle.path / "model.safetensors").read_text()


def best(
    publisher: Publisher, config: PromotionConfig, failed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Promote; returns the reason by candidate. ``failed``: a blocking check by asset name."""

    def failed_by(artifact: Handle) -> list[str]:
        return [check for asset, check in failed.items() if asset == artifact.asset]

    decisions = decision.promote_best(publisher.store, VOICE, config, failed_by)[1]
    return {one.recipe: one.why for one in decisions}


def promoted_in_turn(publisher: Publisher, config: PromotionConfig, **models: float) -> None:
    """Promote models of the recipe ``first``: a WER by weights."""
    for weights, wer in models.items():
        publisher.candidate("first", weights, wer=wer)
        best(publisher, config)


def switch_again(publisher: Publisher, event: PromotionEvent = "by hand") -> None:
    """Switch to the model that is already promoted."""
    promoted = records.promoted_now(publisher.store, VOICE)
    assert promoted is not None
    records.switch(publisher.store, VOICE, promoted, promoted.facts.recipe, event, "again")


@pytest.fixture
def command_line(
    publisher: Publisher, config: PromotionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Publisher:
    """The project of the command, with a separate Dagster instance."""
    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("TTS__PROJECT__STORAGE", str(publisher.store.root))
    recipe = "{ base = { llama = {} }, corpora = { asterisk_en = 1.0 }, steps = 1 }"
    for name in config.candidates:
        monkeypatch.setenv(f"TTS__SFT__{name}", recipe)
    monkeypatch.setenv("TTS__PROMOTION__VOICE", '{ candidates = ["first", "second"] }')
    return publisher


def test_the_first_candidate_with_a_report_is_promoted_first(
    publisher: Publisher, config: PromotionConfig
) -> None:
    with pytest.raises(ArtifactError, match="has not been materialized yet"):
        best(publisher, config)
    publisher.candidate("second", "b")
    assert "not been materialized" in best(publisher, config)["first"]
    assert promoted_weights(publisher) == "b"


def test_a_candidate_must_reach_all_margins(publisher: Publisher, config: PromotionConfig) -> None:
    publisher.candidate("first", "a", wer=0.1)
    best(publisher, config)
    publisher.candidate("second", "b", wer=0.095)
    interval = "95 % interval +0.005 to +0.005, 20 texts"
    assert best(publisher, config)["second"] == f"wer +0.005 ({interval}), needed +0.01"
    publisher.candidate("second", "c", wer=0.05, dnsmos_p808=2.8)
    interval = "95 % interval -0.2 to -0.2, 20 texts"
    assert best(publisher, config)["second"] == f"dnsmos_p808 -0.2 ({interval}), needed -0.1"
    assert promoted_weights(publisher) == "a"
    publisher.candidate("second", "d", wer=0.09)  # exactly the margin, apart from rounding
    best(publisher, config)
    assert promoted_weights(publisher) == "d"
    publisher.candidate("first", "e", wer=0.075)
    publisher.candidate("second", "f", wer=0.06)
    best(publisher, config)
    assert promoted_weights(publisher) == "f"
    assert [handle.facts.event for handle in records.history(publisher.store, VOICE)] == [
        "first",
        "promoted",
        "promoted",
    ]


@pytest.mark.slow
def test_the_same_model_synthesized_again_is_not_promoted(
    publisher: Publisher, config: PromotionConfig
) -> None:
    """Two reports of equal models differ by chance: by their totals a third of them would win."""
    draws = np.random.default_rng(0)
    margin = config.margins["wer"]
    better = promoted = 0
    for number in range(30):
        reports = []
        for recipe in ("first", "second"):
            publisher.serving(recipe, f"{recipe}{number}")
            errors = list(draws.binomial(10, 0.1, TEXTS) / 10)
            report = publisher.report(recipe, spread={"wer": errors})
            assert isinstance(report, Report)
            reports.append(report)
        gain = decision.gains_of(reports[0], reports[1], config)["wer"]
        better += gain.value >= margin
        promoted += not gain.problem(margin)
    assert better >= 10
    assert promoted <= 1


def test_the_decision_states_its_interval(publisher: Publisher, config: PromotionConfig) -> None:
    publisher.candidate("first", "a", wer=0.1)
    best(publisher, config)
    chance = [0.0] * (TEXTS - 3) + [0.4] * 3  # 0.06: better by 0.04, but three texts decide
    publisher.candidate("second", "b", wer=0.1, spread={"wer": chance})
    why = best(publisher, config)["second"]
    interval = r"95 % interval -0\.0\d+ to \+0\.1, 20 texts"
    assert re.fullmatch(rf"wer \+0\.04 \({interval}\), needed \+0\.01: may be less by chance", why)
    worse = [2.8, 3.1] * (TEXTS // 2)  # a mean of 2.95, within the margin, but not for certain
    publisher.candidate("second", "c", wer=0.05, spread={"dnsmos_p808": worse})
    assert "needed -0.1: may be less by chance" in best(publisher, config)["second"]
    assert promoted_weights(publisher) == "a"
    publisher.candidate("second", "d", wer=0.05)
    assert "gains wer +0.05 (95 % interval +0.05 to" in best(publisher, config)["second"]
    assert promoted_weights(publisher) == "d"


def test_few_texts_decide_nothing(publisher: Publisher, config: PromotionConfig) -> None:
    few = {"wer": [0.1] * 9, "dnsmos_p808": [3.0] * 9, "speaker_similarity": [0.8] * 9}
    publisher.candidate("first", "a", spread=few)
    best(publisher, config)
    publisher.candidate("second", "b", spread={**few, "wer": [0.0] * 9})
    assert "an interval needs 10 texts" in best(publisher, config)["second"]
    assert promoted_weights(publisher) == "a"


def test_a_category_of_the_suite_can_decide(publisher: Publisher, config: PromotionConfig) -> None:
    digits = config.model_copy(update={"category": "digits"})
    publisher.candidate("first", "a")
    best(publisher, digits)
    publisher.candidate("second", "b", wer=0.12, digits=0.05)
    best(publisher, digits)
    assert promoted_weights(publisher) == "b"
    publisher.candidate("first", "c")
    with pytest.raises(ArtifactError, match=r"write one of \['digits', 'sentences'\]"):
        best(publisher, config.model_copy(update={"category": "poems"}))


def test_nothing_new_changes_nothing(publisher: Publisher, config: PromotionConfig) -> None:
    publisher.candidate("first", "a")
    best(publisher, config)
    before = records.promoted_now(publisher.store, VOICE)
    best(publisher, config)
    after = records.promoted_now(publisher.store, VOICE)
    assert before is not None and after is not None and before.path == after.path


def test_reports_of_other_texts_are_not_compared(
    publisher: Publisher, config: PromotionConfig
) -> None:
    publisher.candidate("first", "a")
    best(publisher, config)
    publisher.serving("second", "b")
    publisher.report("second", suite="easier texts", wer=0.0)
    assert "not comparable" in best(publisher, config)["second"]
    publisher.report("first", suite="easier texts", wer=0.2)  # of the same model
    best(publisher, config)
    assert promoted_weights(publisher) == "b"


def test_similarity_to_other_recordings_is_not_compared(
    publisher: Publisher, config: PromotionConfig
) -> None:
    publisher.candidate("first", "a")
    best(publisher, config)
    publisher.serving("second", "b")
    publisher.report("second", target="others", wer=0.05)
    similarity_only = config.model_copy(update={"margins": {"speaker_similarity": -0.02}})
    why = best(publisher, similarity_only)["second"]
    assert "speaker_similarity not compared: the promoted model was measured against" in why
    assert "set [evaluation] reference_corpora to fixed ones" in why
    assert promoted_weights(publisher) == "a"
    why = best(publisher, config)["second"]
    assert "gains" in why and "speaker_similarity not compared" in why
    assert promoted_weights(publisher) == "b"


@pytest.mark.parametrize("targets", list(permutations(["few", "more"])))
def test_the_newest_report_of_the_promoted_model_is_compared(
    publisher: Publisher, config: PromotionConfig, targets: tuple[str, ...]
) -> None:
    """It is the newest by time, whatever the names of the folders."""
    publisher.serving("first", "a")
    for age, target in zip((2, 1), targets, strict=True):
        report = publisher.report("first", target=target)
        os.utime(report.path / MANIFEST, (9 - age, 9 - age))
    best(publisher, config)
    publisher.serving("second", "b")
    publisher.report("second", target=targets[-1], wer=0.05)
    best(publisher, config)
    assert promoted_weights(publisher) == "b"


@pytest.mark.parametrize("asset", ["serving/second", "report/second"])
def test_a_failed_blocking_check_prevents_a_promotion(
    publisher: Publisher, config: PromotionConfig, asset: str
) -> None:
    publisher.candidate("second", "b", wer=0.0)
    with pytest.raises(ArtifactError, match=f"{asset} failed its blocking check it_holds"):
        best(publisher, config, {asset: "it_holds"})  # also if no model is promoted yet
    publisher.candidate("first", "a")
    best(publisher, config, {asset: "it_holds"})
    assert promoted_weights(publisher) == "a"
    why = best(publisher, config, {asset: "it_holds"})["second"]
    assert why.startswith(f"{asset} failed its blocking check it_holds")
    assert promoted_weights(publisher) == "a"


def test_an_unmeasured_metric_is_no_gain(publisher: Publisher, config: PromotionConfig) -> None:
    publisher.candidate("first", "a")
    best(publisher, config)
    publisher.serving("second", "b")
    publisher.report(
        "second", wer=0.0, dnsmos_p808=None
    )  # for example because all syntheses are too short
    assert "dnsmos_p808 could not be measured of both" in best(publisher, config)["second"]
    assert promoted_weights(publisher) == "a"


def test_a_report_of_an_earlier_model_does_not_count(
    publisher: Publisher, config: PromotionConfig
) -> None:
    publisher.candidate("first", "a")
    best(publisher, config)
    publisher.candidate("second", "b", wer=0.2)
    publisher.serving("second", "c")
    assert "report/second is of an earlier model" in best(publisher, config)["second"]


def test_an_incomplete_old_report_blocks_no_promotion(
    publisher: Publisher, config: PromotionConfig
) -> None:
    publisher.serving("first", "a")
    (publisher.report("first", suite="old texts").path / "report.json").unlink()
    publisher.report("first")
    best(publisher, config)
    publisher.candidate("second", "b", wer=0.05)
    best(publisher, config)
    assert promoted_weights(publisher) == "b"
    (publisher.store.current("report/second").path / "report.json").unlink()
    publisher.candidate("first", "c", wer=0.01)
    with pytest.raises(ArtifactError, match="is missing"):
        best(publisher, config)  # the promoted model has no readable report


def test_rollback_restores_the_previous_model(
    publisher: Publisher, config: PromotionConfig
) -> None:
    promoted_in_turn(publisher, config, a=0.1, b=0.08, c=0.06)
    records.rollback(publisher.store, VOICE, "clicks")
    assert promoted_weights(publisher) == "b"
    assert "was rolled back" in best(publisher, config)["first"]
    records.rollback(publisher.store, VOICE, "clicks, too")
    assert promoted_weights(publisher) == "a"
    with pytest.raises(ArtifactError, match="no other model was promoted for voice before"):
        records.rollback(publisher.store, VOICE, "again")
    publisher.candidate("first", "d", wer=0.05)
    best(publisher, config)
    assert promoted_weights(publisher) == "d"
    assert "clicks" in records.describe_history(records.history(publisher.store, VOICE))


def test_rollback_of_a_model_that_was_promoted_several_times(
    publisher: Publisher, config: PromotionConfig
) -> None:
    promoted_in_turn(publisher, config, a=0.1)
    switch_again(publisher)
    with pytest.raises(ArtifactError, match="no other model was promoted for voice before"):
        records.rollback(publisher.store, VOICE, "clicks")
    promoted_in_turn(publisher, config, b=0.08, c=0.06)
    switch_again(publisher)
    records.rollback(publisher.store, VOICE, "clicks")
    assert promoted_weights(publisher) == "b"
    records.rollback(publisher.store, VOICE, "clicks, too")
    assert promoted_weights(publisher) == "a"


def test_rollback_after_a_rollback_to_the_same_model(
    publisher: Publisher, config: PromotionConfig
) -> None:
    """Older versions allowed to promote a model that was already promoted."""
    promoted_in_turn(publisher, config, a=0.1, b=0.08)
    switch_again(publisher)
    switch_again(publisher, "rolled back")
    records.rollback(publisher.store, VOICE, "clicks")
    assert promoted_weights(publisher) == "a"
    assert "was rolled back" in best(publisher, config)["first"]


def test_promoting_the_promoted_model_changes_nothing(
    command_line: Publisher, config: PromotionConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted_in_turn(command_line, config, a=0.1, b=0.08)
    before = records.describe_history(records.history(command_line.store, VOICE))
    assert command.main(["promote", VOICE, "first"]) == 0
    assert "the model of first is already promoted" in capsys.readouterr().out
    assert records.describe_history(records.history(command_line.store, VOICE)) == before
    assert command.main(["rollback", VOICE]) == 0
    assert promoted_weights(command_line) == "a"


def test_the_promoted_model_survives_deletion_of_its_source(
    publisher: Publisher, config: PromotionConfig
) -> None:
    publisher.candidate("first", "a")
    best(publisher, config)
    publisher.candidate("first", "b", wer=0.05)
    best(publisher, config)
    shutil.rmtree(publisher.store.root / "serving")
    assert promoted_weights(publisher) == "b"
    records.rollback(publisher.store, VOICE, "")
    assert promoted_weights(publisher) == "a"


def test_a_damaged_candidate_is_not_promoted(publisher: Publisher, config: PromotionConfig) -> None:
    publisher.candidate("first", "a")
    best(publisher, config)
    publisher.candidate("second", "b", wer=0.05)
    (publisher.store.current("serving/second").path / "model.safetensors").write_text("c")
    assert "materialize serving/second again" in best(publisher, config)["second"]
    with pytest.raises(ArtifactError, match="materialize serving/second again"):
        command.promote(publisher.store, VOICE, "second", "by hand")
    assert promoted_weights(publisher) == "a"


def test_a_damaged_promoted_model_is_restored_as_its_message_says(
    publisher: Publisher, config: PromotionConfig
) -> None:
    """It shares its files with the serving model. Both are deleted and materialized again."""
    promoted_in_turn(publisher, config, a=0.1, b=0.08)
    promoted = records.promoted_now(publisher.store, VOICE)
    serving = publisher.store.current("serving/first")
    assert promoted is not None
    (serving.path / "model.safetensors").write_text("x")
    with pytest.raises(ArtifactError, match=r"delete the folder .* materialize promoted/voice"):
        promoted.verify()
    shutil.rmtree(serving.path)
    shutil.rmtree(promoted.path)
    publisher.candidate("first", "b", wer=0.08)
    best(publisher, config)
    assert promoted_weights(publisher) == "b"
    events = [handle.facts.event for handle in records.history(publisher.store, VOICE)]
    assert events == ["first", "promoted"]


def test_the_history_ends_where_earlier_changes_were_deleted(
    publisher: Publisher, config: PromotionConfig
) -> None:
    promoted_in_turn(publisher, config, a=0.1, b=0.08, c=0.06, d=0.04)
    chain = records.history(publisher.store, VOICE)
    assert "no longer stored" not in records.describe_history(chain)
    shutil.rmtree(chain[1].path)
    left = records.history(publisher.store, VOICE)
    assert [handle.path for handle in left] == [handle.path for handle in chain[2:]]
    assert "earlier changes are no longer stored" in records.describe_history(left)
    records.rollback(publisher.store, VOICE, "clicks")
    assert promoted_weights(publisher) == "c"
    with pytest.raises(ArtifactError, match="no longer stored"):
        records.rollback(publisher.store, VOICE, "clicks, too")
    publisher.candidate("first", "e", wer=0.02)
    best(publisher, config)
    assert promoted_weights(publisher) == "e"


def test_a_rolled_back_model_may_be_deleted(publisher: Publisher, config: PromotionConfig) -> None:
    promoted_in_turn(publisher, config, a=0.1, b=0.08)
    records.rollback(publisher.store, VOICE, "clicks")
    shutil.rmtree(records.history(publisher.store, VOICE)[1].path)
    with pytest.raises(ArtifactError, match="no longer stored"):
        records.rollback(publisher.store, VOICE, "again")
    assert "was rolled back" in best(publisher, config)["first"]
    publisher.candidate("first", "c", wer=0.01)
    best(publisher, config)
    records.rollback(publisher.store, VOICE, "clicks, too")
    assert promoted_weights(publisher) == "a"


def test_a_kill_before_the_switch_keeps_the_old_model(
    publisher: Publisher, config: PromotionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.candidate("first", "a")
    best(publisher, config)
    publisher.candidate("second", "b", wer=0.0)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(publisher.store), "select", killed)
        best(publisher, config)
    assert promoted_weights(publisher) == "a"
    best(publisher, config)
    assert promoted_weights(publisher) == "b"


def test_the_command_and_the_asset_share_the_history(
    command_line: Publisher, config: PromotionConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher = command_line
    root = str(publisher.store.root)
    resources = {
        "store": ArtifactStoreResource(root=root),
        "io_manager": ArtifactIOManager(root=root),
    }

    def promote() -> dict[str, object]:
        with DagsterInstance.get() as instance:
            result = materialize(
                [promoted_asset(VOICE, config, [])], instance=instance, resources=resources
            )
        (event,) = result.asset_materializations_for_node(f"promoted__{VOICE}")
        return {name: value.value for name, value in event.metadata.items()}

    publisher.candidate("first", "a")
    assert promote()["reused"] is False
    publisher.candidate("second", "b", wer=0.05)
    metadata = promote()
    assert metadata["reused"] is False and "| second | yes |" in str(metadata["decisions"])
    assert promote()["reused"] is True

    assert command.main(["rollback", VOICE, "--because", "clicks"]) == 0
    assert promoted_weights(publisher) == "a"
    with DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(AssetKey(["promoted", VOICE]))
    assert event is not None and event.asset_materialization is not None
    assert "clicks" in str(event.asset_materialization.metadata["history"].value)
    capsys.readouterr()
    assert command.main(["history"]) == 0
    assert "first (rolled back)" in capsys.readouterr().out
    assert command.main(["promote", VOICE, "second"]) == 0
    assert promoted_weights(publisher) == "b"
    assert command.main(["rollback", "nobody"]) == 1
    assert "add [promotion.nobody]" in capsys.readouterr().err


def test_margins_must_require_a_gain() -> None:
    with pytest.raises(ValidationError, match="require no gain"):
        PromotionConfig(candidates=("a",), margins={"wer": 0.0})
