"""Program that cuts the recordings of a corpus: ``python -m tts_assets.corpora.segments.segment
run.json``, or torchrun with any number of ranks.

Recordings are distributed over the ranks, the longest first, and each runs on one thread, so that
the bytes do not depend on the number of ranks. Each result appears by one rename; a restart
computes the missing ones. Ranks exchange no messages: rank 0 waits for the files of the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from tts_assets.audio_models.speaker_similarity import SpeakerEncoder, SpeakerSimilarity
from tts_assets.core.accounting import SetAside
from tts_assets.core.artifacts import RawCorpus, atomic_write, sha256_file
from tts_assets.core.audio import AudioPool, BrokenAudio, Clip, read_clip
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import digest_of
from tts_assets.core.hub import model_digest
from tts_assets.core.program import Run, load_config, one_thread
from tts_assets.corpora.index import Utterance, utterances
from tts_assets.corpora.samples import AudioFolders
from tts_assets.corpora.segments import CODE_VERSION, TRANSCRIPT_VERSION, SegmentProgram
from tts_assets.corpora.segments.recording import (
    FindSpeakers,
    Span,
    Transcript,
    at_model_rate,
    clips_exist,
    cut,
    diarized,
    transcribe,
    wanted_speaker,
)
from tts_assets.corpora.segments.result import SegmentedRecording, write_result
from tts_assets.corpora.segments.words import WordTranscriber

TRANSCRIPT_KEYS = ("vad_threshold", "pause", "detect_language")  # of the canonical form
CHANGED = "changed since it was indexed"
UNIT = 30.0  # seconds of a recording per step of the progress bar
POLL = 0.5  # seconds between two checks for the results of other ranks


@dataclass(frozen=True)
class Keys:
    """Cache keys of a transcript and of a result: digests of everything they depend on."""

    transcript: str
    record: str


class Segmenter:
    """Turns recordings into spans, with caches. Models are loaded on first use."""

    def __init__(self, program: SegmentProgram, rows: Sequence[Utterance], device: str) -> None:
        """``rows`` are all recordings of the corpus; ``device`` is a torch device name."""
        self.program = program
        self.rows = rows
        self.device = device
        corpus = RawCorpus.open(program.corpus)
        self.audio = AudioFolders.of_corpus(corpus, program.audio_pool)
        self.pool = AudioPool(program.audio_pool)
        self.transcripts = RecordCache(program.transcripts)
        self.records = RecordCache(program.records)
        self._model = model_digest(program.model)
        self._reference = program.reference and sha256_file(program.reference)

    @cached_property
    def transcriber(self) -> WordTranscriber:
        """The ASR model. Raises ValueError if it does not support a recording's language."""
        transcriber = WordTranscriber(self.program.model, self.device)
        if transcriber.knows_english_only:
            self._refuse_other_languages()
        return transcriber

    @cached_property
    def speakers(self) -> FindSpeakers | None:
        """Finds the wanted speaker or all speakers; None if speakers are not told apart."""
        config = self.program.segments
        if config.diarize:
            return partial(diarized, SpeakerEncoder())
        if self.program.reference is None or config.speaker is None:
            return None
        encoder, clip = SpeakerEncoder(), read_clip(self.program.reference)
        reference = SpeakerSimilarity(encoder, [(clip.wave, clip.rate)]).reference
        return partial(wanted_speaker, encoder, reference, config.speaker.min_similarity)

    def keys(self, row: Utterance) -> Keys:
        """The cache keys of a recording."""
        config = self.program.segments.canonical()
        decisive = {name: config[name] for name in TRANSCRIPT_KEYS}
        language = self.language(row)
        parts = (row.audio_sha256, self._model, self.device.partition(":")[0])
        rest = {name: value for name, value in config.items() if name not in ("model", "speaker")}
        speaker = self.program.segments.speaker
        least = speaker and speaker.min_similarity
        return Keys(
            transcript=digest_of([[*parts, TRANSCRIPT_VERSION], decisive, language]),
            record=digest_of([[*parts, CODE_VERSION], rest, language, self._reference, least]),
        )

    def language(self, row: Utterance) -> str:
        """Whisper's language code of two letters; empty where the language is detected."""
        return "" if self.program.segments.detect_language else row.language.split("-")[0]

    def segment(self, row: Utterance) -> Iterator[float | SegmentedRecording]:
        """Yield the seconds done of a recording, and at last its result."""
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
            for event in transcribe(
                at_model_rate(clip), self.transcriber, self.language(row), self.program.segments
            ):
                if isinstance(event, Transcript):
                    transcript = event
                else:
                    yield event
            assert transcript is not None
            self.transcripts.put({keys.transcript: transcript.to_json()})
        spans = cut(clip, transcript, self.program.segments, self.speakers, self.pool)
        detected = self.program.segments.detect_language and transcript.language
        recording = SegmentedRecording(detected or row.language, clip.rate, tuple(spans))
        self.records.put({keys.record: recording.to_json()})
        yield recording

    def _read(self, row: Utterance) -> Clip | SetAside:
        path = row.path(self.audio)
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
    """Segment this rank's part of the missing recordings; rank 0 then collects all results."""
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
    """Segment the rows and write each result; yields once per half minute of a recording."""
    for row in rows:
        counted = 0
        for event in segmenter.segment(row):
            if isinstance(event, SegmentedRecording):
                with atomic_write(files[row.id]) as aside:
                    aside.write_text(json.dumps(event.to_json()))
                reached = _units(row)
            else:
                reached = min(int(event / UNIT), _units(row) - 1)
            yield from [None] * max(0, reached - counted)
            counted = max(counted, reached)


def _units(row: Utterance) -> int:
    return int(row.duration / UNIT) + 1


def main(argv: list[str] | None = None) -> None:
    """Run the program; ``argv`` is the path of its configuration."""
    program = load_config(SegmentProgram, argv)
    with one_thread(), Run(program.run_dir) as run:
        run_segments(run, program)


if __name__ == "__main__":
    main()
