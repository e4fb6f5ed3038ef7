"""Cuts the recordings of a corpus: ``python -m tts_assets.corpora.segments.segment run.json``,
or torchrun with any number of ranks.

The recordings are shared out among the ranks, the longest first, and each is done with one
thread, so that the bytes do not depend on how many ranks there are. Its result appears by one
rename; a restart does those that are missing. The ranks exchange nothing: rank 0 waits for the
others' files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tts_assets.audio_models.speaker_similarity import SpeakerEncoder, SpeakerSimilarity
from tts_assets.core.accounting import SetAside
from tts_assets.core.artifacts import RawCorpus, sha256_file, written_aside
from tts_assets.core.audio import AudioPool, BrokenAudio, Clip, read_clip
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import digest_of
from tts_assets.core.hub import model_digest
from tts_assets.core.program import Run, load_config
from tts_assets.corpora.index import Utterance, utterances
from tts_assets.corpora.segments.config import CODE_VERSION, SegmentProgram
from tts_assets.corpora.segments.recording import (
    Span,
    Transcript,
    at_model_rate,
    clips_exist,
    cut,
    listen,
)
from tts_assets.corpora.segments.result import SegmentedRecording, write_result
from tts_assets.corpora.segments.words import WordTranscriber

HEARD_KEYS = ("vad_threshold", "pause", "detect_language")  # what words depend on
CHANGED = "changed since it was indexed"
UNIT = 30.0  # seconds of a recording that progress counts by
POLL = 0.5  # seconds between two looks for the other ranks' results


@dataclass(frozen=True)
class Keys:
    """The names of a recording's transcript and of its result: digests of all they follow from."""

    transcript: str
    record: str


class Segmenter:
    """Recordings to spans, through the caches; models are loaded when they are first needed."""

    def __init__(self, program: SegmentProgram, rows: Sequence[Utterance], device: str) -> None:
        """``rows``: all recordings that there are; ``device`` as torch names it."""
        self.program = program
        self.rows = rows
        self.device = device
        self.facts = RawCorpus.open(program.corpus).facts
        self.pool = AudioPool(program.audio_pool)
        self.transcripts = RecordCache(program.transcripts)
        self.records = RecordCache(program.records)
        self._model = model_digest(program.model)
        self._reference = program.reference and sha256_file(program.reference)

    @cached_property
    def listener(self) -> WordTranscriber:
        listener = WordTranscriber(self.program.model, self.device)
        if listener.knows_english_only:
            self._refuse_other_languages()
        return listener

    @cached_property
    def voice(self) -> SpeakerSimilarity | None:
        if self.program.reference is None:
            return None
        reference = read_clip(self.program.reference)
        return SpeakerSimilarity(SpeakerEncoder(), [(reference.wave, reference.rate)])

    def keys(self, row: Utterance) -> Keys:
        config = self.program.segments.model_dump()
        heard = {name: config[name] for name in HEARD_KEYS}
        language = self.language(row)
        parts = (row.audio_sha256, self._model, self.device.partition(":")[0], CODE_VERSION)
        rest = {name: value for name, value in config.items() if name not in ("model", "speaker")}
        speaker = self.program.segments.speaker
        least = speaker and speaker.min_similarity
        return Keys(
            transcript=digest_of([parts, heard, language]),
            record=digest_of([parts, rest, language, self._reference, least]),
        )

    def language(self, row: Utterance) -> str:
        """Two letters, as Whisper wants them; empty where it is to be detected."""
        return "" if self.program.segments.detect_language else row.language.split("-")[0]

    def segment(self, row: Utterance) -> Iterator[float | SegmentedRecording]:
        """How many seconds of a recording are done, and at last what became of it."""
        keys = self.keys(row)
        known = self.records.get([keys.record]).get(keys.record)
        if known is not None:
            recording = SegmentedRecording.from_json(known)
            if clips_exist(recording.spans, self.pool):
                detected = self.program.segments.detect_language and recording.language
                yield replace(recording, language=detected or row.language)
                return
        clip = self._read(row)
        if isinstance(clip, SetAside):
            lost = Span(0, round(row.duration * row.sample_rate), clip.reason, clip.detail)
            yield SegmentedRecording(row.language, row.sample_rate, (lost,))
            return
        found = self.transcripts.get([keys.transcript]).get(keys.transcript)
        transcript = Transcript.from_json(found) if found else None
        if transcript is None:
            for news in listen(
                at_model_rate(clip), self.listener, self.language(row), self.program.segments
            ):
                if isinstance(news, Transcript):
                    transcript = news
                else:
                    yield news
            assert transcript is not None
            self.transcripts.put({keys.transcript: transcript.to_json()})
        spans = cut(clip, transcript, self.program.segments, self.voice, self.pool)
        detected = self.program.segments.detect_language and transcript.language
        recording = SegmentedRecording(detected or row.language, clip.rate, tuple(spans))
        self.records.put({keys.record: recording.to_json()})
        yield recording

    def _read(self, row: Utterance) -> Clip | SetAside:
        path = row.path(self.facts)
        try:
            clip = read_clip(path)
        except BrokenAudio as error:
            return SetAside(row.audio, error.reason, error.detail)
        if sha256_file(path) != row.audio_sha256:
            return SetAside(row.audio, CHANGED, "materialize raw_corpus again")
        return clip

    def _refuse_other_languages(self) -> None:
        for row in self.rows:
            if self.language(row) != "en":
                known = "is to be detected" if not self.language(row) else f"is {row.language!r}"
                raise ValueError(
                    f"the model in {self.program.model} knows English only, but the language of "
                    f"{row.audio} {known}; name a multilingual one, for example "
                    "segments.model = 'large-v3'"
                )


