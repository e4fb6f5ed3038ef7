"""Automatic speech recognition: clips in, deterministic transcripts out.

:class:`Transcriber` runs CTranslate2 models of Whisper (``faster-whisper``),
:class:`TransformersTranscriber` models of ``transformers``: Whisper, Parakeet, Canary, Qwen3-ASR.
Both decode by greedy or beam search at temperature 0, without the fallback to sampling, without
timestamps, and without the previous window's text as context. The transcript of a clip therefore
depends on the clip alone. A clip that is longer than the model's window is cut at its quietest
positions.

Source: Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, TypeAlias

import ctranslate2
import numpy as np
import soxr
import torch
import transformers
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer
from numpy.typing import NDArray
from transformers import AutoConfig, AutoProcessor, BatchFeature, PreTrainedModel
from transformers.models.canary import processing_canary as canary
from transformers.models.qwen3_asr import processing_qwen3_asr as qwen3_asr
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from tts_assets.audio_models.whisper import PACKAGED, TRANSFORMERS, model_folder, spoken_language
from tts_assets.core.config import ConfigError
from tts_assets.core.hub import MAIN, from_hub, locate

Wave: TypeAlias = NDArray[np.float32]
Clip: TypeAlias = tuple[Wave, int]
"""A mono waveform, shape (samples,), and its sample rate in Hz."""

WHISPER_RATE = 16_000
FRAMES_PER_SECOND = 100
TOKENS_PER_SECOND = 12  # fast speech has 6; only repetition loops reach this limit
WINDOW_SECONDS = 30  # of Whisper's encoder
MAX_TOKENS = WINDOW_SECONDS * TOKENS_PER_SECOND
WHISPER, CANARY = "WhisperForConditionalGeneration", "CanaryForConditionalGeneration"
QWEN = "Qwen3ASRForConditionalGeneration"
PARAKEET = ("ParakeetForCTC", "ParakeetForRNNT", "ParakeetForTDT")
ARCHITECTURES = (WHISPER, *PARAKEET, CANARY, QWEN)


class Transcriber:
    """A CTranslate2 Whisper model as a deterministic function of a clip.

    ``model``: empty for the packaged tiny.en, the folder of a CTranslate2 model, or a name on the
    Hugging Face hub ("large-v3"). ``window_seconds``: the length of the input that the model sees;
    less than 30 s needs proportionally less time. ``threads``: CPU threads of one call, 0 for the
    default of CTranslate2. ``parallel``: number of calls that may run at once from several threads.
    ``device``: "cpu", "cuda" or "cuda:<n>".
    """

    def __init__(
        self,
        model: str = PACKAGED,
        *,
        language: str = "en",
        beam_size: int = 5,
        window_seconds: float = 30.0,
        batch_size: int = 8,
        threads: int = 0,
        parallel: int = 1,
        device: str = "cpu",
    ) -> None:
        kind, _, index = device.partition(":")
        self.whisper = WhisperModel(
            str(model_folder(model, Path())),
            device=kind,
            device_index=int(index or 0),
            compute_type="int8" if kind == "cpu" else "float16",
            cpu_threads=threads,
            num_workers=parallel,
            local_files_only=True,
        )
        self.name = model or "tiny.en"
        self.language = spoken_language(language)
        self.tokenizer = self._tokenizer(self.language)
        self.beam_size = beam_size
        self.batch_size = batch_size
        self.frames = round(window_seconds * FRAMES_PER_SECOND)
        self.max_tokens = min(448, round(window_seconds * TOKENS_PER_SECOND))

    def __call__(self, clips: Sequence[Clip], languages: Sequence[str] = ()) -> list[str]:
        """The transcript of each clip; ``""`` if no speech is recognized.

        ``languages``: a tag for each clip, if they are not all :attr:`language`. Raises ValueError
        for a language that the model does not know.
        """
        tags = [spoken_language(tag) for tag in languages] or [self.language] * len(clips)
        prompts = {language: self._prompt(language) for language in sorted(set(tags))}
        longest = self.frames * WHISPER_RATE // FRAMES_PER_SECOND

        def transcribe(pieces: Sequence[Wave], languages: Sequence[str]) -> list[str]:
            return self._transcribe(pieces, [prompts[language] for language in languages])

        return in_pieces(clips, tags, longest, self.batch_size, transcribe)

    def _tokenizer(self, language: str) -> Tokenizer:
        """Raises ValueError for a language that the model does not know."""
        multilingual = self.whisper.model.is_multilingual
        if not multilingual and language != "en":
            raise english_only(self.name, language, "large-v3")
        return Tokenizer(
            self.whisper.hf_tokenizer, multilingual, task="transcribe", language=language
        )

    def _prompt(self, language: str) -> list[int]:
        """The decoder's prompt tokens; they have the same number in all languages."""
        prompt = self.whisper.get_prompt(self._tokenizer(language), [], without_timestamps=True)
        return list(prompt)

    def _transcribe(self, pieces: Sequence[Wave], prompts: Sequence[list[int]]) -> list[str]:
        features = np.stack([self._features(piece) for piece in pieces])
        results = self.whisper.model.generate(
            ctranslate2.StorageView.from_array(features),
            list(prompts),
            beam_size=self.beam_size,
            max_length=self.max_tokens,
        )
        return [self.tokenizer.decode(result.sequences_ids[0]).strip() for result in results]

    def _features(self, wave: Wave) -> NDArray[np.float32]:
        """Log-mel features of a wave, padded with silence to the window: (mels, frames)."""
        silence = self.frames * WHISPER_RATE // FRAMES_PER_SECOND - len(wave)
        mel = self.whisper.feature_extractor(np.pad(wave, (0, silence)))
        return np.ascontiguousarray(mel[:, : self.frames], dtype=np.float32)


