"""The codec report on real clips: plausible metrics, a self-contained page, all codecs."""

from __future__ import annotations

import json
import math
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import soundfile
from dagster import AssetCheckSeverity, AssetSpec, DagsterInstance, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.codec.conftest import CORPUS, VENDORED
from tests.codec.test_assets import publish
from tests.evaluation.test_pages import AXE, STANDARD
from tests.support.browser import Browser
from tests.support.codecs import saved
from tts_assets.codec.backends import facts_of, open_compact, save_codec
from tts_assets.codec.config import CodecArchitecture, CodecReportConfig
from tts_assets.codec.decoder import OUTPUTS, CodecDecoder, decoder_config, save_decoder
from tts_assets.codec.model import Codec
from tts_assets.codec.xcodec2 import build
from tts_assets.codec_report.assets import build_assets
from tts_assets.codec_report.config import (
    CLIPS,
    CodecReportProgram,
    CodecVersion,
    chosen_clips,
    losses,
)
from tts_assets.codec_report.evaluate import main, write_report
from tts_assets.codec_report.measure import Measurer, SystemMetrics, held_out
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    CodecCheckpoint,
    CodecReport,
    sha256_file,
)
from tts_assets.core.audio import read_wave, resample
from tts_assets.core.compute import Shape
from tts_assets.core.program import STOPPED
from tts_assets.corpora.samples import Sample, write_samples
from tts_assets.evaluation import page as clips
from tts_assets.orchestration.dependencies import corpus_partitions

EVERYTHING = ValidationSplit(fraction=0.99)
REPORT = CodecReportConfig(corpora=("asterisk_en",), clips=2)


def sentences(shortest: float, longest: float) -> list[Sample]:
    """Four sentences with a duration in these seconds."""
    rows = [json.loads(line) for line in (CORPUS / "samples.jsonl").read_text().splitlines()]
    fits = (row for row in rows if shortest <= row["duration"] <= longest)
    rows = [row for row in fits if "(" not in row["transcript"]][:4]
    return [
        Sample(
            id=sha256_file(CORPUS / row["wav_path"])[:16],
            wav_path=str(CORPUS / row["wav_path"]),
            transcript=row["transcript"],
            language="en",
            duration=row["duration"],
        )
        for row in rows
    ]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return sentences(2.0, 3.0)


