"""Who serves: only what is better by all margins, and back again with one command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from types import MappingProxyType

import pytest
from dagster import AssetKey, DagsterInstance, materialize
from pydantic import ValidationError

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.promotion.conftest import Studio
from tts_assets.core.artifacts import MANIFEST, ArtifactError, Handle, PromotionEvent
from tts_assets.promotion import __main__ as command
from tts_assets.promotion import decision as pointer
from tts_assets.promotion.assets import promote_best, promoted_asset
from tts_assets.promotion.config import PromotionConfig

VOICE = "voice"


def serving(studio: Studio) -> str:
    handle = pointer.serving_now(studio.store, VOICE)
    assert handle is not None
    handle.verify()
    return (handle.path / "model.safetensors").read_text()


def best(
    studio: Studio, config: PromotionConfig, failed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Promote; why each candidate won or not. ``failed``: a blocking check by the asset's name."""

    def failed_by(artifact: Handle) -> list[str]:
        return [check for asset, check in failed.items() if asset == artifact.asset]

    verdicts = promote_best(studio.store, VOICE, config, failed_by)[1]
    return {verdict.recipe: verdict.why for verdict in verdicts}


def promoted_in_turn(studio: Studio, config: PromotionConfig, **models: float) -> None:
    """Models of the recipe ``first`` by their weights, with their word errors."""
    for weights, wer in models.items():
        studio.candidate("first", weights, wer=wer)
        best(studio, config)


def switch_again(studio: Studio, event: PromotionEvent = "by hand") -> None:
    """To the very model that serves."""
    serves = pointer.serving_now(studio.store, VOICE)
    assert serves is not None
    pointer.switch(studio.store, VOICE, serves, serves.facts.recipe, event, "again")