class TransformersTranscriber:
    """An ASR model of ``transformers`` as a deterministic function of a clip and its language.

    ``model``: a folder, or a name on the Hugging Face hub ("openai/whisper-large-v3",
    "nvidia/parakeet-ctc-1.1b", "nvidia/canary-1b-v2", "Qwen/Qwen3-ASR-1.7B-hf"). It decodes
    greedily, and a piece has at most 30 s. Weights are float16 on a GPU, float32 on a CPU, and are
    read from safetensors only. ``language``: of clips without one. Raises :class:`ConfigError` for
    a model whose class is none of :data:`ARCHITECTURES`, or that lacks weights of its class.
    """

    def __init__(
        self, model: str, *, device: str = "cpu", batch_size: int = 8, language: str = "en"
    ) -> None:
        self.name = model
        self.device = torch.device(device)
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        name, revision = locate(model)
        at = {"revision": revision or MAIN}
        with from_hub(name):
            self.architecture = checked_architecture(
                model, AutoConfig.from_pretrained(name, **at).architectures
            )
            loaded, info = getattr(transformers, self.architecture).from_pretrained(
                name, dtype=dtype, use_safetensors=True, output_loading_info=True, **at
            )
            self.processor = AutoProcessor.from_pretrained(name, **at)
        if info["missing_keys"]:
            raise ConfigError(f"{model}: no weights of {sorted(info['missing_keys'])}")
        self.model = loaded.to(self.device).eval()
        self.languages = languages_of(self.model, self.architecture)
        self.language = spoken_language(language)
        self.batch_size = batch_size

    def __call__(self, clips: Sequence[Clip], languages: Sequence[str] = ()) -> list[str]:
        """The transcript of each clip; ``""`` if no speech is recognized.

        ``languages``: one for each clip, if they are not all :attr:`language`. Raises ValueError
        for a language that the model does not know.
        """
        tags = [spoken_language(tag) for tag in languages] or [self.language] * len(clips)
        if others := sorted(set(tags) - self.languages):
            if self.languages == {"en"}:
                raise english_only(self.name, others[0], "openai/whisper-large-v3")
            raise ValueError(f"ASR model {self.name!r} does not know the language {others[0]!r}")
        longest = WINDOW_SECONDS * WHISPER_RATE
        return in_pieces(clips, tags, longest, self.batch_size, self._transcribe)

    @torch.inference_mode()
    def _transcribe(self, pieces: Sequence[Wave], languages: Sequence[str]) -> list[str]:
        inputs, options = self._inputs(list(pieces), list(languages))
        inputs = inputs.to(self.device, self.model.dtype)
        found = self.model.generate(**inputs, **options)
        ids = getattr(found, "sequences", found)  # transducers also return durations
        if self.architecture == QWEN:  # the output starts with the prompt
            ids = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _inputs(
        self, pieces: list[Wave], languages: list[str]
    ) -> tuple[BatchFeature, dict[str, Any]]:
        """The inputs of the model, and the options of its method ``generate``."""
        if self.architecture in PARAKEET:
            return self.processor(pieces, sampling_rate=WHISPER_RATE), {}
        greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": MAX_TOKENS}
        if self.architecture in (CANARY, QWEN):
            return self.processor.apply_transcription_request(pieces, languages), greedy
        features = self.processor(pieces, sampling_rate=WHISPER_RATE, return_tensors="pt")
        several = self.model.generation_config.is_multilingual
        task = {"language": languages, "task": "transcribe"} if several else {}
        inputs = BatchFeature({"input_features": features["input_features"]})
        return inputs, {**greedy, **task, "return_timestamps": False}