@pytest.fixture(scope="module")
def program(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> CodecReportProgram:
    """The vendored codec, with its own decoder and with an untrained decoder at 24 kHz."""
    folder = tmp_path_factory.mktemp("codec_report")
    write_samples(folder / "kept.jsonl", samples)
    config = decoder_config(open_compact(VENDORED).config)
    (folder / "decoder").mkdir()
    save_decoder(CodecDecoder(config, OUTPUTS[24_000]), folder / "decoder")
    return CodecReportProgram(
        run_dir=folder,
        report=REPORT,
        versions=(
            CodecVersion(name="vendored", codec=VENDORED),
            CodecVersion(name="untrained", codec=VENDORED, decoder=folder / "decoder"),
        ),
        samples={"asterisk_en": folder / "kept.jsonl"},
        validation=EVERYTHING,
    )


@pytest.fixture(scope="module")
def measured(program: CodecReportProgram) -> list[dict[str, Any]]:
    path = program.run_dir / "run.json"
    path.write_text(program.to_json())
    main([str(path)])
    systems: list[dict[str, Any]] = json.loads(
        (program.run_dir / "result" / "report.json").read_text()
    )
    return systems


def test_clips_without_words_are_not_used(program: CodecReportProgram) -> None:
    def program_with(*transcripts: str) -> CodecReportProgram:
        path = program.run_dir / "others.jsonl"
        write_samples(
            path,
            [
                Sample(id=str(row), wav_path="-", transcript=text, language="en", duration=1.0)
                for row, text in enumerate(transcripts)
            ],
        )
        return program.model_copy(update={"samples": {"asterisk_en": path}})

    assert [sample.transcript for sample in held_out(program_with("Mm-hmm.", "one"))] == ["one"]
    with pytest.raises(ValueError, match=r"have transcripts\n(?s:.*)no words: \d, for"):
        held_out(program_with("Um...", ""))


@pytest.mark.slow
def test_a_codec_lies_between_the_recording_and_noise(measured: list[dict[str, Any]]) -> None:
    original, vendored, untrained = measured
    assert [system["name"] for system in measured] == ["original", "vendored", "untrained"]
    assert vendored["wer"] < untrained["wer"] and vendored["cer"] < untrained["cer"]
    assert 0 < vendored["stft"] < untrained["stft"] and original["stft"] is None
    assert vendored["stoi"] > untrained["stoi"] and vendored["mel"] < untrained["mel"]
    assert vendored["similarity"] > (untrained["similarity"] or 0)  # None: no speech was found
    assert original["stoi"] is None and original["codes"] is None
    assert original["p808"] > untrained["p808"]
    assert vendored["cents"] is None and vendored["voicing"] is None  # its codes have no pitch


@pytest.mark.slow
def test_the_wer_has_an_interval(
    program: CodecReportProgram, measured: list[dict[str, Any]]
) -> None:
    for system in measured:
        interval = system["wer_interval"]
        assert 0 <= interval["low"] <= system["wer"] <= interval["high"]
    kept = SystemMetrics.from_json(program.run_dir / "checkpoints" / "vendored.json")
    wrong, right = (
        clip.model_copy(update={"word_errors": fraction * clip.words})
        for clip, fraction in zip(kept.clips, (1, 0), strict=True)
    )
    divided = kept.model_copy(update={"clips": (wrong, right)})
    interval = divided.wer_interval
    assert interval is not None and (interval.low, interval.high) == (0.0, 1.0)


@pytest.mark.slow
def test_a_recording_is_played_at_its_own_rate(
    program: CodecReportProgram, samples: list[Sample], tmp_path: Path
) -> None:
    """At 16 kHz the page would hide what the codec loses of a recording at 24 kHz."""
    wave = resample(read_wave(Path(samples[0].wav_path), 16_000), 16_000, 24_000)
    soundfile.write(tmp_path / "wide.wav", wave, 24_000)
    wide = samples[0].model_copy(update={"wav_path": str(tmp_path / "wide.wav")})
    write_samples(tmp_path / "kept.jsonl", [wide])
    lists = {"asterisk_en": tmp_path / "kept.jsonl"}
    measurer = Measurer(program.model_copy(update={"samples": lists}), tmp_path)
    (clip,) = measurer.originals()
    assert soundfile.info(tmp_path / clip.audio).samplerate == 24_000
    assert clip.word_errors < clip.words
    mimi = Codec.load(saved("mimi", tmp_path / "mimi"))  # 4 codebooks of 6 bits, 12.5 a second
    codes, _, resynthesized = measurer.through("mimi", mimi)
    assert (codes.codes, codes.codebook_size) == (mimi.codes(len(wave)), 4 * 64)
    assert codes.bit_rate == 4 * 6 * 12.5 and 0 <= codes.entropy <= 6
    assert next(resynthesized).mel is not None


@pytest.mark.slow
def test_codes_and_speed_are_counted(measured: list[dict[str, Any]]) -> None:
    vendored, untrained = measured[1:]
    size = vendored["codes"]["codebook_size"]
    assert vendored["codes"]["codes_used"] == untrained["codes"]["codes_used"] <= size
    assert vendored["codes"]["codes"] == untrained["codes"]["codes"] > 100
    assert vendored["codes"]["bit_rate"] == pytest.approx(50 * math.log2(size))
    assert untrained["codes"]["sample_rate"] == 24_000
    assert 0 < vendored["speed"]["encode"] < 10 and 0 < vendored["speed"]["decode"] < 10


@pytest.mark.slow
def test_the_page_is_self_contained(
    program: CodecReportProgram, measured: list[dict[str, Any]]
) -> None:
    page = (program.run_dir / "result" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert page.count("data:audio/flac") == 2 * 3
    assert page.count("data:image/png") == 2 + 2 * 3  # each clip in all systems, and each player
    assert "PESQ" in page
    notebook = json.loads((program.run_dir / "result" / "listening.ipynb").read_text())
    assert sum("data:audio/flac" in json.dumps(cell) for cell in notebook["cells"]) == 2


@pytest.mark.slow
def test_a_page_that_is_full_names_the_files(
    program: CodecReportProgram,
    measured: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(program.run_dir / "result", tmp_path / "result")
    kept = [f"{system['name']}.json" for system in measured]
    systems = [SystemMetrics.from_json(program.run_dir / "checkpoints" / name) for name in kept]
    monkeypatch.setattr(clips, "PAGE_BYTES", 30_000)
    write_report(tmp_path / "result", systems, program)
    page = (tmp_path / "result" / "report.html").read_text()
    assert 0 < page.count("data:audio/ogg") < 2 * 3
    missing = re.findall(r"it is in the file (\S+)\.", page)
    assert len(missing) == 2 * 3 - page.count("data:audio/ogg")
    assert all((tmp_path / "result" / name).is_file() for name in missing)


@pytest.mark.slow
def test_the_page_in_a_browser(
    program: CodecReportProgram, measured: list[dict[str, Any]], tmp_path: Path
) -> None:
    """All metrics of all codecs, visible plots, working players; also on a phone."""
    with Browser(tmp_path / "wide") as browser:
        browser.open(program.run_dir / "result" / "report.html")
        tables = "[...document.querySelectorAll('table')]"
        rows = browser.run(
            f"{tables}.map((t) => [...t.rows].map((r) => [...r.cells].map((c) => c.innerText)))"
        )
        quality, cost = (
            {column[0]: column[1:] for column in zip(*t, strict=True)} for t in rows[:2]
        )
        metrics = ["STOI", "Mel L1", "DNSMOS P.808", "Speaker similarity"]
        for metric in metrics + ["PESQ"] * (find_spec("pesq") is not None):
            (column,) = (values for name, values in quality.items() if name.startswith(metric))
            assert len(column) == 3 and re.fullmatch(r"[\d.]+", column[1]), metric
        assert re.fullmatch(r"[\d.]+ %\s+\([\d.]+ % to [\d.]+ %\)", quality["WER"][1])
        names = ("Bit rate", "Used here", "Perplexity", "Encoding", "Decoding")
        assert all(re.fullmatch(r"[\d.]+", cell) for name in names for cell in cost[name])
        browser.run("document.querySelectorAll('img').forEach((i) => { i.loading = 'eager'; })")
        browser.wait("[...document.images].every((image) => image.naturalWidth > 100)")
        browser.run("document.querySelectorAll('.player button')[1].click()")
        browser.wait("document.querySelectorAll('audio')[1].currentTime > 0.2")
        browser.run(AXE)
        broken = browser.run(f"axe.run(document, {STANDARD}).then((r) => r.violations)")
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in broken] == []
    with Browser(tmp_path / "narrow", (390, 844)) as phone:
        phone.open(program.run_dir / "result" / "report.html")
        assert phone.run("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_a_restart_measures_the_other_codecs_only(
    program: CodecReportProgram, measured: list[dict[str, Any]], tmp_path: Path
) -> None:
    kept = tmp_path / "checkpoints" / "vendored.json"
    kept.parent.mkdir()
    known = (program.run_dir / "checkpoints" / "vendored.json").read_text()
    kept.write_text(known.replace('"heard": "', '"heard": "as kept: '))
    again = program.model_copy(update={"run_dir": tmp_path, "versions": program.versions[:1]})
    (tmp_path / "run.json").write_text(again.to_json())
    (tmp_path / "stop").touch()
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "run.json")])
    assert left.value.code == STOPPED and not (tmp_path / "stop").exists()
    (tmp_path / "result" / "audio").mkdir(exist_ok=True)
    shown = program.run_dir / "result" / "audio" / "vendored"
    (tmp_path / "result" / "audio" / "vendored").symlink_to(shown)
    main([str(tmp_path / "run.json")])
    assert "as kept: " in (tmp_path / "result" / "report.json").read_text()


