"""Whose voices an artifact was made from, after changes of the project file and of the storage."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, AssetsDefinition, AssetSpec, DagsterInstance, materialize

from resources.artifact_store import ArtifactStoreResource
from tts_assets.cli.pipeline import selection
from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Build,
    Checkpoint,
    CodeArrays,
    CodecCheckpoint,
    EvaluationSuite,
    Handle,
)
from tts_assets.core.artifacts.store import corpora_of, withdrawals
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import ConsentError
from tts_assets.definitions import build_assets, build_resources
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.provenance import artifacts, made_from, withdraw, without_corpora
from tts_assets.provenance.__main__ import main
from tts_assets.settings import load_settings

TODAY = date.today()
SUITE = {"texts": 1, "categories": {}}
LLAMA = {"hidden_size": 64, "intermediate_size": 96, "layers": 1, "heads": 2, "kv_heads": 1}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "storage")


def publish(
    store: ArtifactStore,
    asset: str,
    inputs: Mapping[str, Handle],
    text: str,
    kind: type[Handle] = EvaluationSuite,
    facts: Mapping[str, Any] = SUITE,
) -> Handle:
    """An artifact with one file; the asset ``name[corpus]`` has a partition."""
    name, _, corpus = asset.rstrip("]").partition("[")
    build = Build(name, inputs, {"text": text}, "1", partition=corpus or "all")
    result = store.work_folder(build) / "result"
    result.mkdir()
    (result / "suite.jsonl").write_text(text)
    return store.publish(kind, build, result, facts)


def corpus(tmp_path: Path, who: str = "", until: date | None = None) -> dict[str, Any]:
    agreed = {"who": who, "purpose": "tests", **({"until": until} if until else {})}
    consent = agreed if who else "synthetic"
    return {"path": str(tmp_path), "reader": "jsonl", "language": "en", "consent": consent}


def recipe(**corpora: float) -> dict[str, Any]:
    sizes = dict.fromkeys(("max_seq_len", "batch_tokens", "micro_tokens"), 1024)
    llama = LLAMA | {"max_positions": 1024}
    return {"base": {"llama": llama}, "corpora": corpora, "steps": 1, **sizes}


def project(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, **tables: Mapping[str, Any]
) -> None:
    """Further tables of the project file, for commands, too."""
    monkeypatch.setenv("TTS__PROJECT__STORAGE", str(store.root))
    for table, entries in tables.items():
        for name, value in entries.items():
            monkeypatch.setenv(f"TTS__{table}__{name}".upper(), inline(value))


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {inline(one)}' for key, one in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_equal_bytes_do_not_hide_a_corpus(store: ArtifactStore) -> None:
    """Two models of the same bytes, of which only one was made from the corpus."""
    own, other = publish(store, "samples[ann]", {}, "a"), publish(store, "samples[bob]", {}, "b")
    first = publish(store, "sft/one", {"samples": other}, "weights")
    second = publish(store, "sft/two", {"samples": own}, "weights")
    assert first.content == second.content
    assert corpora_of(store, [first.reference(), second.reference()]) == {"ann", "bob"}
    assert {one.asset for one in made_from(artifacts(store), "bob")} == {"samples", "sft/one"}


def test_two_withdrawals_at_the_same_time_are_both_recorded(store: ArtifactStore) -> None:
    names = [f"corpus{number}" for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: withdraw(store, name, "", TODAY), names))
    assert withdrawals(store.root).keys() == {*names}
    path = store.root / "withdrawn.jsonl"
    path.write_text(path.read_text().rstrip("\n"))  # edited by hand
    withdraw(store, "last", "", TODAY)
    assert withdrawals(store.root).keys() == {*names, "last"}


def test_a_withdrawal_during_a_run_ends_it(store: ArtifactStore) -> None:
    """The resource knows what was withdrawn after its run began."""
    data = publish(store, "samples[ann]", {}, "a")
    resource = ArtifactStoreResource(root=str(store.root))
    build = Build("sft/one", {"samples": data}, {}, "1")
    resource._check_consents(build)
    withdraw(store, "ann", "", TODAY)
    with pytest.raises(ArtifactError, match=r"sft/one is not made: .* corpora.ann, whose consent"):
        resource._check_consents(build)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, r"serving/one is not published: corpora.ann has no consent"),
        ({"ann": TODAY - timedelta(days=1)}, r"consent of Ann \(corpora.ann\) ended"),
    ],
)
def test_a_model_of_a_corpus_that_left_its_recipe(
    store: ArtifactStore, tmp_path: Path, declared: Mapping[str, date], message: str
) -> None:
    """The project file no longer has the corpus, and the checkpoint was not trained again."""
    common: dict[str, Any] = {"sample_rate": 16_000, "token_rate": 50.0, "codebook_size": 8}
    ann = publish(store, "samples[ann]", {}, "a")
    facts = common | {"hop_length": 320, "parameters": 1}
    codec = publish(store, "codec", {}, "codec", CodecCheckpoint, facts)
    facts = common | {"codec": codec.content, "vocabulary": "v", "parameters": 1, "steps": 1}
    facts |= {"stage": "sft", "recipe": "one", "tokens": 1, "train_loss": 1.0}
    publish(store, "sft/one", {"codec": codec, "samples": ann}, "weights", Checkpoint, facts)
    counts = ("train_samples", "val_samples", "train_codes", "val_codes", "hours", "speakers")
    facts = common | {"codec": codec.content, "corpus": "bob"} | dict.fromkeys(counts, 1)
    publish(store, "code_arrays[bob]", {"codec": codec}, "arrays", CodeArrays, facts)
    corpora = {name: corpus(tmp_path, "Ann", until) for name, until in declared.items()}
    settings = load_settings(
        overrides={
            "project": {"storage": str(store.root)},
            "corpora": {"bob": corpus(tmp_path, "Bob"), **corpora},
            "sft": {"one": recipe(bob=1.0)},
        },
        environment={},
    )
    key = AssetKey(["serving", "one"])
    asset = next(
        one
        for one in build_assets(settings)
        if isinstance(one, AssetsDefinition) and key in one.keys and not one.check_keys
    )
    above = [AssetSpec("codec"), AssetSpec(["sft", "one"])]
    above.append(AssetSpec("code_arrays", partitions_def=corpus_partitions))
    with DagsterInstance.ephemeral() as instance, pytest.raises(ConsentError, match=message):
        instance.add_dynamic_partitions("corpus", ["bob"])
        resources = build_resources(settings)
        materialize([*above, asset], instance=instance, resources=resources, selection=[asset])


def test_a_valid_consent_of_a_former_corpus_is_kept_in_the_card(tmp_path: Path) -> None:
    """On its last day, too. A corpus of the codec without a consent needs none, as before."""
    corpora = {"bob": corpus(tmp_path, "Bob"), "ann": corpus(tmp_path, "Ann", TODAY)}
    public = corpus(tmp_path)
    del public["consent"]
    settings = load_settings(
        overrides={"corpora": corpora | {"public": public}, "sft": {"one": recipe(bob=1.0)}},
        environment={},
    )
    assert [*settings.consents("one", {"ann", "public"})] == ["ann", "bob"]


def test_a_withdrawn_corpus_needs_no_recipe(
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was removed from the project file, or from its recipe, whose old model is still served."""
    data = publish(store, "samples[gone]", {}, "a")
    publish(store, "sft/one", {"samples": data}, "weights")
    corpora = {
        "ann": corpus(tmp_path, "Ann"),
        "more": corpus(tmp_path, "Ann"),
        "bob": corpus(tmp_path, "Bob"),
    }
    project(store, monkeypatch, corpora=corpora, sft={"one": recipe(bob=1.0)})
    assert main(["withdraw", "gone"]) == 0
    shown = capsys.readouterr().out
    assert "sft/one" in shown and "to train without it: tts-assets train one\n" in shown
    assert main(["withdraw", "ann"]) == 0
    assert "more has the same speaker: withdraw it, too" in capsys.readouterr().out
    assert main(["consents"]) == 1
    assert f"ann: WITHDRAWN on {TODAY}" in capsys.readouterr().out
    assert main(["withdraw", "unknown"]) == 2


