"""The asset in Dagster, with the real launcher and store, and inputs that are published before."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    DagsterInstance,
    ExecuteInProcessResult,
    materialize,
)
from safetensors.torch import load_file, save_file

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.sft.conftest import CODEBOOK, recipe_values, speaking_folder
from tests.support.links import linked_file
from tests.support.programs import ONE_THREAD
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Build,
    Checkpoint,
    CodeArrays,
    CodecCheckpoint,
    Handle,
    TokenArrays,
)
from tts_assets.core.compute import Shape
from tts_assets.core.config import digest_of
from tts_assets.core.program import read_metrics
from tts_assets.evaluation.history import lineage
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.sft.assets import sft_asset
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.inputs import find_tokens, sft_program
from tts_assets.speechlm.assets import build_assets as token_assets
from tts_assets.speechlm.assets import build_text_assets
from tts_assets.speechlm.config import TOKENS_VERSION, TokenizerConfig, VocabularyConfig
from tts_assets.speechlm.formats import TextSource
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.vocabulary import VOCABULARY_FILE, lexicon_of, tokenizer_digest

CODEC_FACTS = {
    "sample_rate": 16000,
    "token_rate": 50.0,
    "codebook_size": CODEBOOK,
}


def publish(store: ArtifactStore, kind: type[Handle], build: Build, facts: object) -> Handle:
    return store.publish(kind, build, store.work_folder(build) / "result", facts)


@pytest.fixture
def inputs(
    arrays: Path, codec: Path, tmp_path: Path
) -> tuple[ArtifactStore, CodeArrays, CodecCheckpoint]:
    """A store in which a codec and the arrays it made are published."""
    store = ArtifactStore(tmp_path / "storage")
    codec_build = Build("codec", {}, {}, "1")
    shutil.copytree(codec, store.work_folder(codec_build) / "result")
    facts = CODEC_FACTS | {"hop_length": 320, "parameters": 1}
    handle = publish(store, CodecCheckpoint, codec_build, facts)
    build = Build("code_arrays", {"codec": handle}, {}, "1", partition="asterisk")
    shutil.copytree(arrays, store.work_folder(build) / "result")
    counts = {"train_samples": 56, "val_samples": 8, "train_codes": 1, "val_codes": 1}
    extra = {"corpus": "asterisk", "hours": 0.05, "codec": handle.content, "speakers": 1}
    published = publish(store, CodeArrays, build, CODEC_FACTS | counts | extra)
    assert isinstance(handle, CodecCheckpoint) and isinstance(published, CodeArrays)
    return store, published, handle


@pytest.mark.slow
def test_a_recipe_is_materialized_once(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint],
) -> None:
    store, arrays, codec = inputs
    recipe = SftRecipe.model_validate(recipe_values(steps=3, sample_texts=1))
    asset = sft_asset("test", recipe, Shape(processes=2, environment=ONE_THREAD))
    upstream: list[Any] = [
        AssetSpec("codec"),
        AssetSpec("code_arrays", partitions_def=corpus_partitions),
    ]
    resources = {
        "store": ArtifactStoreResource(root=str(store.root)),
        "io_manager": ArtifactIOManager(root=str(store.root)),
        "launcher": TorchrunLauncher(grace_seconds=5.0),
    }
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["asterisk"])
        results = [
            materialize(
                [*upstream, asset], instance=instance, resources=resources, selection=[asset]
            )
            for _ in range(2)
        ]
        event = instance.get_latest_materialization_event(AssetKey(["sft", "test"]))
    checkpoint = store.current("sft/test")
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.facts.steps == 3 and checkpoint.facts.codec == codec.content
    assert checkpoint.manifest.inputs["arrays[asterisk]"].content == arrays.content
    metadata = [r.asset_materializations_for_node("sft__test")[0].metadata for r in results]
    assert list(metadata[0])[:3] == ["val_loss", "train_loss", "steps"]
    assert metadata[0]["val_loss"].value == pytest.approx(checkpoint.facts.val_loss, rel=1e-3)
    assert metadata[0]["tokens_per_second"].value > 0
    assert metadata[0]["loss_curve"].value.startswith("![loss_curve](data:image/png;base64,")
    assert metadata[0]["val_entropy"].value > 0 and metadata[0]["update_ratio"].value > 0
    assert metadata[0]["diagnostics"].value.startswith("![diagnostics](data:image/png;base64,")
    assert linked_file(metadata[1]["listening"], store.root) == checkpoint.path / "listening.ipynb"
    assert "data:audio/flac" in (checkpoint.path / "listening.ipynb").read_text()
    assert event is not None and event.asset_materialization is not None
    folders = [p for p in (store.root / "sft" / "test" / "all").iterdir() if not p.is_symlink()]
    assert len(folders) == 1  # the second time there was nothing to do


def run(
    store: ArtifactStore, assets: list[Any], *selected: Any, **asked: Any
) -> ExecuteInProcessResult:
    """Materialize unpartitioned assets, or those of the corpus, as the code location does.

    ``asked``: launchpad options of the first selected asset.
    """
    upstream = [AssetSpec("codec"), AssetSpec("code_arrays", partitions_def=corpus_partitions)]
    known = {key for a in assets if isinstance(a, AssetsDefinition) for key in a.keys}
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["asterisk"])
        partitioned = any(getattr(a, "partitions_def", None) for a in selected)
        return materialize(
            [*(spec for spec in upstream if spec.key not in known), *assets],
            instance=instance,
            resources={
                "store": ArtifactStoreResource(root=str(store.root)),
                "io_manager": ArtifactIOManager(root=str(store.root)),
                "launcher": TorchrunLauncher(grace_seconds=5.0),
            },
            selection=list(selected),
            run_config={"ops": {selected[0].op.name: {"config": asked}}} if asked else None,
            partition_key="asterisk" if partitioned else None,
            raise_on_error=False,
        )


@pytest.mark.slow
def test_a_damaged_checkpoint_is_trained_again_after_its_folder_is_deleted(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint],
) -> None:
    store, _, _ = inputs
    recipe = SftRecipe.model_validate(recipe_values(steps=2))
    asset = sft_asset("test", recipe, Shape(processes=1, environment=ONE_THREAD))
    assert run(store, [asset], asset).success
    first = store.current("sft/test")
    weights = first.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = run(store, [asset], asset)
    (failure,) = result.get_step_failure_events()
    message = str(failure.step_failure_data.error)
    assert f"delete the folder {first.path} and materialize sft/test again" in message
    shutil.rmtree(first.path)
    assert run(store, [asset], asset).success
    again = store.current("sft/test")
    again.verify()
    assert again.content == first.content


@pytest.mark.slow
def test_options_of_the_launchpad_give_another_result(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint],
) -> None:
    store, *_ = inputs
    recipe = SftRecipe.model_validate(recipe_values(steps=2))
    asset = sft_asset("test", recipe, Shape(processes=2, environment=ONE_THREAD))

    def made(**asked: Any) -> Checkpoint:
        result = run(store, [asset], asset, **asked)
        [event] = result.get_asset_materialization_events()
        metadata = event.step_materialization_data.materialization.metadata
        experiment = metadata.get("experiment")
        assert (experiment and experiment.value) == (
            "steps 1 instead of 2, seed 8 instead of 777" if "steps" in asked else None
        )
        folder = store.folder("sft/test") / metadata["bookkeeping"].value["fingerprint"]
        return Checkpoint.open(folder)

    own = made(processes=1)
    another = made(steps=1, seed=8)
    assert store.current("sft/test").path == own.path
    assert (own.facts.steps, another.facts.steps) == (2, 1)
    assert another.manifest.seed == another.manifest.config["seed"] == 8
    assert own.manifest.fingerprint != another.manifest.fingerprint
    assert made().path == own.path  # machines are no part of it, and it was not overwritten
    how = {"strategy": "fsdp", "save_every": 1, "checkpoints": {"keep_last": 9}}
    changed = SftRecipe.model_validate(recipe_values(steps=2, **how))
    asset = sft_asset("test", changed, Shape(processes=2, environment=ONE_THREAD))
    assert made().path == own.path  # nor is what changes how it is trained
    refused = run(store, [asset], asset, gpus=1, processes=2)
    assert "the launchpad: (top level): 2 processes cannot share 1 GPUs" in reasons(refused)


@pytest.mark.slow
def test_another_model_in_the_folder_of_the_base_is_another_base(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint], tmp_path: Path
) -> None:
    store, *_ = inputs
    base = speaking_folder(tmp_path / "base")
    recipe = SftRecipe.model_validate(recipe_values(base={"hub": str(base)}, steps=0))
    asset = sft_asset("test", recipe, Shape(processes=1))
    contents = []
    for factor in (1.0, 1.0, 2.0):
        weights = load_file(base / "model.safetensors")
        save_file(
            {name: value * factor for name, value in weights.items()},
            base / "model.safetensors",
            {"format": "pt"},
        )
        assert run(store, [asset], asset).success
        contents.append(store.current("sft/test").content)
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.slow
def test_the_lexicon_belongs_to_texts_and_checkpoint(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint], tmp_path: Path
) -> None:
    """It changes the fingerprint; the texts that training reads and the checkpoint have it."""
    store, *_ = inputs
    base = str(speaking_folder(tmp_path / "base"))
    recipe = SftRecipe.model_validate(recipe_values(base={"hub": base}, steps=0))
    made = []
    for lexicon in ({}, {"message": "massage"}):
        asset = sft_asset("test", recipe, Shape(processes=1), lexicon)
        assert run(store, [asset], asset).success
        made.append(store.current("sft/test"))
    plain, respelled = made
    assert plain.manifest.fingerprint != respelled.manifest.fingerprint
    assert "lexicon" not in plain.manifest.config
    lm = SpeechLM.load(respelled.path, CODEBOOK)
    assert lexicon_of(lm.tokenizer) == {"message": "massage"}
    assert respelled.facts.vocabulary == lm.vocabulary.digest != plain.facts.vocabulary
    recorded = json.loads((respelled.path / VOCABULARY_FILE).read_text())
    assert recorded["lexicon"] == digest_of({"message": "massage"})
    config = TokenizerConfig(
        hub=base, vocabulary=VocabularyConfig(), lexicon={"message": "massage"}
    )
    (tokens,) = token_assets({"asterisk": [config]}, False, Shape(processes=1))
    assert run(store, [tokens], tokens).success
    (folder,) = store.current("token_arrays", "asterisk").path.glob("*/")
    assert folder.name == tokenizer_digest(lm.tokenizer)


def reasons(result: ExecuteInProcessResult) -> str:
    return "\n".join(
        event.step_failure_data.error_display_string
        for event in result.all_events
        if event.is_step_failure
    )


def texts_of(tmp_path: Path) -> list[Any]:
    """``texts/chat`` and its check, of a file with one bad line."""
    lines = [json.dumps({"prompt": f"{n} and {n}?", "completion": f"{n + n}."}) for n in range(40)]
    (tmp_path / "chat.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    sources = {"chat": TextSource(path=Path("chat.jsonl"), licence="CC0-1.0")}
    return list(build_text_assets(sources, ValidationSplit(fraction=0.2), tmp_path))


def test_texts_are_identified_by_their_content(store: ArtifactStore, tmp_path: Path) -> None:
    """Another file time gives the same content. Another line gives another content."""
    contents = []
    for change in ("none", "time", "line"):
        assets = texts_of(tmp_path)
        path = tmp_path / "chat.jsonl"
        if change == "time":
            os.utime(path, (1, 1))
        if change == "line":
            path.write_text(path.read_text() + '{"text": "And more."}\n')
        result = run(store, assets, *assets)
        assert result.success, reasons(result)
        (check,) = result.get_asset_check_evaluations()
        assert check.passed and check.metadata["set_aside"].value == 1
        texts = store.current("texts/chat")
        contents.append(texts.content)
    assert contents[0] == contents[1] != contents[2]
    assert texts.facts.lines == 42 and texts.facts.licence == "CC0-1.0"
    (event,) = result.asset_materializations_for_node("texts__chat")
    assert event.metadata["set_aside/not JSON"].value == 1
    assets = texts_of(tmp_path)
    (tmp_path / "chat.jsonl").unlink()
    gone = run(store, assets, *assets)
    assert "texts.chat: there is no file" in reasons(gone)


@pytest.mark.slow
def test_a_recipe_trains_on_texts(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint], tmp_path: Path
) -> None:
    store, _, _ = inputs
    recipe = SftRecipe.model_validate(recipe_values(steps=3, texts={"chat": 0.5}))
    sft = sft_asset("test", recipe, Shape(processes=1))
    texts = texts_of(tmp_path)
    missing = run(store, [*texts, sft], sft)
    assert "texts/chat has not been materialized yet" in reasons(missing)
    result = run(store, [*texts, sft], *texts, sft)
    assert result.success, reasons(result)
    assert AssetKey(["texts", "chat"]) in sft.dependency_keys
    checkpoint = store.current("sft/test")
    made_from = checkpoint.manifest.inputs["texts[chat]"]
    assert made_from.content == store.current("texts/chat").content
    rows = lineage(store, [checkpoint])
    assert [row.asset for row in rows][-2:] == ["texts/chat", "sft/test"]
    assert "41 lines, 1 set aside" in " ".join(row.detail for row in rows)
    metrics = read_metrics(checkpoint.path / "metrics.jsonl")
    assert any("loss/chat" in record for record in metrics)


@pytest.mark.slow
def test_a_recipe_pretrains_on_token_arrays(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint], tmp_path: Path
) -> None:
    """``token_arrays`` are upstream. Without them or their streams the error has the remedy."""
    store, _, _ = inputs
    values = recipe_values(steps=3, pretraining={"text_share": 0.2}, concatenate=None)
    recipe = SftRecipe.model_validate(values)
    sft = sft_asset("test", recipe, Shape(processes=1))
    assert AssetKey("token_arrays") in sft.keys_by_input_name.values()
    specs = AssetSpec("token_arrays", partitions_def=corpus_partitions)
    missing = run(store, [specs, sft], sft)
    assert "token_arrays[asterisk] has not been materialized yet" in reasons(missing)
    tokenizers = {"asterisk": [TokenizerConfig(hub=None, vocabulary=VocabularyConfig())]}
    for pretraining in (False, True):
        (tokens,) = token_assets(tokenizers, pretraining, Shape(processes=1))
        made = run(store, [tokens], tokens)
        assert made.success, reasons(made)
        result = run(store, [tokens, sft], sft)
        assert result.success == pretraining
        if not pretraining:
            assert "no streams for pretraining: materialize token_arrays" in reasons(result)
    assert result.success, reasons(result)
    checkpoint = store.current("sft/test")
    made_from = checkpoint.manifest.inputs["tokens[asterisk]"]
    assert made_from.content == store.current("token_arrays", "asterisk").content
    metrics = read_metrics(checkpoint.path / "metrics.jsonl")
    assert "val_loss/text" in metrics[-1]


def test_texts_of_other_arrays_are_not_used(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint],
) -> None:
    store, arrays, _ = inputs
    assert find_tokens(store, {"asterisk": arrays}) == {}
    build = Build("code_arrays", {}, {}, "2", partition="asterisk")
    folder = store.work_folder(build) / "result"
    folder.mkdir()
    (folder / "other").write_text("2")
    other = publish(store, CodeArrays, build, arrays.facts.model_dump())
    for made_from, version in ((arrays, TOKENS_VERSION), (other, TOKENS_VERSION), (arrays, "0")):
        used = (made_from, version) == (arrays, TOKENS_VERSION)
        inputs = {"code_arrays": made_from}
        build = Build("token_arrays", inputs, {}, version, partition="asterisk")
        folder = store.work_folder(build) / "result"
        folder.mkdir()
        (folder / "tokenizers.json").write_text("[]")
        published = publish(store, TokenArrays, build, {"corpus": "asterisk", "text_tokens": {}})
        found = find_tokens(store, {"asterisk": arrays})
        assert [handle.path for handle in found.values()] == ([published.path] if used else [])


def test_arrays_of_another_codec_are_refused(
    inputs: tuple[ArtifactStore, CodeArrays, CodecCheckpoint], tmp_path: Path
) -> None:
    store, arrays, _ = inputs
    build = Build("codec", {}, {"other": True}, "1")
    folder = store.work_folder(build) / "result"
    folder.mkdir()
    (folder / "config.json").write_text('{"other": true}')
    facts = CODEC_FACTS | {"hop_length": 320, "parameters": 1}
    other = publish(store, CodecCheckpoint, build, facts)
    assert isinstance(other, CodecCheckpoint)
    recipe = SftRecipe.model_validate(recipe_values())
    with pytest.raises(ArtifactError, match=r"materialize code_arrays\[asterisk\] again"):
        sft_program("test", recipe, tmp_path, {"asterisk": arrays}, other, None, {}, {})
