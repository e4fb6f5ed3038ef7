"""A serving model without an engine: prompts of texts, pieces of lines, and loading from a folder.

A long text is synthesized in pieces (``pieces.py``), each with its own seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tts_assets.audio_models.watermark import Watermarker
from tts_assets.codec.model import Codec
from tts_assets.core.artifacts import MANIFEST, CodecCheckpoint, CodecDecoder, verify_folder
from tts_assets.core.cache import user_cache
from tts_assets.corpora.text import Normalizer
from tts_assets.normalization.front_end import is_spoken
from tts_assets.serving.audio_formats import provenance
from tts_assets.serving.config import SERVING_FILE, ServingCard, Voice
from tts_assets.serving.pieces import (
    LONGEST_PAUSE,
    MIN_PIECE,
    PARAGRAPH,
    Fault,
    Piece,
    PieceConcatenator,
    PieceStream,
    Wave,
    find_fault,
    longest_in_context,
    longest_piece,
    sections,
    speech_length,
    speech_tokens,
    split,
)
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.vocabulary import (
    NONVERBALS,
    SpeechVocabulary,
    load_tokenizer,
    read_vocabulary,
)

SHOWN = 200  # characters of a text in messages
SAMPLE_CHARACTERS = 500  # of a text, to estimate its tokens per character


class SynthesisError(ValueError):
    """A serving model or a request is invalid. The message says what to change."""


@dataclass(frozen=True)
class SynthesisLine:
    """A text to synthesize.

    ``seed`` determines the random numbers; None: the seed of the sampling settings. ``voice`` None:
    the voice that the model was trained on. ``description`` of the voice has the format of the
    training data (``speechlm.prompts.describe``). ``language`` selects the text normalization;
    empty: the language of the model. ``adapter`` is the name of an adapter of the server's engine.
    """

    text: str
    voice: Voice | None = None
    seed: int | None = None
    description: str = ""
    language: str = ""
    adapter: str = ""


@dataclass(frozen=True)
class PieceRequest:
    """The request for one piece of a line, and the pause after it in seconds."""

    request: Request
    voice: Voice | None
    pause: float

    def retry(self, attempt: int) -> PieceRequest:
        """The same request with another seed, derived from its seed and ``attempt``."""
        seed = derived_seed(self.request.seed, f"attempt {attempt}")
        return replace(self, request=replace(self.request, seed=seed))


@dataclass(frozen=True)
class Speech:
    """Synthesized speech. That of a line carries the watermark (``ServedModel.watermark``).

    ``wave`` is mono float32 of shape (samples,): ``hop_length`` samples a code, and the pauses
    between pieces. ``codes`` has shape (codes,). ``ended``: the model generated its end token for
    all pieces. ``fault``: the reason why the speech is unusable, if it is.
    """

    text: str
    wave: NDArray[np.float32]
    codes: NDArray[np.int64]
    ended: bool
    fault: Fault | None = None


class ServedModel:
    """A serving model without its engine: card, prompt format, text normalization and codec."""

    def __init__(
        self,
        card: ServingCard,
        prompts: PromptFormat,
        codec: Codec,
        positions: int | None = None,
    ) -> None:
        """``positions``: tokens of the context, if an engine limits them."""
        self.positions = positions
        self.card = card
        self.prompts = prompts
        self.codec = codec
        self.normalize = Normalizer(card.text, user_cache())

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms in Hz."""
        return self.card.sample_rate

    @property
    def provenance(self) -> str:
        """The statement that all audio of this model carries."""
        return provenance(self.card)

    def watermark(self) -> Callable[[Wave], Wave]:
        """A function that adds the watermark to the successive chunks of one stream, (samples,).

        It returns them unchanged if ``[serving] watermark`` was false.
        """
        return Watermarker(self.sample_rate).push if self.card.watermark else lambda wave: wave

    def voice(self, name: str) -> Voice:
        """The voice ``name`` of the serving model. Raises :class:`SynthesisError` if unknown."""
        if name not in self.card.voices:
            known = ", ".join(sorted(self.card.voices)) or "none are registered"
            raise SynthesisError(f"no voice {name!r}; known voices: {known}")
        return self.card.voices[name]

    def new_voice(self, wave: NDArray[np.float32], text: str, language: str = "") -> Voice:
        """Make a voice prompt.

        ``wave`` is mono float32 of shape (samples,) at ``codec.input_rate`` Hz, ``text`` its
        transcript in ``language``; empty: in the language of the model.
        """
        language = language or self.card.language
        codes = tuple(int(code) for code in self.codec.encode([wave])[0])
        return Voice(text=self.spoken(text, language), codes=codes, language=language)

    def spoken(self, text: str, language: str) -> str:
        """``text`` normalized as in training; an empty ``language`` is that of the model.

        Raises :class:`SynthesisError` if no text is left, for signs that nobody reads, and for
        unknown nonverbal tags.
        """
        language = language or self.card.language
        return self._checked(self.normalize(text, language), text, language)

    def _checked(self, spoken: str, text: str, language: str) -> str:
        """``spoken``, the normalized ``text``; raises as :meth:`spoken`."""
        self._check_tags(text)
        if signs := self.normalize.unread(spoken):
            raise SynthesisError(
                f"nothing reads {' '.join(signs)} in {shortened(text)!r} (language {language!r}): "
                "remove these signs, write words, or train with [text] rules that name them"
            )
        if not spoken:
            raise SynthesisError(
                f"nothing to synthesize in {shortened(text)!r}: it has no letters or digits"
            )
        return spoken

    def request(self, line: SynthesisLine, seed: int) -> Request:
        """The prompt of a line as token ids. Raises :class:`SynthesisError` as :meth:`spoken`."""
        return self._request(line, self.spoken(line.text, line.language), seed)

    def _request(self, line: SynthesisLine, text: str, seed: int) -> Request:
        voice = line.voice
        prompt = self.prompts.inference(
            text,
            prompt_text=voice.text if voice else "",
            prompt_codes=voice.codes if voice else (),
            voice_description=line.description,
        )
        return Request(prompt, seed if line.seed is None else line.seed, line.adapter)

    def piece_requests(self, line: SynthesisLine, sampling: SamplingConfig) -> list[PieceRequest]:
        """The requests for all pieces of a line, with its voice.

        The text is normalized, then split. The first piece has the seed of the line; the others
        have seeds derived from it. Raises :class:`SynthesisError` as :meth:`spoken`.
        """
        seed = sampling.seed if line.seed is None else line.seed
        parts = self._spoken_sections(line)
        pieces = self._split(parts, line, sampling)
        if len(pieces) > 1 and line.voice is None and not line.adapter:
            line = replace(line, voice=self._common_voice(seed))
            pieces = self._split(parts, line, sampling)
        seeds = [seed, *(derived_seed(seed, f"piece {i}") for i in range(1, len(pieces)))]
        return [
            PieceRequest(
                self._request(replace(line, seed=own), piece.text, own), line.voice, piece.pause
            )
            for piece, own in zip(pieces, seeds, strict=True)
        ]

    def _spoken_sections(self, line: SynthesisLine) -> list[Piece]:
        """The normalized texts between marks of pauses; their paragraphs stay apart."""
        language = line.language or self.card.language
        try:
            written = sections(line.text)
        except ValueError as error:
            raise SynthesisError(str(error)) from None
        spoken: list[Piece] = []
        for part in written:
            paragraphs = [self.normalize(each, language) for each in PARAGRAPH.split(part.text)]
            text = "\n\n".join(filter(None, paragraphs))
            if text:
                spoken.append(Piece(text, part.pause))
            elif spoken:
                longer = min(spoken[-1].pause + part.pause, LONGEST_PAUSE)
                spoken[-1] = replace(spoken[-1], pause=longer)
        self._checked(" ".join(part.text for part in spoken), line.text, language)
        return spoken

    def _split(
        self, parts: Sequence[Piece], line: SynthesisLine, sampling: SamplingConfig
    ) -> list[Piece]:
        """The pieces of spoken texts: as long as half of ``max_tokens`` and the context allow."""
        longest = self._longest_piece(line, " ".join(part.text for part in parts), sampling)
        pieces: list[Piece] = []
        for part in parts:
            own = [piece for piece in split(part.text, longest) if is_spoken(piece.text)]
            pieces += [*own[:-1], replace(own[-1], pause=part.pause)]
        return [*pieces[:-1], replace(pieces[-1], pause=0.0)]

    def check_room(self, voice: Voice) -> None:
        """Raise :class:`SynthesisError` if a voice prompt leaves no room for a short text."""
        room = self._room(SynthesisLine("", voice))
        needed = MIN_PIECE + speech_tokens(MIN_PIECE, self.card.token_rate)
        if room is not None and room < needed:
            raise SynthesisError(
                f"the voice prompt leaves {max(room, 0)} of {self.positions} positions, a short "
                f"text needs {needed}: use a shorter clip"
            )

    def _room(self, line: SynthesisLine) -> int | None:
        """Positions that the voice and the description of a line leave; None without a limit."""
        if self.positions is None:
            return None
        voice = line.voice
        prompt = self.prompts.inference(
            "",
            prompt_text=voice.text if voice else "",
            prompt_codes=voice.codes if voice else (),
            voice_description=line.description,
        )
        return self.positions - len(prompt)

    def _longest_piece(self, line: SynthesisLine, text: str, sampling: SamplingConfig) -> int:
        """Characters of a piece: half of ``max_tokens``, and no more than the context has room."""
        longest = longest_piece(sampling, self.card.token_rate)
        room = self._room(line)
        sample = text[:SAMPLE_CHARACTERS]
        if room is None or not sample:
            return longest
        tokens = len(self.prompts.text_ids(sample)) / speech_length(sample)
        return min(longest, longest_in_context(room, tokens, self.card.token_rate))

    def _common_voice(self, seed: int) -> Voice | None:
        """A voice for all pieces of a text, if the model was trained on several speakers.

        Without a prompt, such a model would use another voice for each piece.
        """
        names = sorted(self.card.voices)
        if len({self.card.voices[name].speaker for name in names}) < 2:
            return None
        return self.card.voices[names[seed % len(names)]]

    def piece_stream(self, piece: PieceRequest) -> PieceStream:
        """The decoder of one streamed completion of ``piece``."""
        prompt = piece.voice.codes if piece.voice else ()
        return PieceStream(self.codec, prompt, self.sample_rate, self.card.token_rate)

    def piece_speech(
        self, wave: NDArray[np.float32], codes: NDArray[np.int64], ended: bool
    ) -> Speech:
        """The speech of one piece from its ``wave`` (samples,) and ``codes`` (codes,).

        It has the fault of the piece, if there is one.
        """
        frame = len(self.codec.frame)
        fault = find_fault(codes, wave, ended, self.sample_rate, self.card.token_rate, frame)
        return Speech("", wave, codes, ended, fault)

    def join(self, text: str, pieces: Sequence[PieceRequest], speeches: Sequence[Speech]) -> Speech:
        """The speech of a line, with the watermark, from that of its pieces."""
        concatenator = PieceConcatenator(self.sample_rate)
        waves = []
        for piece, speech in zip(pieces, speeches, strict=True):
            waves.append(concatenator.push(speech.wave))
            concatenator.end_piece(piece.pause)
        return Speech(
            text,
            self.watermark()(np.concatenate([*waves, concatenator.finish()])),
            np.concatenate([speech.codes for speech in speeches]),
            all(speech.ended for speech in speeches),
            next((speech.fault for speech in speeches if speech.fault), None),
        )

    def _check_tags(self, text: str) -> None:
        """Raise :class:`SynthesisError` for tags that the model would read letter by letter."""
        spelled = self.prompts.vocabulary.format.spelled
        known = spelled.union(self.prompts.tokenizer.get_added_vocab())
        unknown = [tag for tag in NONVERBALS if tag in text and tag not in known]
        if unknown:
            raise SynthesisError(
                f"{self.card.recipe} does not know {', '.join(unknown)}: remove it from the text, "
                "or train with vocabulary.nonverbals = true"
            )


