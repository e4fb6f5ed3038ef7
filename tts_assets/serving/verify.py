"""Converts checkpoints to serving models, and compares both: greedy tokens, log-probabilities::

    python -m tts_assets.serving.verify run.json

The folder of a serving model has all that synthesis needs: the weights as safetensors, the
tokenizer with the speech vocabulary, the generation defaults, ``serving.json`` (codec, voices,
sampling), ``README.md`` (model card with lineage and licenses), and the adapter of the checkpoint,
if it has one.

The reference of the comparison is the checkpoint, sampled by ``speechlm/generate.py``. The serving
folder is opened as a user would open it: with ``AutoTokenizer`` on the whole prompt string,
``AutoModelForCausalLM``, and vLLM.

The comparison is a program because vLLM may need a separate environment, and a GPU on another node.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tts_assets.arrays.arrays import SPLITS, CodeTable
from tts_assets.core.artifacts import (
    Agreement,
    Checkpoint,
    CheckpointFacts,
    CodeArrays,
    CodecCheckpoint,
    CodecDecoder,
    Handle,
    ServingFacts,
)
from tts_assets.core.config import ConfigError
from tts_assets.core.metadata import literal, table_row
from tts_assets.core.program import Run, load_config
from tts_assets.corpora.config import Consent, TextConfig, VoiceConsent
from tts_assets.serving.config import SERVING_FILE, ServingCard, ServingConfig, VerifyProgram, Voice
from tts_assets.speechlm.config import ADAPTER, SamplingConfig
from tts_assets.speechlm.generate import Completion, Request, allowed_at, allowed_ids, generate
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.vocabulary import SpeechVocabulary

# float32 sums in another order differ by 1e-6 to 1e-5 nats. A lost or untied weight gives 1e-1 and
# more.
TOLERANCE = 1e-3
# CPU attention of vLLM multiplies in bfloat16 if the processor supports it: 5e-3 measured.
VLLM_TOLERANCE = 2e-2


def agreements(program: VerifyProgram) -> dict[str, Agreement]:
    """Run the requested comparisons; results by engine.

    Raises :class:`ConfigError` if vLLM is requested and not installed.
    """
    if program.vllm and find_spec("vllm") is None:
        raise ConfigError(
            f"vLLM is not installed in {sys.executable}: set the interpreter that has it in "
            "[vllm] python, or write check_vllm = false under [serving]"
        )
    arguments = (
        *(program.checkpoint, program.serving_model, program.codebook_size),
        *(program.texts, program.tokens),
    )
    found = {"transformers": compare_transformers(*arguments)}
    if program.vllm:
        found["vllm"] = compare_vllm(*arguments)
    return found


def greedy(
    lm: SpeechLM, texts: Sequence[str], tokens: int
) -> tuple[list[Request], list[Completion]]:
    """Requests and completions of the reference: ``tokens`` greedy tokens after each text."""
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    requests = [Request(prompts.inference(text), seed=0) for text in texts]
    return requests, generate(lm, requests, greedy_sampling(tokens))


def greedy_sampling(tokens: int) -> SamplingConfig:
    """Greedy decoding of exactly ``tokens`` speech tokens."""
    return SamplingConfig(
        temperature=0, top_k=0, repetition_penalty=1.0, min_tokens=tokens, max_tokens=tokens
    )


def compare_transformers(
    checkpoint: Path, serving: Path, codebook_size: int, texts: Sequence[str], tokens: int
) -> Agreement:
    """Compare the serving folder in plain transformers with the checkpoint."""
    lm = SpeechLM.load(checkpoint, codebook_size)
    requests, completions = greedy(lm, texts, tokens)
    tokenizer = AutoTokenizer.from_pretrained(serving, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        serving, dtype=torch.float32, local_files_only=True
    )
    rows = []
    prompts_equal = True
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    for units, request, completion in zip(prompts.units(texts), requests, completions, strict=True):
        written = prompts.prompt_string(units)
        prompt = tokenizer(written, add_special_tokens=prompts.adds_prefix)["input_ids"]
        prompts_equal &= prompt == request.prompt.tolist()
        drawn = torch.from_numpy(completion.token_ids)
        logprobs = next_logprobs(model, torch.tensor(prompt), drawn, lm.vocabulary)
        allowed = torch.from_numpy(allowed_ids(lm.vocabulary))
        rows.append(_compare_row(logprobs, drawn, allowed, completion.logprobs))
    return _summarize(prompts_equal, rows, TOLERANCE)


def compare_vllm(
    checkpoint: Path, serving: Path, codebook_size: int, texts: Sequence[str], tokens: int
) -> Agreement:
    """Compare the serving folder in the vLLM engine with the checkpoint.

    The engine samples its own tokens, so only tokens before the first difference are compared.
    """
    from tts_assets.serving.vllm_engine import VllmEngine

    lm = SpeechLM.load(checkpoint, codebook_size)
    requests, completions = greedy(lm, texts, tokens)
    engine = VllmEngine(
        serving,
        lm.vocabulary,
        dtype="float32",  # also on GPUs: bfloat16 rounding hides wrong weights
        max_sequences=len(texts),
        # The KV cache of the full context of a large model needs gigabytes.
        max_model_len=max(len(request.prompt) for request in requests) + tokens + 1,
    )
    with closing(engine):
        answers = engine.complete(requests, greedy_sampling(tokens))
    return compare_completions(completions, answers, VLLM_TOLERANCE)


def compare_completions(
    completions: Sequence[Completion], answers: Sequence[Completion], tolerance: float
) -> Agreement:
    """Compare greedy ``answers`` of another engine with the ``completions`` of the reference.

    Only tokens up to the first difference are compared. A difference counts unless both engines
    give their tokens the same log-probability, up to ``tolerance``.
    """
    rows = []
    for reference, answer in zip(completions, answers, strict=True):
        length = min(len(reference.token_ids), len(answer.token_ids))
        equal = reference.token_ids[:length] == answer.token_ids[:length]
        agreed = length if equal.all() else int(equal.argmin())
        differences = np.abs(reference.logprobs[:agreed] - answer.logprobs[:agreed])
        tie = agreed < length and (
            abs(reference.logprobs[agreed] - answer.logprobs[agreed]) < tolerance
        )
        complete = agreed == len(reference.token_ids) == len(answer.token_ids)
        missing = 0 if complete or tie else 1
        rows.append((agreed, missing, float(differences.max(initial=0.0))))
    return _summarize(True, rows, tolerance)


@torch.inference_mode()
def next_logprobs(
    model: torch.nn.Module, prompt: Tensor, completion: Tensor, vocabulary: SpeechVocabulary
) -> Tensor:
    """Log-probabilities of the A allowed tokens at each of the L tokens of ``completion``.

    ``prompt`` has shape (P,), ``completion`` (L,). Returns float32 of (L, A).
    """
    ids = torch.cat([prompt, completion])[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    allowed = torch.from_numpy(allowed_at(vocabulary))
    here = allowed[torch.arange(len(completion)) % len(allowed)]
    logits = logits[:, torch.from_numpy(allowed_ids(vocabulary))].float()
    return logits.masked_fill(~here, -torch.inf).log_softmax(dim=1)


def _compare_row(
    logprobs: Tensor, drawn: Tensor, allowed: Tensor, expected: NDArray[np.float32]
) -> tuple[int, int, float]:
    """Number of tokens, tokens with another greedy choice, largest log-probability difference."""
    index = (drawn[:, None] == allowed).int().argmax(dim=1)
    chosen = logprobs.gather(1, index[:, None])[:, 0]
    best = logprobs[:, :-1].max(dim=1).values  # the end token was forbidden below min_tokens
    different = int((best - chosen > TOLERANCE).sum())
    return len(drawn), different, float((chosen - torch.from_numpy(expected)).abs().max())


def _summarize(
    prompts_equal: bool, rows: Sequence[tuple[int, int, float]], tolerance: float
) -> Agreement:
    return Agreement(
        prompts_equal=prompts_equal,
        tokens=sum(row[0] for row in rows),
        different=sum(row[1] for row in rows),
        largest_difference=max((row[2] for row in rows), default=0.0),
        tolerance=tolerance,
    )


def main(argv: list[str] | None = None) -> None:
    """Run the comparisons of the ``run.json`` in ``argv`` and write the result."""
    program = load_config(VerifyProgram, argv)
    with Run(program.run_dir) as run:
        found = agreements(program)
        run.finish({engine: agreement.model_dump() for engine, agreement in found.items()})


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


if __name__ == "__main__":
    main()
