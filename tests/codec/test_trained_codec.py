"""The asset ``codec``, trained on two corpora."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dagster import AssetsDefinition, AssetSpec, ExecuteInProcessResult, materialize

from tests.codec.test_assets import publish, resources
from tests.codec.test_train import recipe
from tts_assets.codec.assets import build_assets
from tts_assets.codec.config import CodecArchitecture, CodecConfig, CodecRecipe
from tts_assets.codec.model import Codec
from tts_assets.codec.windows import TrainingAudio
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import ArtifactStore, CodecCheckpoint
from tts_assets.core.audio import Wave
from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.core.program import METRICS_FILE
from tts_assets.corpora.samples import Sample, write_samples
from tts_assets.orchestration.dependencies import corpus_partitions

SPLIT = ValidationSplit(fraction=0.2)
CORPORA = {"announcer": 1.0, "interviews": 0.5}


def train(store: ArtifactStore, recipe: CodecRecipe) -> ExecuteInProcessResult:
    built = build_assets(
        CodecConfig(train=recipe),
        SPLIT,
        Shape(processes=2, environment={"OMP_NUM_THREADS": "1"}),
        Path(),
    )
    codec = built[0]
    assert isinstance(codec, AssetsDefinition)
    upstream = AssetSpec("filtered_samples", partitions_def=corpus_partitions)
    return materialize([upstream, codec], selection=[codec], resources=resources(store))


@pytest.mark.slow
def test_a_codec_is_trained_once(
    store: ArtifactStore, tiny: CodecArchitecture, samples: list[Sample], waves: list[Wave]
) -> None:
    short = recipe(tiny, corpora=CORPORA, steps=2, save_every=1, eval_every=2)
    publish(store, "announcer", samples[:15])
    publish(store, "interviews", samples[15:])
    events = [train(store, short).asset_materializations_for_node("codec")[0] for _ in range(2)]
    assert [event.metadata["reused"].value for event in events] == [False, True]
    handle = store.current("codec")
    assert isinstance(handle, CodecCheckpoint)
    lineage = {(ref.asset, ref.partition) for ref in handle.manifest.inputs.values()}
    assert lineage == {("filtered_samples", corpus) for corpus in CORPORA}
    steps = (handle.path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [1, 2]
    codec = Codec.load(handle.path)
    assert codec.facts == handle.facts.model_copy(
        update={"perplexity": codec.facts.perplexity, "dead_codes": codec.facts.dead_codes}
    )
    assert len(codec.decode(codec.encode(waves[:1]))[0])
    publish(store, "interviews", samples[16:])
    (event,) = train(store, short).asset_materializations_for_node("codec")
    assert not event.metadata["reused"].value
    assert store.current("codec").content != handle.content


def test_corpora_are_weighted_by_their_hours(
    tmp_path: Path, tiny: CodecArchitecture, samples: list[Sample]
) -> None:
    lists = {"announcer": samples[:10], "interviews": samples[10:]}
    for name, part in lists.items():
        write_samples(tmp_path / name, part)
    paths = {name: tmp_path / name for name in lists}
    audio = TrainingAudio(paths, recipe(tiny, corpora=CORPORA), SPLIT)
    known = [sample.id for sample in lists["interviews"]]
    theirs = audio.train["id"].is_in(known).to_numpy()
    seconds = audio.train["duration"].to_numpy()
    expected = 0.5 * seconds[theirs].sum() / (0.5 * seconds[theirs].sum() + seconds[~theirs].sum())
    probabilities = np.diff(audio.cumulative, prepend=0.0)
    assert probabilities[theirs].sum() == pytest.approx(expected)


def test_a_missing_base_is_named(store: ArtifactStore, samples: list[Sample]) -> None:
    """When the codec is materialized, not when the definitions load."""
    publish(store, "announcer", samples[:15])
    lost = CodecRecipe(corpora={"announcer": 1.0}, base=Path("nowhere"))
    with pytest.raises(ConfigError, match=r"codec\.train\.base: there is no folder nowhere"):
        train(store, lost)