def run_segments(run: Run, program: SegmentProgram) -> None:
    """This rank's share of the missing recordings; then rank 0 collects all."""
    rows = list(utterances(RawCorpus.open(program.corpus)))
    segmenter = Segmenter(program, rows, str(run.device))
    files = {row.id: run.checkpoint_dir / f"{segmenter.keys(row).record}.json" for row in rows}
    by_length = sorted(rows, key=lambda row: (-row.duration, row.id))
    mine = [r for r in by_length[run.rank :: run.world_size] if not files[r.id].is_file()]
    steps = _steps(segmenter, mine, files)
    total = sum(_units(row) for row in mine)
    for _ in run.progress(steps, "speech segments, half minutes", total=total):
        if run.stop_requested:
            run.stopped()
    if not run.is_main:
        return
    while not all(path.is_file() for path in files.values()):
        if run.stop_requested:
            run.stopped()
        time.sleep(POLL)
    recordings = [
        (row, SegmentedRecording.from_json(json.loads(files[row.id].read_text()))) for row in rows
    ]
    facts = write_result(RawCorpus.open(program.corpus), recordings, program, run.result_dir)
    run.finish(facts.model_dump())


def _steps(segmenter: Segmenter, rows: list[Utterance], files: dict[str, Path]) -> Iterator[None]:
    """Segment the rows and keep each result; yields once for each half minute of a recording."""
    for row in rows:
        counted = 0
        for news in segmenter.segment(row):
            if isinstance(news, SegmentedRecording):
                with written_aside(files[row.id]) as aside:
                    aside.write_text(json.dumps(news.to_json()))
                reached = _units(row)
            else:
                reached = min(int(news / UNIT), _units(row) - 1)
            yield from [None] * max(0, reached - counted)
            counted = max(counted, reached)


def _units(row: Utterance) -> int:
    return int(row.duration / UNIT) + 1


def main(argv: list[str] | None = None) -> None:
    program = load_config(SegmentProgram, argv)
    with Run(program.run_dir) as run:
        run_segments(run, program)


if __name__ == "__main__":
    main()
