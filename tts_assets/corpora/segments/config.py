"""What ``dagster_project.toml`` may say of cutting recordings, and what the program is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from tts_assets.audio_models.whisper import PACKAGED, knows_english_only
from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig

CODE_VERSION = "1"  # of all that turns a recording into clips


class SpeakerFilter(Config):
    """``[corpora.<name>.segments.speaker]``: keep only clips of one voice.

    ``reference`` is a recording of the wanted speaker alone, a few seconds or more. Clips of one
    speaker are at 0.8 to 0.95, of two at 0.5 to 0.7 (``hearing/speaker_similarity.py``).
    """

    reference: Path
    min_similarity: float = Field(default=0.75, ge=-1, le=1)


class SegmentConfig(Config):
    """``[corpora.<name>.segments]``: how recordings become utterances. Times in seconds.

    ``pause``: a silence between two words from which on a cut is possible; ``longest_pause``: one
    that no clip has inside; ``margin``: the silence that is left at both ends of a clip.
    ``loudness`` is the integrated loudness of each clip in LUFS (EBU R128), reached by a linear
    gain that keeps the true peak below ``peak`` dBTP; ``"none"`` leaves the samples as they are.
    ``model``: nothing for the packaged Whisper tiny.en, else a folder or a name on the hub.
    ``min_confidence``: the least mean probability of a clip's words, as Whisper gives it.
    """

    min_seconds: float = Field(default=2.0, ge=0.5)
    max_seconds: float = Field(default=10.0, le=25, description="Whisper hears 30 s at once")
    pause: float = Field(default=0.15, ge=0.1)
    longest_pause: float = Field(default=1.0, gt=0)
    margin: float = Field(default=0.2, ge=0, le=1)
    vad_threshold: float = Field(default=0.5, gt=0, lt=1)
    model: str = PACKAGED
    detect_language: bool = Field(default=False, description="of each recording, from its speech")
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    loudness: float | Literal["none"] = Field(default=-23.0)
    peak: float = Field(default=-1.0, le=0)
    speaker: SpeakerFilter | None = None

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
        if self.longest_pause < self.pause:
            raise ValueError(
                f"longest_pause {self.longest_pause} is below pause {self.pause}: nothing could "
                f"be joined; write longest_pause = 1.0"
            )
        if self.loudness != "none" and not -50 <= self.loudness <= -5:
            raise ValueError(
                f"loudness {self.loudness} LUFS is none that speech has; write -23.0 (EBU R128), "
                'or "none"'
            )
        if self.detect_language and knows_english_only(self.model):
            raise ValueError(
                f"Whisper {self.model or 'tiny.en'} knows English only, and can detect nothing "
                "else; name a multilingual model, for example model = 'large-v3'"
            )
        return self

    def check_language(self, language: str) -> None:
        """Raise ValueError if the model, by its name, does not know ``language`` (a tag)."""
        if knows_english_only(self.model) and language.split("-")[0] != "en":
            raise ValueError(
                f"segments: Whisper {self.model or 'tiny.en'} knows English only, but the "
                f"language is {language!r}; name a multilingual model, for example "
                "segments.model = 'large-v3'"
            )


class SegmentProgram(ProgramConfig):
    """``tts_assets.corpora.segments.segment``: cut all recordings of one corpus.

    ``corpus`` is the folder of its ``raw_corpus``, ``model`` that of the Whisper model, and
    ``reference`` the recording of the wanted speaker. Clips go to ``audio_pool``; what was heard
    and what was cut are cached in the files ``transcripts`` and ``records`` by the recording's
    digest, so that another version of the corpus does only what is new.
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