def open_transcriber(
    model: str = PACKAGED,
    *,
    language: str = "en",
    beam_size: int = 5,
    window_seconds: float = 30.0,
    batch_size: int = 8,
    threads: int = 0,
    device: str = "cpu",
) -> Transcriber | TransformersTranscriber:
    """The ASR model ``model``: one of ``transformers`` after the prefix :data:`TRANSFORMERS`.

    ``beam_size``, ``window_seconds`` and ``threads`` are those of a CTranslate2 model only.
    """
    if model.startswith(TRANSFORMERS):
        name = model.removeprefix(TRANSFORMERS)
        return TransformersTranscriber(
            name, device=device, batch_size=batch_size, language=language
        )
    return Transcriber(
        model,
        language=language,
        beam_size=beam_size,
        window_seconds=window_seconds,
        batch_size=batch_size,
        threads=threads,
        device=device,
    )


def checked_architecture(model: str, architectures: Sequence[str] | None) -> str:
    """The class of a model. Raises :class:`ConfigError` unless it is run as an ASR model here."""
    if architectures is None or len(architectures) != 1 or architectures[0] not in ARCHITECTURES:
        raise ConfigError(
            f"{model}: its config.json names the class {', '.join(architectures or ['none'])}, "
            f"which is not run as an ASR model: name a model of {', '.join(ARCHITECTURES)}, or "
            "a CTranslate2 Whisper such as 'large-v3'"
        )
    return architectures[0]


def languages_of(model: PreTrainedModel, architecture: str) -> Set[str]:
    """The languages that a model transcribes.

    A Parakeet is taken as English: its files do not say which languages it knows.
    """
    if architecture == CANARY:
        return canary.LANGUAGE_CODE_TO_NAME.keys()
    if architecture == QWEN:
        return qwen3_asr.LANGUAGE_CODE_TO_NAME.keys()
    if architecture == WHISPER and getattr(model.generation_config, "is_multilingual", False):
        return LANGUAGES.keys()
    return {"en"}


def english_only(name: str, language: str, example: str) -> ValueError:
    """The error of an English model that is asked for another language."""
    return ValueError(
        f"Whisper model {name!r} knows English only, but the language is {language!r}: "
        f"name a multilingual model, for example {example!r}"
    )


def in_pieces(
    clips: Sequence[Clip],
    languages: Sequence[str],
    longest: int,
    batch_size: int,
    transcribe: Callable[[Sequence[Wave], Sequence[str]], list[str]],
) -> list[str]:
    """Transcribe clips in batches of pieces; the texts of a clip's pieces are joined by spaces.

    ``transcribe`` receives waves at 16 kHz of at most ``longest`` samples, and their languages.
    """
    pieces = [
        (number, piece)
        for number, (wave, rate) in enumerate(clips)
        for piece in pieces_of(at_whisper_rate(wave, rate), longest)
    ]
    transcripts: list[list[str]] = [[] for _ in clips]
    for start in range(0, len(pieces), batch_size):
        batch = pieces[start : start + batch_size]
        texts = transcribe([piece for _, piece in batch], [languages[n] for n, _ in batch])
        for (number, _), text in zip(batch, texts, strict=True):
            transcripts[number].append(text)
    return [" ".join(text for text in texts if text) for texts in transcripts]


def at_whisper_rate(wave: Wave, rate: int) -> Wave:
    """``wave`` (samples,) resampled to 16 kHz. Raises ValueError for a clip that is not mono."""
    if wave.ndim != 1:
        raise ValueError(f"expected a mono waveform, got shape {wave.shape}")
    if rate == WHISPER_RATE or not len(wave):
        return wave.astype(np.float32)
    return soxr.resample(wave, rate, WHISPER_RATE).astype(np.float32)


def pieces_of(wave: Wave, longest: int) -> list[Wave]:
    """A clip at 16 kHz in pieces of at most ``longest`` samples; an empty clip has none."""
    pieces = []
    while len(wave) > longest:
        cut = quietest_position(wave, longest // 2, longest)
        pieces.append(wave[:cut])
        wave = wave[cut:]
    return [*pieces, wave] if len(wave) else pieces


def quietest_position(wave: Wave, start: int, stop: int) -> int:
    """Index of the middle of the quietest 0.2 s of ``wave[start:stop]`` at 16 kHz."""
    width = WHISPER_RATE // 5
    energy = np.cumsum(np.square(wave[start:stop], dtype=np.float64))
    return start + int(np.argmin(energy[width:] - energy[:-width])) + width // 2
