"""Voices that a server knows: those of its serving model, and those that were uploaded."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path

from tts_assets.audio import BrokenAudio, read_upload
from tts_assets.config import ConfigError
from tts_assets.serving.config import KeptVoice, Voice
from tts_assets.serving.guards import AUDIBLE_SHARE, audible_share
from tts_assets.serving.synthesis import ServedModel, SynthesisError

OWN = "default"  # without a voice prompt: the voice that the model was trained to
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SECONDS = (1.0, 30.0)  # of a prompt: it must show the voice, yet leave the context to the text

log = logging.getLogger("tts_assets.server")


class VoiceRegistry:
    """Voices by name. ``folder`` keeps the uploaded ones, a JSON file each.

    A file that this model cannot speak with stays where it is, and the log says why.
    """

    def __init__(self, model: ServedModel, folder: Path | None, limit: int) -> None:
        self.model, self.folder, self.limit = model, folder, limit
        self.voices: dict[str, Voice | None] = {OWN: None, **model.card.voices}
        self.uploaded = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.json")):
                self._restore(path)

    def __getitem__(self, name: str) -> Voice | None:
        if name not in self.voices:
            raise SynthesisError(f"no voice {name!r}; known voices: {', '.join(self.voices)}")
        return self.voices[name]

    def make(self, audio: bytes, text: str, language: str) -> Voice:
        """A voice from an uploaded file. Raises :class:`SynthesisError` for what is no prompt."""
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
        if audible_share(wave, rate) < AUDIBLE_SHARE:
            raise SynthesisError("the clip is mostly silence; send one of someone speaking")
        voice = self.model.new_voice(wave, text, language)
        if not voice.text:
            raise SynthesisError(f"text {text!r} has no words; send what the clip says")
        return voice.model_copy(update={"language": language})

    def check_name(self, name: str) -> None:
        """Raise :class:`SynthesisError` unless a voice can be added under this name."""
        if not NAME.fullmatch(name):
            raise SynthesisError(
                f"name {name!r}: give 1 to 64 letters, digits, '.', '-' or '_', the first a letter "
                "or a digit"
            )
        if name in self.voices:
            raise SynthesisError(f"there is a voice {name!r} already; choose another name")
        if self.uploaded >= self.limit:
            raise SynthesisError(f"there are {self.limit} uploaded voices, the most that are kept")

    def add(self, name: str, voice: Voice) -> None:
        """Register an uploaded voice under a new name."""
        self.check_name(name)
        if self.folder is not None:
            new = self.folder / f".{name}.new"
            kept = KeptVoice(**voice.model_dump(), codec=self.model.card.codec)
            new.write_text(kept.to_json())
            new.replace(self.folder / f"{name}.json")
        self._keep(name, voice)

    def _restore(self, path: Path) -> None:
        try:
            voice = KeptVoice.from_json(path)
        except (ConfigError, UnicodeDecodeError) as error:
            log.warning("%s is left out: %s; upload the voice again", path, error)
            return
        card = self.model.card
        if path.stem in self.voices:
            reason = "the model has a voice of this name; rename the file"
        elif voice.codec != card.codec:
            reason = (
                f"its codes are of codec {voice.codec[:12]}, the model speaks those of "
                f"{card.codec[:12]}; upload the voice again"
            )
        elif not all(0 <= code < card.codebook_size for code in voice.codes):
            reason = f"it has codes beyond the {card.codebook_size} of the codec; upload it again"
        else:
            self._keep(path.stem, voice)
            return
        log.warning("%s is left out: %s", path, reason)

    def _keep(self, name: str, voice: Voice) -> None:
        self.voices[name] = voice
        self.uploaded += 1
