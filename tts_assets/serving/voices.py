"""The voices of a server: those of its serving model, and uploaded ones."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path

from tts_assets.core.audio import BrokenAudio, read_upload
from tts_assets.core.config import ConfigError
from tts_assets.serving.config import StoredVoice, Voice
from tts_assets.serving.served_model import ServedModel, SynthesisError
from tts_assets.serving.streaming import AUDIBLE_FRACTION, audible_fraction

DEFAULT_VOICE = "default"  # no voice prompt: the voice that the model was trained on
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SECONDS = (1.0, 30.0)  # of a prompt: it must define the voice and leave context for the text

log = logging.getLogger("tts_assets.server")


class VoiceRegistry:
    """Voices by name. ``folder`` keeps the uploaded ones, one JSON file each.

    A file that does not fit this model is ignored with a warning and stays where it is. At most
    ``limit`` uploaded voices are kept.
    """

    def __init__(self, model: ServedModel, folder: Path | None, limit: int) -> None:
        self.model, self.folder, self.limit = model, folder, limit
        self.voices: dict[str, Voice | None] = {DEFAULT_VOICE: None, **model.card.voices}
        self.uploaded = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.json")):
                self._restore(path)

    def __getitem__(self, name: str) -> Voice | None:
        """The voice ``name``; None for the default. Raises :class:`SynthesisError`."""
        if name not in self.voices:
            raise SynthesisError(f"no voice {name!r}; known voices: {', '.join(self.voices)}")
        return self.voices[name]

    def make(self, audio: bytes, text: str, language: str) -> Voice:
        """Make a voice from an uploaded file. Raises :class:`SynthesisError` for unusable clips."""
        rate = self.model.codec.input_rate
        with tempfile.NamedTemporaryFile() as file:
            file.write(audio)
            file.flush()
            try:
                wave = read_upload(Path(file.name), rate, SECONDS[1])
            except BrokenAudio as error:
                raise SynthesisError(f"the clip: {error.reason} ({error.detail})") from None
        seconds = len(wave) / rate
        if not SECONDS[0] <= seconds <= SECONDS[1]:
            raise SynthesisError(
                f"the clip has {seconds:.1f} s; a voice prompt has {SECONDS[0]:g} to {SECONDS[1]:g}"
            )
        if audible_fraction(wave, rate) < AUDIBLE_FRACTION:
            raise SynthesisError("the clip is mostly silence; upload a clip with speech")
        voice = self.model.new_voice(wave, text, language)
        if not voice.text:
            raise SynthesisError(f"text {text!r} has no words; use the transcript of the clip")
        return voice.model_copy(update={"language": language})

    def check_name(self, name: str) -> None:
        """Raise :class:`SynthesisError` if no voice can be added under this name."""
        if not NAME.fullmatch(name):
            raise SynthesisError(
                f"name {name!r}: use 1 to 64 letters, digits, '.', '-' or '_', starting with a "
                "letter or a digit"
            )
        if name in self.voices:
            raise SynthesisError(f"the voice {name!r} exists already; choose another name")
        if self.uploaded >= self.limit:
            raise SynthesisError(
                f"there are {self.limit} uploaded voices, the limit of this server"
            )

    def add(self, name: str, voice: Voice) -> None:
        """Add an uploaded voice under a new name. Raises :class:`SynthesisError`."""
        self.check_name(name)
        if self.folder is not None:
            new = self.folder / f".{name}.new"
            stored = StoredVoice(**voice.model_dump(), codec=self.model.card.codec)
            new.write_text(stored.to_json())
            new.replace(self.folder / f"{name}.json")
        self._register(name, voice)

    def _restore(self, path: Path) -> None:
        try:
            voice = StoredVoice.from_json(path)
        except (ConfigError, UnicodeDecodeError) as error:
            log.warning("%s is ignored: %s; upload the voice again", path, error)
            return
        card = self.model.card
        if path.stem in self.voices:
            reason = "the model has a voice of this name; rename the file"
        elif voice.codec != card.codec:
            reason = (
                f"its codes are of codec {voice.codec[:12]}, the model uses codec "
                f"{card.codec[:12]}; upload the voice again"
            )
        elif not all(0 <= code < card.codebook_size for code in voice.codes):
            reason = f"it has codes beyond the {card.codebook_size} of the codec; upload it again"
        else:
            self._register(path.stem, voice)
            return
        log.warning("%s is ignored: %s", path, reason)

    def _register(self, name: str, voice: Voice) -> None:
        self.voices[name] = voice
        self.uploaded += 1