def shortened(text: str) -> str:
    """The start of a text, for messages."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of 32 bits from the SHA-256 of ``seed`` and ``purpose``."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:4], "big")


def read_card(folder: Path) -> ServingCard:
    """Read ``serving.json``. Raises :class:`SynthesisError` if ``folder`` has none."""
    if not (folder / SERVING_FILE).is_file():
        raise SynthesisError(
            f"{folder} is not a serving model: it has no {SERVING_FILE}; materialize "
            "serving/<recipe> and use its folder"
        )
    return ServingCard.from_json(folder / SERVING_FILE)


def verify_model(folder: Path) -> ServingCard:
    """Verify the files of a serving model, its codec and its decoder; returns its card.

    A folder without a manifest was not published and is not verified. Raises
    :class:`SynthesisError` for another folder, :class:`ArtifactError` for damaged files.
    """
    card = read_card(folder)
    parts = [folder, folder / card.codec_path]
    if card.decoder_path is not None:
        parts.append(folder / card.decoder_path)
    for part in parts:
        if (part.resolve() / MANIFEST).is_file():
            verify_folder(part)
    return card


def open_codec(folder: Path, card: ServingCard, device: str) -> Codec:
    """Load the codec of a serving model.

    Raises :class:`SynthesisError` if the codec has other content than at the conversion.
    """
    handle = CodecCheckpoint.open((folder / card.codec_path).resolve())
    if handle.content != card.codec:
        raise SynthesisError(
            f"{folder} needs codec {card.codec[:12]}, but {handle.path} is codec "
            f"{handle.content[:12]}: codes are valid for one codec only; convert again"
        )
    codec = Codec.load(handle.path, device)
    if card.decoder_path is None:
        return codec
    decoder = CodecDecoder.open((folder / card.decoder_path).resolve())
    return codec.use_decoder(decoder.path)


def open_prompts(folder: Path, card: ServingCard) -> PromptFormat:
    """The prompt format of a serving model; does not load its weights."""
    tokenizer = load_tokenizer(str(folder))
    vocabulary = read_vocabulary(tokenizer, card.codebook_size)
    check_vocabulary(folder, card, vocabulary)
    return PromptFormat(tokenizer, vocabulary)


def open_lm(folder: Path, card: ServingCard, device: str | None = None) -> SpeechLM:
    """Load model, tokenizer and vocabulary of a serving model, in evaluation mode."""
    lm = SpeechLM.load(folder, card.codebook_size)
    check_vocabulary(folder, card, lm.vocabulary)
    lm.model.to(torch.device(device or default_device()))  # type: ignore[arg-type]
    lm.model.eval()
    return lm


def check_vocabulary(folder: Path, card: ServingCard, vocabulary: SpeechVocabulary) -> None:
    """Raise :class:`SynthesisError` if the tokenizer's vocabulary is not that of the card."""
    if vocabulary.digest != card.vocabulary:
        raise SynthesisError(
            f"{folder}: the tokenizer has vocabulary {vocabulary.digest[:12]}, but "
            f"{SERVING_FILE} names {card.vocabulary[:12]}; the files do not match: convert "
            "again"
        )


def default_device() -> str:
    """``cuda`` if there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