def test_the_command_that_trains_again_names_no_recipe_without_corpora(
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A voice has two candidates; no corpus is left for one of them."""
    project(
        store,
        monkeypatch,
        corpora={"ann": corpus(tmp_path, "Ann"), "bob": corpus(tmp_path, "Bob")},
        sft={"both": recipe(ann=1.0, bob=1.0), "alone": recipe(ann=1.0)},
        promotion={"voice": {"candidates": ["both", "alone"]}},
    )
    assert main(["withdraw", "ann"]) == 0
    assert "to train without it: tts-assets train both\n" in capsys.readouterr().out


def test_training_again_includes_the_decoder_and_the_speaker_encoder() -> None:
    """They may have been trained on the corpus, too."""
    settings = load_settings(
        overrides={
            "codec": {"decoder": {"corpora": {"asterisk_en": 1.0}, "steps": 1}},
            "speakers": {"corpora": ["asterisk_en"], "train": {"steps": 1}},
            "evaluation": {"speaker_encoder": "speaker_encoder"},
        },
        environment={},
    )
    keys = selection(settings, ["announcer"])
    assert 'key:"codec_decoder"' in keys and 'key:"speaker_encoder"' in keys
    assert "codec_decoder" not in selection(load_settings(environment={}), ["announcer"])


def test_a_recipe_of_the_name_corpora() -> None:
    ended = {"ann": "ended", "steps": "ended"}
    values = {"sft": {"corpora": {"corpora": {"ann": 1, "bob": 1.0}, "steps": 9}}}
    assert without_corpora(values, ended) == {
        "sft": {"corpora": {"corpora": {"bob": 1.0}, "steps": 9}}
    }


def test_a_start_by_its_path_is_refused_with_its_corpus(store: ArtifactStore) -> None:
    """A codec may start from an older one, but not from one of a withdrawn corpus."""
    codec = publish(store, "codec", {"samples": publish(store, "samples[ann]", {}, "a")}, "codec")
    tables: dict[str, Any] = {
        "project": {"storage": str(store.root)},
        "codec": {"decoder": {"corpora": {"asterisk_en": 1.0}, "start": str(codec.path)}},
    }
    load_settings(overrides=tables, environment={})
    withdraw(store, "ann", "", TODAY)
    with pytest.raises(ConfigError, match=r"codec.decoder.start was made from corpora.ann, whose"):
        load_settings(overrides=tables, environment={})
    load_settings(overrides=tables, environment={}, every_corpus=True)  # of withdraw and consents
    current = store.folder("codec") / "current"
    new = recipe(asterisk_en=1.0) | {"base": {"hub": str(current)}}
    with pytest.raises(ConfigError, match=r"sft.new.base.hub is a model of this storage"):
        load_settings(overrides={"project": tables["project"], "sft": {"new": new}}, environment={})
