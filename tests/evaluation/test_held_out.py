"""A suite must not contain training data of a recipe or of its base recipes."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import wave
from pathlib import Path

import pytest
from dagster import AssetCheckKey, AssetCheckResult, AssetChecksDefinition

from resources.artifact_store import ArtifactStoreResource
from tests.external_models.test_table import report
from tts_assets.core.artifacts import ArtifactStore, Build, CodeArrays, EvaluationSuite
from tts_assets.core.compute import Shape
from tts_assets.evaluation.assets import build_assets, report_key
from tts_assets.evaluation.config import MAIN
from tts_assets.settings import Settings, load_settings

TEXTS = {"a": "one two three", "b": "four five", "prompts": "six seven"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """``second`` continues ``first`` with another corpus.

    The prompts of ``third`` and ``text_only`` are transcripts of a further corpus; ``third`` uses
    its clips as voice prompts as well.
    """
    corpus = {"path": str(tmp_path), "reader": "folder", "language": "en"}
    prompts = {"corpora": ["prompts"], "voice_prompts": True}
    return load_settings(
        overrides={
            "corpora": dict.fromkeys(TEXTS, corpus),
            "sft": {
                "first": {"base": {"llama": {}}, "corpora": {"a": 1.0}, "steps": 1},
                "second": {"base": {"recipe": "first"}, "corpora": {"b": 1.0}, "steps": 1},
            },
            "rlhf": {
                "third": {"base": "second", "prompts": prompts},
                "text_only": {"base": "second", "prompts": {"corpora": ["prompts"]}},
            },
            "evaluation": {"suites": {"other": {"path": "other.jsonl"}}},
        },
        environment={},
    )


def clip(corpus: str) -> bytes:
    """The bytes of a WAV file, which differ between corpora."""
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, 16_000, 0, "NONE", ""))
        half = ord(corpus[0]) % 40 + 10  # samples of half a period of a square wave
        audio.writeframes(
            struct.pack("<16000h", *(8_000 * (-1) ** (n // half) for n in range(16_000)))
        )
    return file.getvalue()


def publish_arrays(store: ArtifactStore, corpus: str) -> None:
    build = Build("code_arrays", {}, {}, "1", partition=corpus)
    folder = store.work_folder(build) / "result"
    folder.mkdir()
    audio = {"audio_sha256": hashlib.sha256(clip(corpus)).hexdigest()}
    row = {"transcript": TEXTS[corpus], "original_data": audio}
    (folder / "train_samples.jsonl").write_text(json.dumps(row) + "\n")
    facts = {"codec": "c", "sample_rate": 16000, "token_rate": 50.0, "codebook_size": 8}
    facts |= {"corpus": corpus, "train_samples": 1, "val_samples": 0, "train_codes": 9}
    facts |= {"val_codes": 0, "hours": 0.1, "speakers": 1}
    store.publish(CodeArrays, build, folder, facts)


def publish_suite(store: ArtifactStore, text: str, prompt: bytes) -> EvaluationSuite:
    build = Build("evaluation_suite", {}, {}, "1")
    folder = store.work_folder(build) / "result"
    folder.mkdir()
    (folder / "prompt.wav").write_bytes(prompt)
    row = {"id": "t", "category": "c", "text": text}
    row |= {"prompt_wav": "prompt.wav", "prompt_text": "eight"}
    (folder / "suite.jsonl").write_text(json.dumps(row) + "\n")
    made = store.publish(EvaluationSuite, build, folder, {"texts": 1, "categories": {"c": 1}})
    assert isinstance(made, EvaluationSuite)
    return made


def held_out(
    store: ArtifactStore, settings: Settings, recipe: str, suite: EvaluationSuite, name: str
) -> AssetCheckResult:
    key = AssetCheckKey(report_key(recipe, name), "suite_is_held_out")
    built = build_assets(
        settings.evaluation,
        settings.sft,
        settings.rlhf,
        settings.root,
        Shape(processes=1),
        settings.training_corpora,
    )
    checks = [part for part in built if isinstance(part, AssetChecksDefinition)]
    (check,) = [check for check in checks if key in check.check_keys]
    resource = ArtifactStoreResource(root=str(store.root))
    result = check(report(store, recipe, suite, 0.1), suite, store=resource)
    assert isinstance(result, AssetCheckResult)
    return result


@pytest.mark.parametrize(
    ("recipe", "suite", "texts", "voices"),
    [
        ("first", MAIN, {"a"}, {"a"}),
        ("second", MAIN, {"a", "b"}, {"a", "b"}),
        (
            "third",
            MAIN,
            {"a", "b"},
            {"a", "b", "prompts"},
        ),  # GRPO excludes the texts of the main suite
        ("third", "other", {"a", "b", "prompts"}, {"a", "b", "prompts"}),
        ("text_only", "other", {"a", "b", "prompts"}, {"a", "b"}),
    ],
)
@pytest.mark.parametrize("corpus", list(TEXTS))
def test_texts_and_voice_prompts_of_training_data_are_found(
    store: ArtifactStore,
    settings: Settings,
    recipe: str,
    suite: str,
    texts: set[str],
    voices: set[str],
    corpus: str,
) -> None:
    for name in TEXTS:
        publish_arrays(store, name)
    asked = publish_suite(store, TEXTS[corpus], clip(corpus))
    result = held_out(store, settings, recipe, asked, suite)
    assert result.metadata["known"].value == (["t"] if corpus in texts else [])
    assert bool(result.metadata["known_audio"].value) is (corpus in voices)
    assert result.passed is (corpus not in texts | voices)
