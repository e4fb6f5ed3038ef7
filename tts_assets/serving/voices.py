"""Voice prompts: their validation, and the voices of a server."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tts_assets.core.audio import BrokenAudio, read_upload, resample
from tts_assets.core.config import ConfigError
from tts_assets.corpora.segments.speech import RATE, find_speech
from tts_assets.serving.config import ServingCard, StoredVoice, Voice
from tts_assets.serving.pieces import AUDIBLE_FRACTION, audible_fraction
from tts_assets.serving.served_model import ServedModel, SynthesisError, open_lm, read_card
from tts_assets.speechlm.config import ADAPTER, ADAPTER_CARD, AdapterCard
from tts_assets.speechlm.model import weights_digest

WEIGHTS_FILE, SETTINGS_FILE = "adapter_model.safetensors", "adapter_config.json"  # of peft

DEFAULT_VOICE = "default"  # no voice prompt: the voice that the model was trained on
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SECONDS = (1.0, 30.0)  # of a prompt: it must define the voice and leave context for the text
# Voice activity of silero-vad. The lowest of 29 recordings of the demo has 0.70 s, 63 % of its
# length. White, pink and pulsed noise, tones, chords, sweeps and dial tones have none.
SPEECH_THRESHOLD = 0.5
SPEECH_PAUSE = 0.1  # seconds
MIN_SPEECH_SECONDS = 0.5
MIN_SPEECH_FRACTION = 0.3
MAX_PEAK = 1.5  # of full scale: samples beyond it are not in [-1, 1], but for example int16 values

log = logging.getLogger("tts_assets.server")


def make_voice(model: ServedModel, wave: NDArray[np.float32], text: str, language: str) -> Voice:
    """Make a voice prompt from a clip and its transcript, for the command and the server.

    ``wave`` is mono float32 of shape (samples,) at ``codec.input_rate`` Hz. An empty ``language``
    is that of the model. Raises
    :class:`SynthesisError` for a wrong length or level, for clips without speech, for a transcript
    without words, and if the prompt leaves too little of the context.
    """
    check_clip(wave, model.codec.input_rate)
    voice = model.new_voice(wave, text, language)
    if not voice.text:
        raise SynthesisError(f"text {text!r} has no words; use the transcript of the clip")
    model.check_room(voice)
    return voice


def check_clip(wave: NDArray[np.float32], rate: int) -> None:
    """Raise :class:`SynthesisError` unless a clip has a usable length, level, and speech.

    ``wave`` has shape (samples,) at ``rate`` Hz.
    """
    seconds = len(wave) / rate
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        raise SynthesisError(
            f"the clip has {seconds:.1f} s; a voice prompt has {SECONDS[0]:g} to {SECONDS[1]:g}"
        )
    peak = float(np.abs(wave).max())
    if peak > MAX_PEAK:
        raise SynthesisError(f"the clip has a peak of {peak:g}; scale its samples to [-1, 1]")
    if audible_fraction(wave, rate) < AUDIBLE_FRACTION:
        raise SynthesisError("the clip is mostly silence; use a clip with speech")
    at_vad_rate = wave if rate == RATE else resample(wave, rate, RATE)
    found = find_speech(at_vad_rate, SPEECH_THRESHOLD, SPEECH_PAUSE)
    speech = sum(stretch.seconds for stretch in found)
    if speech < max(MIN_SPEECH_SECONDS, MIN_SPEECH_FRACTION * seconds):
        raise SynthesisError(
            f"the clip has {speech:.1f} s of speech in {seconds:.1f} s; noise, tones and music "
            "define no voice: use a clip of one person who speaks"
        )


@dataclass(frozen=True)
class Adapter:
    """An adapter in the format of peft, and the serving model that it comes from."""

    name: str
    folder: Path
    rank: int
    card: ServingCard

    def scaled(self, scale: float, target: Path) -> Adapter:
        """The adapter in the new folder ``target``; what it adds is multiplied by ``scale``."""
        target.mkdir()
        (target / WEIGHTS_FILE).symlink_to((self.folder / WEIGHTS_FILE).resolve())
        settings = json.loads((self.folder / SETTINGS_FILE).read_text())
        settings["lora_alpha"] *= scale
        (target / SETTINGS_FILE).write_text(json.dumps(settings))
        return replace(self, folder=target)


def open_adapters(folder: Path, others: Iterable[Path]) -> list[Adapter]:
    """The adapters in the serving models ``others`` for the base in ``folder``.

    Raises :class:`SynthesisError` for one that was trained beside another base, codec or text.
    """
    found: dict[str, Adapter] = {}
    card = read_card(folder)
    taken = {DEFAULT_VOICE, *card.voices}
    base = weights_digest(open_lm(folder, card, "cpu").model)
    for other in others:
        own, path = read_card(other), other / ADAPTER
        if not path.is_dir():
            raise SynthesisError(f"{other} has no adapter: train it with lora.adapter = true")
        trained = AdapterCard.from_json(path / ADAPTER_CARD)
        same = (trained.base, own.vocabulary, own.codec, own.text)
        if same != (base, card.vocabulary, card.codec, card.text):
            raise SynthesisError(
                f"the adapter of {own.recipe} belongs to another base, vocabulary, codec or [text] "
                f"than {card.recipe}: serve the base that it was trained from, such as a recipe "
                "of the same base with steps = 0"
            )
        if own.recipe in {*found, *taken}:
            raise SynthesisError(f"there are two voices {own.recipe!r}: name one adapter once")
        rank = json.loads((path / SETTINGS_FILE).read_text())["r"]
        found[own.recipe] = Adapter(own.recipe, path, rank, own)
    return list(found.values())


class VoiceRegistry:
    """Voices by name. ``folder`` keeps the uploaded ones, one JSON file each.

    A file that does not fit this model is ignored with a warning and stays where it is. At most
    ``limit`` uploaded voices are kept. ``adapters`` are names of voices without a voice prompt.
    """

    def __init__(
        self, model: ServedModel, folder: Path | None, limit: int, adapters: Iterable[str] = ()
    ) -> None:
        self.model, self.folder, self.limit = model, folder, limit
        self.voices: dict[str, Voice | None] = {DEFAULT_VOICE: None, **model.card.voices}
        self.voices |= dict.fromkeys(adapters)
        self.uploaded: set[str] = set()
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
        with tempfile.NamedTemporaryFile() as file:
            file.write(audio)
            file.flush()
            try:
                wave = read_upload(Path(file.name), self.model.codec.input_rate, SECONDS[1])
            except BrokenAudio as error:
                raise SynthesisError(f"the clip: {error.reason} ({error.detail})") from None
        return make_voice(self.model, wave, text, language)

    def check_name(self, name: str) -> None:
        """Raise :class:`SynthesisError` if no voice can be added under this name."""
        if not NAME.fullmatch(name):
            raise SynthesisError(
                f"name {name!r}: use 1 to 64 letters, digits, '.', '-' or '_', starting with a "
                "letter or a digit"
            )
        if name in self.voices:
            raise SynthesisError(f"the voice {name!r} exists already; choose another name")
        if len(self.uploaded) >= self.limit:
            raise SynthesisError(
                f"there are {self.limit} uploaded voices, the limit of this server; delete one"
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

    def delete(self, name: str) -> None:
        """Delete an uploaded voice. Raises :class:`SynthesisError` for voices of the model."""
        if name not in self.uploaded:
            self[name]  # an unknown one has its own message
            raise SynthesisError(f"the voice {name!r} belongs to the model and cannot be deleted")
        if self.folder is not None:
            (self.folder / f"{name}.json").unlink(missing_ok=True)
        del self.voices[name]
        self.uploaded.discard(name)

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
        elif problem := self.model.codec.frame.problem(np.asarray(voice.codes)):
            reason = f"{problem}; upload it again"
        else:
            try:
                self.model.check_room(voice)
            except SynthesisError as error:
                reason = str(error)
            else:
                self._register(path.stem, voice)
                return
        log.warning("%s is ignored: %s", path, reason)

    def _register(self, name: str, voice: Voice) -> None:
        self.voices[name] = voice
        self.uploaded.add(name)
