"""Converts a checkpoint to a serving model: a folder with all that synthesis needs.

The folder has the weights as safetensors, the tokenizer with the speech vocabulary, the generation
defaults, ``serving.json`` (codec, voices, sampling), ``README.md`` (model card with lineage and
licenses), and the adapter of the checkpoint, if it has one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tts_assets.arrays.arrays import SPLITS, CodeTable
from tts_assets.core.artifacts import (
    Checkpoint,
    CheckpointFacts,
    CodeArrays,
    CodecCheckpoint,
    CodecDecoder,
    Handle,
    ServingFacts,
)
from tts_assets.core.metadata import literal, table_row
from tts_assets.corpora.config import Consent, TextConfig, VoiceConsent
from tts_assets.serving.config import SERVING_FILE, ServingCard, ServingConfig, Voice
from tts_assets.speechlm.config import ADAPTER
from tts_assets.speechlm.model import SpeechLM


class ConversionError(ValueError):
    """The checkpoint, the codec, the decoder and the arrays do not use the same codes."""


@dataclass(frozen=True)
class Sources:
    """The artifacts of which a serving model is made. ``arrays`` are by corpus."""

    checkpoint: Checkpoint
    codec: CodecCheckpoint
    arrays: Mapping[str, CodeArrays]
    decoder: CodecDecoder | None = None

    @property
    def sample_rate(self) -> int:
        """Sample rate of the synthesized waveforms in Hz."""
        source = self.checkpoint if self.decoder is None else self.decoder
        return int(source.facts.sample_rate)

    def check(self) -> None:
        """Raise :class:`ConversionError` unless all artifacts use the codes of one codec."""
        facts = self.checkpoint.facts
        decoders = [] if self.decoder is None else [self.decoder.facts]
        for name, content, size in [
            *(("decoder", own.codec, own.codebook_size) for own in decoders),
            ("codec", self.codec.content, self.codec.facts.codebook_size),
            *(
                (f"arrays[{k}]", a.facts.codec, a.facts.codebook_size)
                for k, a in self.arrays.items()
            ),
        ]:
            if (content, size) != (facts.codec, facts.codebook_size):
                raise ConversionError(
                    f"{self.checkpoint.asset} was trained on the {facts.codebook_size} codes of "
                    f"codec {facts.codec[:12]}, but {name} is of codec {content[:12]} with {size} "
                    f"codes; materialize {self.checkpoint.asset} again with the current codec"
                )


def convert(
    sources: Sources,
    config: ServingConfig,
    target: Path,
    final: Path,
    text: TextConfig | None = None,
    consents: Mapping[str, VoiceConsent] | None = None,
) -> ServingFacts:
    """Write the serving model to ``target``, which the caller moves to ``final``; return its facts.

    ``text`` is the normalization of the training texts. Synthesis applies the same normalization.
    ``consents`` are those of the recorded people, by corpus. The card refers to the codec by a path
    relative to ``final``, so a storage folder can be moved as a whole.

    Raises :class:`ConversionError` if the sources do not match, or if the tokenizer of the
    checkpoint has another vocabulary than its facts.
    """
    sources.check()
    facts = sources.checkpoint.facts
    lm = SpeechLM.load(sources.checkpoint.path, facts.codebook_size)
    if lm.vocabulary.digest != facts.vocabulary:
        raise ConversionError(
            f"{sources.checkpoint.path}: the tokenizer has vocabulary "
            f"{lm.vocabulary.digest[:12]}, but its facts name {facts.vocabulary[:12]}; train again"
        )
    lm.save(target, config.sampling)
    if (adapter := sources.checkpoint.path / ADAPTER).is_dir():
        shutil.copytree(adapter, target / ADAPTER)
    card = ServingCard(
        recipe=facts.recipe,
        stage=facts.stage,
        vocabulary=facts.vocabulary,
        codec=facts.codec,
        codec_path=Path(os.path.relpath(sources.codec.path, final)),
        decoder_path=sources.decoder and Path(os.path.relpath(sources.decoder.path, final)),
        sample_rate=sources.sample_rate,
        token_rate=facts.token_rate,
        codebook_size=facts.codebook_size,
        sampling=config.sampling,
        text=text or TextConfig(),
        voices=pick_voices(sources.arrays, config),
        languages=languages(sources.arrays),
        consents=dict(consents or {}),
        watermark=config.watermark,
    )
    (target / SERVING_FILE).write_text(card.to_json())
    (target / "README.md").write_text(model_card(sources, card, config, lm.parameters))
    return ServingFacts(
        parameters=lm.parameters,
        codec_path=str(card.codec_path),
        **{
            name: getattr(facts, name)
            for name in ("recipe", "stage", "vocabulary", "codec", "token_rate")
        },
        sample_rate=card.sample_rate,
        codebook_size=facts.codebook_size,
    )


def pick_voices(arrays: Mapping[str, CodeArrays], config: ServingConfig) -> dict[str, Voice]:
    """Return up to ``config.voices`` validation clips with a length in ``config.voice_seconds``.

    Speakers take turns. The clips of a speaker are sorted by id. Ids are digests, so the choice
    depends on the samples only. Without a clip of a suitable length there is no voice.
    """
    shortest, longest = config.voice_seconds
    by_speaker: dict[str, list[tuple[str, Voice]]] = {}
    for array in arrays.values():
        for sample, codes in CodeTable.of_split(array.path, "val"):
            if shortest <= len(codes) / array.facts.token_rate <= longest:
                voice = Voice(
                    text=sample["transcript"],
                    codes=tuple(int(code) for code in codes),
                    speaker=sample["speaker_id"],
                    language=sample["language"],
                    source=sample["id"],
                )
                by_speaker.setdefault(voice.speaker, []).append((voice.source, voice))
    in_turn = [
        (rank, speaker, voice)
        for speaker, clips in by_speaker.items()
        for rank, (_, voice) in enumerate(sorted(clips, key=lambda clip: clip[0]))
    ]
    chosen = sorted(in_turn, key=lambda item: item[:2])[: config.voices]
    return {f"{speaker or 'voice'}-{rank + 1}": voice for rank, speaker, voice in chosen}


def languages(arrays: Mapping[str, CodeArrays]) -> tuple[str, ...]:
    """The known languages of all samples, those with more samples first."""
    counts: Counter[str] = Counter()
    for array in arrays.values():
        for split in SPLITS:
            tags = CodeTable.of_split(array.path, split).columns("language")["language"]
            counts.update(dict(tags.drop_nulls().value_counts().iter_rows()))
    in_order = sorted(counts, key=lambda tag: (-counts[tag], tag))
    return tuple(tag for tag in in_order if tag not in ("", "unknown"))


def licences(arrays: Mapping[str, CodeArrays]) -> dict[str, list[str]]:
    """The licenses in the samples of each corpus, by corpus."""
    return {
        corpus: sorted(
            {
                str(sample["original_data"].get("licence", "unknown"))
                for split in SPLITS
                for sample in CodeTable.of_split(array.path, split).samples
            }
        )
        for corpus, array in sorted(arrays.items())
    }


def model_card(sources: Sources, card: ServingCard, config: ServingConfig, parameters: int) -> str:
    """The text of ``README.md``: size, usage, voices, lineage, licenses and consents."""
    of_corpora = licences(sources.arrays)
    own = config.licence or ", ".join(sorted({x for found in of_corpora.values() for x in found}))
    facts, consents = sources.checkpoint.facts, sorted(card.consents.items())
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-to-speech",
        f"license_name: {yaml_text(own or 'unknown')}",
        f"language: {json.dumps(card.languages)}",  # quoted: YAML reads no, Norwegian, as false
        "---",
        "",
        f"# {card.recipe}",
        "",
        f"A speech language model of {parameters / 1e6:.1f} M parameters: text in, "
        f"{card.token_rate:g} codec tokens a second out ({card.codebook_size} codes, "
        f"{card.sample_rate} Hz). Stage: {card.stage}, {facts.steps} steps, "
        f"{facts.tokens} tokens, {_outcome(facts)}.",
        "",
        f"Languages: {literal(', '.join(card.languages) or 'unknown')}. "
        f"Licence: {literal(own or 'unknown')}.",
        "",
        "## Use",
        "",
        "    python -m tts_assets.serving.synthesize --model THIS_FOLDER --text TEXT --out a.wav",
        "",
        f"Voices: {literal(', '.join(card.voices)) or 'the model has its own only'}.",
        "",
        "## Made from",
        "",
        "| what | asset | content |",
        "|---|---|---|",
        *(_lineage_row(name, handle) for name, handle in _lineage(sources)),
        "",
        "## Licences of the recordings",
        "",
        *(f"- {literal(name)}: {literal(', '.join(own))}" for name, own in of_corpora.items()),
        "",
        "## Whose voices, and what they agreed to",
        "",
        *(f"- {literal(name)}: {literal(_consent_text(one))}" for name, one in consents),
    ]
    return "\n".join(lines) + "\n"


def yaml_text(text: str) -> str:
    """A text as a value of YAML; quoted, as JSON is, if it has other characters than names have."""
    plain = re.fullmatch(r"[\w.,+-]([\w.,+ -]*[\w.,+-])?", text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _consent_text(consent: VoiceConsent) -> str:
    return consent.in_words() if isinstance(consent, Consent) else "a synthetic voice"


def _outcome(facts: CheckpointFacts) -> str:
    if facts.reward is not None:
        return f"mean reward {facts.reward:.4f}"
    return "not validated" if facts.val_loss is None else f"validation loss {facts.val_loss:.4f}"


def _lineage(sources: Sources) -> list[tuple[str, Handle]]:
    arrays = [(f"speech of {name}", array) for name, array in sorted(sources.arrays.items())]
    decoder = [("decoder", sources.decoder)] if sources.decoder is not None else []
    return [("checkpoint", sources.checkpoint), ("codec", sources.codec), *decoder, *arrays]


def _lineage_row(name: str, handle: Handle) -> str:
    return table_row([name, handle.asset, handle.content[:12]])
