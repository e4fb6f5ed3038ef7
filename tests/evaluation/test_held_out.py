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
from tts_assets.core.artifacts import ArtifactStore, Build, CodeArrays, EvaluationSuite, Preferences
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
            "preferences": {"pairs": {"rollouts": "third"}},
            "dpo": {"fourth": {"base": "second", "preferences": "pairs"}},
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
    row = {"id": corpus, "transcript": TEXTS[corpus], "original_data": audio}
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
        settings.aligned,
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


def publish_pair(store: ArtifactStore, text: str, source: str) -> None:
    """Preferences with one pair, whose voice prompt is the clip or recording ``source``."""
    build = Build("preferences/pairs", {}, {}, "1")
    folder = store.work_folder(build) / "result"
    folder.mkdir()
    (folder / "preferences.jsonl").write_text(
        json.dumps({"text": text, "voice": {"source": source} if source else None}) + "\n"
    )
    facts = {"asked": 1, "pairs": 1, "set_aside": 0, "codec": "c"}
    store.publish(Preferences, build, folder, facts)


@pytest.mark.parametrize(
    ("text", "source", "known", "known_audio"),
    [
        ("Nine, ten!", "", ["t"], []),
        ("eleven", "prompts", [], ["t/prompt_wav"]),
        ("eleven", hashlib.sha256(clip("prompts")).hexdigest(), [], ["t/prompt_wav"]),
        ("eleven", "another", [], []),
    ],
)
def test_texts_and_voice_prompts_of_pairs_are_found(
    store: ArtifactStore,
    settings: Settings,
    text: str,
    source: str,
    known: list[str],
    known_audio: list[str],
) -> None:
    """The pairs are of clips of the corpora of ``third``, or of the recording of a suite."""
    for name in TEXTS:
        publish_arrays(store, name)
    publish_pair(store, text, source)
    asked = publish_suite(store, "nine ten", clip("prompts"))
    result = held_out(store, settings, "fourth", asked, MAIN)
    assert result.metadata["known"].value == known
    assert result.metadata["known_audio"].value == known_audio
    assert result.passed is not bool(known or known_audio)
