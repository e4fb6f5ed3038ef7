"""The asset ``codec_decoder``: two ranks train it once, with the result of one rank."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    DagsterInstance,
    ExecuteInProcessResult,
    materialize,
)
from safetensors.torch import load_file
from torch import Tensor

from tests.codec.conftest import VENDORED
from tests.codec.test_assets import publish, resources
from tests.codec.test_decoder import recipe
from tests.support.programs import ONE_THREAD
from tts_assets.codec.assets import build_assets
from tts_assets.codec.config import CodecConfig, DecoderProgram, DecoderRecipe
from tts_assets.codec.model import Codec
from tts_assets.codec.train_decoder import decoder_trainer, main
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import ArtifactStore, CodecDecoder, DecoderFacts
from tts_assets.core.audio import Wave
from tts_assets.core.compute import Shape
from tts_assets.core.program import METRICS_FILE, Run
from tts_assets.corpora.filter import KEPT_FILE
from tts_assets.corpora.samples import Sample
from tts_assets.orchestration.dependencies import corpus_partitions

SPLIT = ValidationSplit(fraction=0.2)


def trained(
    store: ArtifactStore, instance: DagsterInstance, recipe: DecoderRecipe
) -> ExecuteInProcessResult:
    """Materialize the decoder and its codec on two ranks."""
    config = CodecConfig(checkpoint=str(VENDORED), decoder=recipe)
    shape = Shape(processes=2, gpus=0, environment=ONE_THREAD)
    built = build_assets(config, SPLIT, shape, Path())
    codec, decoder = (
        asset
        for name in ("codec", "codec_decoder")
        for asset in built
        if isinstance(asset, AssetsDefinition) and asset.keys == {AssetKey(name)}
    )
    upstream = AssetSpec("filtered_samples", partitions_def=corpus_partitions)
    return materialize([upstream, codec, decoder], instance=instance, resources=resources(store))


@pytest.fixture(scope="module")
def recipe_for_any_ranks() -> DecoderRecipe:
    """Four windows per step, all of which the discriminators score, and no feature loss.

    Of the feature loss two ranks have the mean of two ratios, one rank has the ratio of two means.
    """
    config = recipe().adversarial
    assert config is not None
    return recipe(
        batch_seconds=4,
        adversarial=config.model_copy(update={"feature_weight": 0.0}),
    )


@pytest.mark.slow
def test_two_ranks_train_what_one_does(
    store: ArtifactStore,
    tmp_path: Path,
    samples: list[Sample],
    waves: list[Wave],
    recipe_for_any_ranks: DecoderRecipe,
) -> None:
    publish(store, "asterisk_en", samples)
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["asterisk_en"])
        results = [trained(store, instance, recipe_for_any_ranks) for _ in range(2)]
    events = [r.asset_materializations_for_node("codec_decoder")[0] for r in results]
    assert [event.metadata["reused"].value for event in events] == [False, True]
    assert events[0].metadata["val_mel"].value > 0
    handle = store.current("codec_decoder")
    assert isinstance(handle, CodecDecoder)
    assert handle.facts.codec == store.current("codec").content
    codec = Codec.load(store.current("codec").path).use_decoder(handle.path)
    (made,) = codec.decode(codec.encode(waves[:1]))
    assert codec.sample_rate == 24_000 and np.isfinite(made).all()

    program, start = one_rank(store, tmp_path, recipe_for_any_ranks)
    alone = load_file(tmp_path / "result" / "model.safetensors")
    together = load_file(handle.path / "model.safetensors")
    assert DecoderFacts.from_json(program.run_dir / "result.json") == handle.facts
    moved = distance(start, alone)
    assert moved > 0 and distance(alone, together) < 0.02 * moved
    last = [metrics(folder)[-1] for folder in (tmp_path / "result", handle.path)]
    assert last[0]["perplexity"] == last[1]["perplexity"]
    assert last[0]["val_mel"] == pytest.approx(last[1]["val_mel"], rel=1e-3)


def one_rank(
    store: ArtifactStore, folder: Path, recipe: DecoderRecipe
) -> tuple[DecoderProgram, dict[str, Tensor]]:
    """Train in this process; returns the program and the weights before the first step."""
    codec = store.current("codec")
    program = DecoderProgram(
        run_dir=folder,
        recipe=recipe,
        codec=codec.path,
        codec_content=codec.content,
        samples={"asterisk_en": store.current("filtered_samples", "asterisk_en").path / KEPT_FILE},
        validation=SPLIT,
    )
    (folder / "run.json").write_text(program.to_json())
    with Run(folder) as run:
        start = copy.deepcopy(decoder_trainer(run, program).decoder.state_dict())
    main([str(folder / "run.json")])
    return program, start


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in b))


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
