"""Long recordings to clips with transcripts.

This module has the configuration of ``speech_segments``: ``[corpora.<name>.segments]`` and that of
its program.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tts_assets.audio_models.whisper import PACKAGED, knows_english_only
from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig

PAUSE = 0.15  # the shortest silence between two words, in seconds, where a cut is possible
TRANSCRIPT_VERSION = "2"  # of speech and words of a recording
CODE_VERSION = "3"  # of everything that turns a recording into clips


class SpeakerFilter(Config):
    """``[corpora.<name>.segments.speaker]``: keep only clips of one speaker.

    ``reference`` is a recording of this speaker alone, of a few seconds or more. Clips are cut
    where the speaker changes. The cosine similarity of a window of 1.6 s to the reference is 0.6
    to 0.85 for the same speaker, and 0.35 to 0.6 for others (``recording.py`` has the measurement).
    """

    reference: Path
    min_similarity: float = Field(
        default=0.6, ge=-1, le=1, description="of every window of 1.6 s of a clip"
    )


class SegmentConfig(Config):
    """``[corpora.<name>.segments]``: how recordings become utterances. Times are in seconds.

    ``longest_pause`` is the longest silence inside a clip. ``margin`` is the silence that a clip
    keeps at both ends. ``loudness`` is the integrated loudness of each clip in LUFS (EBU R128), set
    by a linear gain that keeps the true peak below -1 dBTP; ``"none"`` keeps the samples. ``model``
    is the Whisper model: a folder or a name on the hub; the default is the packaged tiny.en.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset(("diarize",))
    removed_keys: ClassVar[Mapping[str, Any]] = {
        "vad_threshold": 0.5,
        "min_confidence": 0.5,
        "peak": -1.0,
        "pause": PAUSE,
    }

    min_seconds: float = Field(default=2.0, ge=0.5)
    max_seconds: float = Field(default=10.0, le=25, description="Whisper's input has 30 s")
    longest_pause: float = Field(default=1.0, ge=PAUSE)
    margin: float = Field(default=0.2, ge=0, le=1)
    model: str = PACKAGED
    detect_language: bool = Field(default=False, description="of each recording")
    loudness: float | Literal["none"] = Field(default=-23.0)
    speaker: SpeakerFilter | None = None
    diarize: bool = Field(
        default=False,
        description="separate the speakers of each recording; they become "
        "<speaker>-<recording>-1, -2, …",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_seconds >= self.max_seconds:
            raise ValueError(
                f"min_seconds {self.min_seconds} leaves no length below max_seconds "
                f"{self.max_seconds}; raise max_seconds"
            )
        if 2 * self.margin >= self.min_seconds:
            raise ValueError(
                f"two margins of {self.margin} s fill a clip of min_seconds {self.min_seconds}; "
                f"write margin = {self.min_seconds / 10:g}"
            )
        if self.loudness != "none" and not -50 <= self.loudness <= -5:
            raise ValueError(
                f"loudness {self.loudness} LUFS is outside the range of speech, -50 to -5; "
                'write -23.0 (EBU R128), or "none"'
            )
        if self.diarize and self.speaker is not None:
            raise ValueError(
                "diarize keeps all speakers of a recording, speaker keeps one: drop one of them"
            )
        if self.detect_language and knows_english_only(self.model):
            raise ValueError(
                f"Whisper {self.model or 'tiny.en'} supports English only and cannot detect "
                "other languages; name a multilingual model, for example model = 'large-v3'"
            )
        return self

    def check_language(self, language: str) -> None:
        """Raise ValueError if the model, by its name, does not support ``language`` (a tag)."""
        if knows_english_only(self.model) and language.split("-")[0] != "en":
            raise ValueError(
                f"segments: Whisper {self.model or 'tiny.en'} supports English only, but the "
                f"language is {language!r}; name a multilingual model, for example "
                "segments.model = 'large-v3'"
            )


class SegmentProgram(ProgramConfig):
    """``tts_assets.corpora.segments.segment``: cut all recordings of one corpus.

    ``corpus`` is the folder of its ``raw_corpus``, ``model`` the folder of the Whisper model, and
    ``reference`` the recording of the wanted speaker. Clips are written to ``audio_pool``.
    ``transcripts`` and ``records`` are cache files with transcripts and results by the digest of
    the recording; another version of the corpus computes only what is new.
    """

    corpus: Path
    segments: SegmentConfig
    model: Path
    reference: Path | None = None
    audio_pool: Path
    transcripts: Path
    records: Path

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.reference is None) != (self.segments.speaker is None):
            raise ValueError("reference and segments.speaker belong together: give both or none")
        return self
