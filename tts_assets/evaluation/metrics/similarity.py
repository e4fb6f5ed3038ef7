"""Likeness: the cosine of the voice to whom it should be (``hearing/speaker_similarity.py``).

To the speaker whom the text names; else to the voice prompt that it was said after; else to the
speaker of the corpora of ``[evaluation] target``, or of the recipe's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tts_assets.artifacts import sha256_file
from tts_assets.audio import read_clip
from tts_assets.config import ConfigError, digest_of
from tts_assets.evaluation.metrics.metric import (
    Column,
    Metric,
    Setting,
    Unmeasured,
    Utterance,
    Values,
)
from tts_assets.hearing.speaker_similarity import SHORTEST_SECONDS, SpeakerSimilarity
from tts_assets.speakers.source import encoder_digest, resolve


class Similarity(Metric):
    name, version = "similarity", "2"
    columns = (
        Column(
            "speaker_similarity",
            "Likeness",
            "Cosine of GE2E voice embeddings to the target's: the voice prompt, or the mean of the "
            "speaker's recordings. By the public encoder about 0.8 to 0.95 for the same person, "
            "0.5 to 0.7 for another.",
            better="high",
            shown=True,
        ),
    )

    def __init__(self, setting: Setting) -> None:
        from tts_assets.speakers.encoder import open_voices  # torch: slow to import

        super().__init__(setting)
        name = setting.config.speaker_encoder
        self.encoder = open_voices(name)
        self.encoder_digest = encoder_digest(resolve(name, Path()))
        self._voices: dict[tuple[Path, ...], SpeakerSimilarity] = {}
        self._keys: dict[tuple[Path, ...], str] = {}

    def target(self, utterance: Utterance) -> tuple[Path, ...]:
        """The clips that the voice should be like."""
        text = utterance.text
        if text.speaker:
            if text.speaker not in self.setting.speakers:
                raise ConfigError(f"{text.id}: no clips of speaker {text.speaker!r} were given")
            return self.setting.speakers[text.speaker]
        return (text.prompt_wav,) if text.prompt_wav else self.setting.references

    def key(self, utterance: Utterance) -> str:
        clips = self.target(utterance)
        if clips not in self._keys:
            digests = [sha256_file(clip) for clip in clips]
            self._keys[clips] = digest_of([self.encoder_digest, *digests])
        return self._keys[clips]

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._one(utterance) for utterance in utterances]

    def _one(self, utterance: Utterance) -> Values | Unmeasured:
        cosine = self._voice(self.target(utterance))(utterance.wave, utterance.rate)
        if cosine is None:
            return Unmeasured(f"less than {SHORTEST_SECONDS:g} s of speech")
        return {"speaker_similarity": cosine}

    def _voice(self, clips: tuple[Path, ...]) -> SpeakerSimilarity:
        if clips not in self._voices:
            read = [read_clip(clip) for clip in clips]
            waves = [(clip.wave, clip.rate) for clip in read]
            self._voices[clips] = SpeakerSimilarity(self.encoder, waves)
        return self._voices[clips]