@pytest.mark.slow
def test_every_codec_of_the_store_is_in_the_report(
    store: ArtifactStore, samples: list[Sample]
) -> None:
    publish(store, "asterisk_en", samples)
    for seed in range(2):
        size = CodecArchitecture(
            hidden=32, layers=1, heads=2, intermediate=32, semantic_hidden=32, levels=(5, 5, 5)
        )
        model, known = build(size, seed), Build("codec", {}, {"seed": seed}, "1")
        folder = store.work_folder(known) / "result"
        folder.mkdir()
        save_codec(model, folder, "fp32")
        handle = store.publish(CodecCheckpoint, known, folder, facts_of(model))
    *_, report = build_assets(REPORT, EVERYTHING, Shape(processes=1), False)
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["asterisk_en"])
        result = materialize(
            [
                AssetSpec("filtered_samples", partitions_def=corpus_partitions),
                AssetSpec("codec"),
                report,
            ],
            instance=instance,
            selection=[report],
            resources={
                "store": ArtifactStoreResource(root=str(store.root)),
                "io_manager": ArtifactIOManager(root=str(store.root)),
                "launcher": TorchrunLauncher(),
            },
        )
    assert result.success
    made = store.current("codec_report")
    assert isinstance(made, CodecReport)
    assert (made.facts.versions, made.facts.clips) == (2, 2)
    names = [system["name"] for system in json.loads((made.path / "report.json").read_text())]
    assert names[1] == f"codec {handle.content[:12]}" and len(names) == 3


