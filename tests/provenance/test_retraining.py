"""From a withdrawn consent to models that are trained again without the corpus."""

from __future__ import annotations

import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest
from dagster import AssetKey, AssetsDefinition, AssetSpec, DagsterInstance, materialize

from tests.support.speaking import Speaking, result_folder
from tts_assets.core.artifacts import ArtifactError, ArtifactStore, Build, CodeArrays, Handle
from tts_assets.definitions import build_assets, build_resources
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.provenance import without_corpora
from tts_assets.provenance.__main__ import main
from tts_assets.settings import Settings, load_settings

CORPUS = '{{ path = "{path}", reader = "jsonl", language = "en", consent = {consent} }}'
ANN = '{{ who = "Ann", purpose = "tests", until = {until} }}'
LLAMA = """base = { llama = { hidden_size = 64, intermediate_size = 96, layers = 1, heads = 2,
    kv_heads = 1, max_positions = 1024 } }, steps = 1, sample_texts = 0, eval_samples = 1,
    max_seq_len = 1024, batch_tokens = 1024, micro_tokens = 1024"""


@pytest.fixture
def both(speaking: Speaking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Speaking:
    """A project with recipes of the corpora ``clips`` and ``other``, whose arrays are published."""
    build = Build("code_arrays", {"codec": speaking.codec}, {}, "1", partition="other")
    work = result_folder(speaking.store, build)
    for file in speaking.arrays.manifest.files:
        shutil.copy(speaking.arrays.path / file, work)
    facts = speaking.arrays.facts.model_copy(update={"corpus": "other"})
    speaking.store.publish(CodeArrays, build, work, facts)
    values = {
        "COMPUTE__PROCESSES": "1",
        "PROJECT__STORAGE": str(speaking.store.root),
        "SFT__TINY": f"{{ {LLAMA}, corpora = {{ clips = 1.0, other = 2.0 }} }}",
        "SFT__ALONE": f"{{ {LLAMA}, corpora = {{ clips = 1.0 }} }}",
        "CORPORA__OTHER": CORPUS.format(path=tmp_path, consent='"synthetic"'),
        "CORPORA__CLIPS": CORPUS.format(
            path=speaking.clips, consent=ANN.format(until=date.today() + timedelta(days=9))
        ),
        "PROMOTION__ANN": '{ candidates = ["tiny"] }',
    }
    for name, value in values.items():
        monkeypatch.setenv(f"TTS__{name}", value.replace("\n", " "))
    return speaking


def made(settings: Settings, *key: str) -> Handle:
    """The artifact that an asset of these settings makes, by the real launcher."""
    asset = next(
        one
        for one in build_assets(settings)
        if isinstance(one, AssetsDefinition) and AssetKey(key) in one.keys and not one.check_keys
    )
    above = [AssetSpec("codec"), AssetSpec("code_arrays", partitions_def=corpus_partitions)]
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["clips", "other"])
        resources = build_resources(settings)
        materialize([*above, asset], instance=instance, resources=resources, selection=[asset])
    return ArtifactStore(settings.storage).current("/".join(key))


def test_a_codec_and_rewards_leave_out_corpora() -> None:
    ended = {"ann": "ended on 2026-11-29", "bob": "was withdrawn on 2026-11-30"}
    values = {
        "corpora": {"ann": {"path": "ann"}, "guide": {"path": "guide"}},
        "codec": {"train": {"corpora": {"ann": 1.0, "guide": 2.0}}, "report": {"corpora": "x"}},
        "rlhf": {"ann": {"prompts": {"corpora": ["ann", "guide", "bob"]}}},
        "evaluation": {"reference_corpora": ["ann"], "suite": "ann"},
    }
    kept = without_corpora(values, ended)
    assert kept["codec"]["train"]["corpora"] == {"guide": 2.0}
    assert kept["rlhf"]["ann"]["prompts"]["corpora"] == ["guide"]
    changed = {"codec", "rlhf"}
    assert {name: kept[name] for name in values if name not in changed} == {
        name: values[name] for name in values if name not in changed
    }


@pytest.mark.slow
def test_a_model_is_trained_again_without_a_withdrawn_corpus(
    both: Speaking, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_settings()
    assert set(before.sft["tiny"].corpora) == {"clips", "other"}
    assert main(["withdraw", "clips", "--because", "a letter"]) == 0
    shown = capsys.readouterr().out
    assert "alone: no other corpus is left; add one, or remove the recipes" in shown
    assert "to train without it: tts-assets train ann\n" in shown

    after = load_settings()
    assert after.sft["tiny"].corpora == {"other": 2.0} and "clips" in after.corpora
    assert list(after.consents("tiny")) == ["other"]
    again = made(after, "sft", "tiny")
    assert set(again.manifest.inputs) == {"arrays[other]", "codec"}
    with pytest.raises(
        ArtifactError, match=r"sft/alone is not made: .* corpora.clips, whose consent was withdrawn"
    ):
        made(after, "sft", "alone")