@pytest.fixture
def command_line(
    studio: Studio, config: PromotionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Studio:
    """The project that the command reads, with a Dagster instance of its own."""
    home = tmp_path / "dagster"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("TTS__PROJECT__STORAGE", str(studio.store.root))
    recipe = "{ base = { llama = {} }, corpora = { asterisk_en = 1.0 }, steps = 1 }"
    for name in config.candidates:
        monkeypatch.setenv(f"TTS__SFT__{name}", recipe)
    monkeypatch.setenv("TTS__PROMOTION__VOICE", '{ candidates = ["first", "second"] }')
    return studio


def test_the_first_candidate_with_a_report_serves_first(
    studio: Studio, config: PromotionConfig
) -> None:
    with pytest.raises(ArtifactError, match="has not been materialized yet"):
        best(studio, config)
    studio.candidate("second", "b")
    assert "not been materialized" in best(studio, config)["first"]
    assert serving(studio) == "b"


def test_only_a_candidate_that_reaches_all_margins_replaces_what_serves(
    studio: Studio, config: PromotionConfig
) -> None:
    studio.candidate("first", "a", wer=0.1)
    best(studio, config)
    studio.candidate("second", "b", wer=0.095)
    assert best(studio, config)["second"] == "wer +0.005, needed +0.01"
    studio.candidate("second", "c", wer=0.05, dnsmos_p808=2.8)
    assert best(studio, config)["second"] == "dnsmos_p808 -0.2, needed -0.1"
    assert serving(studio) == "a"
    studio.candidate("second", "d", wer=0.09)  # the margin itself, but for rounding
    best(studio, config)
    assert serving(studio) == "d"
    studio.candidate("first", "e", wer=0.075)
    studio.candidate("second", "f", wer=0.06)
    best(studio, config)
    assert serving(studio) == "f"
    assert [handle.facts.event for handle in pointer.history(studio.store, VOICE)] == [
        "first",
        "promoted",
        "promoted",
    ]


def test_a_category_of_the_suite_can_decide(studio: Studio, config: PromotionConfig) -> None:
    digits = config.model_copy(update={"category": "digits"})
    studio.candidate("first", "a")
    best(studio, digits)
    studio.candidate("second", "b", wer=0.12, digits=0.05)
    best(studio, digits)
    assert serving(studio) == "b"
    studio.candidate("first", "c")
    with pytest.raises(ArtifactError, match=r"write one of \['digits'\]"):
        best(studio, config.model_copy(update={"category": "poems"}))


def test_nothing_new_changes_nothing(studio: Studio, config: PromotionConfig) -> None:
    studio.candidate("first", "a")
    best(studio, config)
    before = pointer.serving_now(studio.store, VOICE)
    best(studio, config)
    after = pointer.serving_now(studio.store, VOICE)
    assert before is not None and after is not None and before.path == after.path


def test_reports_of_other_texts_are_not_compared(studio: Studio, config: PromotionConfig) -> None:
    studio.candidate("first", "a")
    best(studio, config)
    studio.serving("second", "b")
    studio.report("second", suite="easier texts", wer=0.0)
    assert "not comparable" in best(studio, config)["second"]
    studio.report("first", suite="easier texts", wer=0.2)  # of the same model
    best(studio, config)
    assert serving(studio) == "b"


def test_likeness_to_other_recordings_is_not_compared(
    studio: Studio, config: PromotionConfig
) -> None:
    studio.candidate("first", "a")
    best(studio, config)
    studio.serving("second", "b")
    studio.report("second", target="others", wer=0.05)
    likeness_alone = config.model_copy(update={"margins": {"speaker_similarity": -0.02}})
    why = best(studio, likeness_alone)["second"]
    assert "speaker_similarity not compared: the model that serves was measured against" in why
    assert "[evaluation] target names fixed ones" in why
    assert serving(studio) == "a"
    why = best(studio, config)["second"]
    assert "gains" in why and "speaker_similarity not compared" in why
    assert serving(studio) == "b"


@pytest.mark.parametrize("targets", list(permutations(["few", "more"])))
def test_the_newest_report_of_what_serves_is_compared(
    studio: Studio, config: PromotionConfig, targets: tuple[str, ...]
) -> None:
    """Whatever the names of their folders: its recordings are the candidate's."""
    studio.serving("first", "a")
    for age, target in zip((2, 1), targets, strict=True):
        report = studio.report("first", target=target)
        os.utime(report.path / MANIFEST, (9 - age, 9 - age))
    best(studio, config)
    studio.serving("second", "b")
    studio.report("second", target=targets[-1], wer=0.05)
    best(studio, config)
    assert serving(studio) == "b"


@pytest.mark.parametrize("asset", ["serving/second", "report/second"])
def test_what_failed_a_blocking_check_does_not_serve(
    studio: Studio, config: PromotionConfig, asset: str
) -> None:
    studio.candidate("second", "b", wer=0.0)
    with pytest.raises(ArtifactError, match=f"{asset} failed its blocking check it_holds"):
        best(studio, config, {asset: "it_holds"})  # nor if nothing serves yet
    studio.candidate("first", "a")
    best(studio, config, {asset: "it_holds"})
    assert serving(studio) == "a"
    why = best(studio, config, {asset: "it_holds"})["second"]
    assert why.startswith(f"{asset} failed its blocking check it_holds")
    assert serving(studio) == "a"


def test_what_could_not_be_measured_is_no_gain(studio: Studio, config: PromotionConfig) -> None:
    studio.candidate("first", "a")
    best(studio, config)
    studio.serving("second", "b")
    studio.report("second", wer=0.0, dnsmos_p808=None)  # as of syntheses too short to judge
    assert "dnsmos_p808 could not be measured of both" in best(studio, config)["second"]
    assert serving(studio) == "a"


def test_a_report_of_an_earlier_model_does_not_count(
    studio: Studio, config: PromotionConfig
) -> None:
    studio.candidate("first", "a")
    best(studio, config)
    studio.candidate("second", "b", wer=0.2)
    studio.serving("second", "c")
    assert "report/second is of an earlier model" in best(studio, config)["second"]


def test_an_old_report_that_is_being_deleted_stops_nobody(
    studio: Studio, config: PromotionConfig
) -> None:
    studio.serving("first", "a")
    (studio.report("first", suite="old texts").path / "report.json").unlink()
    studio.report("first")
    best(studio, config)
    studio.candidate("second", "b", wer=0.05)
    best(studio, config)
    assert serving(studio) == "b"
    (studio.store.current("report/second").path / "report.json").unlink()
    studio.candidate("first", "c", wer=0.01)
    with pytest.raises(ArtifactError, match="is missing"):
        best(studio, config)  # what serves has no report to be compared with


def test_rollback_brings_back_what_served_and_keeps_it(
    studio: Studio, config: PromotionConfig
) -> None:
    promoted_in_turn(studio, config, a=0.1, b=0.08, c=0.06)
    pointer.rollback(studio.store, VOICE, "it lisps")
    assert serving(studio) == "b"
    assert "was rolled back" in best(studio, config)["first"]
    pointer.rollback(studio.store, VOICE, "that one, too")
    assert serving(studio) == "a"
    with pytest.raises(ArtifactError, match="no other model served voice before"):
        pointer.rollback(studio.store, VOICE, "again")
    studio.candidate("first", "d", wer=0.05)
    best(studio, config)
    assert serving(studio) == "d"
    assert "it lisps" in pointer.describe_promoted(pointer.history(studio.store, VOICE))


def test_rollback_leaves_a_model_however_often_it_was_promoted(
    studio: Studio, config: PromotionConfig
) -> None:
    promoted_in_turn(studio, config, a=0.1)
    switch_again(studio)
    with pytest.raises(ArtifactError, match="no other model served voice before"):
        pointer.rollback(studio.store, VOICE, "it lisps")
    promoted_in_turn(studio, config, b=0.08, c=0.06)
    switch_again(studio)
    pointer.rollback(studio.store, VOICE, "it lisps")
    assert serving(studio) == "b"
    pointer.rollback(studio.store, VOICE, "that one, too")
    assert serving(studio) == "a"


def test_a_rollback_to_the_same_model_is_rolled_back_beyond(
    studio: Studio, config: PromotionConfig
) -> None:
    """Such histories were written while a model could be promoted over itself."""
    promoted_in_turn(studio, config, a=0.1, b=0.08)
    switch_again(studio)
    switch_again(studio, "rolled back")
    pointer.rollback(studio.store, VOICE, "it lisps")
    assert serving(studio) == "a"
    assert "was rolled back" in best(studio, config)["first"]


def test_promoting_what_serves_says_so_and_changes_nothing(
    command_line: Studio, config: PromotionConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted_in_turn(command_line, config, a=0.1, b=0.08)
    before = pointer.describe_promoted(pointer.history(command_line.store, VOICE))
    assert command.main(["promote", VOICE, "first"]) == 0
    assert "served by the model of first already" in capsys.readouterr().out
    assert pointer.describe_promoted(pointer.history(command_line.store, VOICE)) == before
    assert command.main(["rollback", VOICE]) == 0
    assert serving(command_line) == "a"


def test_what_serves_stays_whole_when_its_source_is_deleted(
    studio: Studio, config: PromotionConfig
) -> None:
    studio.candidate("first", "a")
    best(studio, config)
    studio.candidate("first", "b", wer=0.05)
    best(studio, config)
    shutil.rmtree(studio.store.root / "serving")
    assert serving(studio) == "b"
    pointer.rollback(studio.store, VOICE, "")
    assert serving(studio) == "a"


def test_the_history_ends_where_earlier_changes_were_deleted(
    studio: Studio, config: PromotionConfig
) -> None:
    promoted_in_turn(studio, config, a=0.1, b=0.08, c=0.06, d=0.04)
    chain = pointer.history(studio.store, VOICE)
    assert "no longer stored" not in pointer.describe_promoted(chain)
    shutil.rmtree(chain[1].path)
    left = pointer.history(studio.store, VOICE)
    assert [handle.path for handle in left] == [handle.path for handle in chain[2:]]
    assert "earlier ones are no longer stored" in pointer.describe_promoted(left)
    pointer.rollback(studio.store, VOICE, "it lisps")
    assert serving(studio) == "c"
    with pytest.raises(ArtifactError, match="no longer stored"):
        pointer.rollback(studio.store, VOICE, "that one, too")
    studio.candidate("first", "e", wer=0.02)
    best(studio, config)
    assert serving(studio) == "e"


def test_what_was_rolled_back_from_may_be_deleted(studio: Studio, config: PromotionConfig) -> None:
    promoted_in_turn(studio, config, a=0.1, b=0.08)
    pointer.rollback(studio.store, VOICE, "it lisps")
    shutil.rmtree(pointer.history(studio.store, VOICE)[1].path)
    with pytest.raises(ArtifactError, match="no longer stored"):
        pointer.rollback(studio.store, VOICE, "again")
    assert "was rolled back" in best(studio, config)["first"]
    studio.candidate("first", "c", wer=0.01)
    best(studio, config)
    pointer.rollback(studio.store, VOICE, "that one, too")
    assert serving(studio) == "a"


def test_a_kill_before_the_switch_leaves_the_old(
    studio: Studio, config: PromotionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.candidate("first", "a")
    best(studio, config)
    studio.candidate("second", "b", wer=0.0)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(studio.store), "select", killed)
        best(studio, config)
    assert serving(studio) == "a"
    best(studio, config)
    assert serving(studio) == "b"


def test_the_command_and_the_asset_tell_one_history(
    command_line: Studio, config: PromotionConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    studio = command_line
    root = str(studio.store.root)
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

    studio.candidate("first", "a")
    assert promote()["reused"] is False
    studio.candidate("second", "b", wer=0.05)
    told = promote()
    assert told["reused"] is False and "wins" in str(told["verdicts"])
    assert promote()["reused"] is True

    assert command.main(["rollback", VOICE, "--because", "it lisps"]) == 0
    assert serving(studio) == "a"
    with DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(AssetKey(["promoted", VOICE]))
    assert event is not None and event.asset_materialization is not None
    assert "it lisps" in str(event.asset_materialization.metadata["history"].value)
    capsys.readouterr()
    assert command.main(["history"]) == 0
    assert "first (rolled back)" in capsys.readouterr().out
    assert command.main(["promote", VOICE, "second"]) == 0
    assert serving(studio) == "b"
    assert command.main(["rollback", "nobody"]) == 1
    assert "add [promotion.nobody]" in capsys.readouterr().err


def test_margins_that_let_equals_replace_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="ask for no gain"):
        PromotionConfig(candidates=("a",), margins={"wer": 0.0})