def resynthesized(store: ArtifactStore) -> tuple[CodecReport, bool]:
    """The asset ``resynthesis`` of the demo corpus and the result of its check."""
    made, check, *_ = build_assets(None, EVERYTHING, Shape(processes=1), False)
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus", ["asterisk_en"])
        result = materialize(
            [
                AssetSpec("filtered_samples", partitions_def=corpus_partitions),
                AssetSpec("codec"),
                made,
                check,
            ],
            instance=instance,
            selection=[made],
            partition_key="asterisk_en",
            resources={
                "store": ArtifactStoreResource(root=str(store.root)),
                "io_manager": ArtifactIOManager(root=str(store.root)),
                "launcher": TorchrunLauncher(),
            },
        )
    (checked,) = result.get_asset_check_evaluations()
    assert checked.severity == AssetCheckSeverity.WARN
    handle = store.current("resynthesis", "asterisk_en")
    assert isinstance(handle, CodecReport)
    return handle, checked.passed


def publish_codec(store: ArtifactStore, folder: Path) -> None:
    known = Build("codec", {}, {"folder": sha256_file(folder / "model.safetensors")}, "1")
    work = store.work_folder(known)
    shutil.copytree(folder, work / "result")
    store.publish(CodecCheckpoint, known, work / "result", Codec.load(folder).facts)


@pytest.mark.slow
def test_a_codec_that_does_not_preserve_a_voice_is_a_warning(
    store: ArtifactStore, tmp_path: Path
) -> None:
    """The demo's codec passes on its speaker, and warns for a voice a third lower."""
    samples = sentences(3.0, 6.0)  # shorter ones have less reliable embeddings
    publish(store, "asterisk_en", samples)
    publish_codec(store, VENDORED)
    own, passed = resynthesized(store)
    assert passed and own.facts.clips == 4
    assert own.facts.wer is not None and own.facts.wer < 0.2
    assert (own.facts.similarity or 0) > 0.86 and own.facts.cents is None
    assert (own.path / "listening.ipynb").is_file()

    lower = []
    for sample in samples:
        wave = read_wave(Path(sample.wav_path), 16_000)
        path = tmp_path / f"{sample.id}.wav"
        soundfile.write(path, resample(wave, 11_000, 16_000), 16_000)  # 6.5 semitones down, slower
        digest = sha256_file(path)[:16]
        lower.append(sample.model_copy(update={"id": digest, "wav_path": str(path)}))
    publish(store, "asterisk_en", lower)
    other, passed = resynthesized(store)
    assert not passed and other.content != own.content
    lost = losses(other.facts)
    assert any("similarity" in loss for loss in lost), lost


@pytest.mark.slow
def test_more_utterances_of_a_corpus_change_no_resynthesis(tmp_path: Path) -> None:
    rows = [Sample(id=f"{n:04}", wav_path="-", transcript="a", duration=2.0) for n in range(30)]
    write_samples(tmp_path / "few.jsonl", rows[:20])
    write_samples(
        tmp_path / "more.jsonl", [*reversed(rows), rows[0].model_copy(update={"id": "zz"})]
    )
    few, more = (chosen_clips(tmp_path / f"{name}.jsonl") for name in ("few", "more"))
    assert few == more and len(few) == CLIPS
    assert few[0] == rows[0]


@pytest.mark.slow
def test_clips_in_a_language_that_the_asr_model_does_not_know_have_no_wer(
    program: CodecReportProgram, samples: list[Sample], tmp_path: Path
) -> None:
    french = [sample.model_copy(update={"language": "fr"}) for sample in samples[:2]]
    write_samples(tmp_path / "kept.jsonl", french)
    asked = program.model_copy(
        update={
            "run_dir": tmp_path,
            "versions": program.versions[:1],
            "samples": {"asterisk_en": tmp_path / "kept.jsonl"},
        }
    )
    (tmp_path / "run.json").write_text(asked.to_json())
    main([str(tmp_path / "run.json")])
    recordings, codec = json.loads((tmp_path / "result" / "report.json").read_text())
    assert recordings["wer"] is codec["wer"] is None and codec["similarity"] > 0.8
    page = (tmp_path / "result" / "report.html").read_text()
    assert "WER was not measured" in page and "PESQ" in page
