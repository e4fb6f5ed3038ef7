"""A Hugging Face repository folder of a serving model, which plain transformers loads.

======================  ==========================================================================
``model.safetensors``   the weights, with tokenizer and ``config.json``
``generation_config``   sampling of the serving model; only speech tokens and the end can be drawn
``codec/``              the codec; ``AutoModel`` decodes the codes of a published one
``decoder/``            of a codec of this project: its decoder as an X-Codec-2, which decodes only
``README.md``           model card: report, languages, licence, consent, usage
``DATA.md``             data card: corpora, hours, licences, consent of each
``example.py``          ten lines from text to a wave file, without this project
``samples/``            syntheses of the report
``serving.json``        for ``tts_assets.serving``, which reads the folder, too
======================  ==========================================================================

A folder is written only if every speaker agreed to the publication of the weights
(``consent.publication``), and if the report is one of this model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from tts_assets.codec.backends import CONFIG_FILE, WEIGHTS_FILE, is_compact
from tts_assets.core.artifacts import (
    CodeArrays,
    CodecCheckpoint,
    Handle,
    InputRef,
    Report,
    ServingModel,
    open_artifact,
)
from tts_assets.core.artifacts.store import store_of
from tts_assets.core.config import ConfigError
from tts_assets.core.metadata import literal, table_row
from tts_assets.corpora.config import Consent, ConsentError, VoiceConsent
from tts_assets.evaluation.results import SampleResult, by_category, read_samples
from tts_assets.provenance import check_model, check_use
from tts_assets.serving.config import SERVING_FILE, ServingCard
from tts_assets.serving.served_model import open_prompts, verify_model
from tts_assets.serving.verify import licences, yaml_text
from tts_assets.speechlm.generate import allowed_ids
from tts_assets.speechlm.prompts import PromptFormat

CODEC_FOLDER, DECODER_FOLDER, SAMPLES_FOLDER = "codec", "decoder", "samples"
EXAMPLE_FILE, DATA_FILE, CARD_FILE = "example.py", "DATA.md", "README.md"
OWN_FILES = (SERVING_FILE, CARD_FILE, "promotion.json")  # of the model; written anew, or left out
DECODABLE = ("xcodec2", "neucodec")  # their ``decode`` takes codes (clips, 1, codes)
DECODER_PARTS = ("acoustic_decoder.", "quantizer.project_out.")
EXAMPLE_TEXT = "good morning"
EXAMPLE = """\
import re, soundfile, sys, torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
folder, text = (sys.argv[1:] or ["."])[0], {text!r}  # {units}
tokenizer = AutoTokenizer.from_pretrained(folder)
lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
codec = AutoModel.from_pretrained(folder, subfolder={codec!r}, dtype=torch.float32)
prompt = tokenizer({before!r} + text + {after!r}, return_tensors="pt", add_special_tokens={added})
output = lm.generate(**prompt)[0, prompt["input_ids"].shape[1]:]
codes = torch.tensor([int(code) for code in re.findall({speech!r}, tokenizer.decode(output))])
soundfile.write("speech.wav", codec.decode(codes[None, None])[0].detach().flatten(), {rate})
"""


@dataclass(frozen=True)
class Exported:
    """What a repository is made of.

    ``arrays`` are by corpus; ``consents`` those that the project file has today; ``base`` is the
    name of the base model on the hub, empty for a model from scratch.
    """

    model: ServingModel
    report: Report
    arrays: Mapping[str, CodeArrays]
    consents: Mapping[str, VoiceConsent | None]
    base: str = ""


def gather(
    report: Report, content: str, consents: Mapping[str, VoiceConsent | None], base: str = ""
) -> Exported:
    """The parts of a repository; ``content`` is the digest of the serving model to export.

    Raises :class:`ConfigError` if the report is of another model, and :class:`ArtifactError` if the
    model or its arrays were deleted.
    """
    store, recipe = store_of(report), report.facts.recipe
    evaluated = report.manifest.inputs.get("serving")
    if evaluated is None or evaluated.content != content:
        raise ConfigError(
            f"the report of {recipe} is of another model: tts-assets run --select "
            f"'key:\"report/{recipe}\"'"
        )

    def opened(reference: InputRef) -> Handle:
        folder = store.folder(reference.asset, reference.partition)
        return open_artifact(folder / reference.fingerprint)

    model = opened(evaluated)
    assert isinstance(model, ServingModel)
    found = [opened(one) for one in model.manifest.inputs.values() if one.asset == "code_arrays"]
    arrays = {one.partition: one for one in found if isinstance(one, CodeArrays)}
    return Exported(model, report, arrays, consents, base)


def write_repository(source: Exported, target: Path) -> None:
    """Write the folder ``target``, which must be new or empty.

    Raises :class:`ConsentError` without a consent that allows it, and :class:`ConfigError` for a
    model that plain transformers cannot decode.
    """
    card = verify_model(source.model.path)
    refused = f"{card.recipe} is not exported"
    check_model(source.model.path, card.consents, refused)
    today = check_use(source.consents, refused, store_of(source.model))
    check_publication(card.consents | today, refused)
    codec = CodecCheckpoint.open((source.model.path / card.codec_path).resolve())
    compact = check_codec(card, codec)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} has files: choose a new folder")
    for name in source.model.manifest.files:
        if name not in OWN_FILES:
            copy(source.model.path / name, target / name)
    shutil.copytree(codec.path, target / CODEC_FOLDER)
    if compact:
        write_decoder(codec.path, target / DECODER_FOLDER)
    prompts = open_prompts(source.model.path, card)
    write_generation_config(target, card, prompts)
    own = card.model_copy(update={"codec_path": Path(CODEC_FOLDER)})
    (target / SERVING_FILE).write_text(own.to_json())
    program = example(card, prompts, DECODER_FOLDER if compact else CODEC_FOLDER)
    (target / EXAMPLE_FILE).write_text(program)
    samples = copy_samples(source.report, target)
    (target / DATA_FILE).write_text(data_card(source))
    (target / CARD_FILE).write_text(model_card(source, card, samples, program))


def check_publication(consents: Mapping[str, VoiceConsent], refused: str) -> None:
    """Raise :class:`ConsentError` unless every speaker agreed to the publication of weights.

    The message begins with ``refused``.
    """
    for corpus, consent in consents.items():
        if isinstance(consent, Consent) and not consent.publication:
            raise ConsentError(
                f"{refused}: the consent of {consent.who} (corpora.{corpus}) does not name the "
                "publication of the model. If the person agreed to it, add publication = true"
            )


def check_codec(card: ServingCard, codec: CodecCheckpoint) -> bool:
    """Whether the codec is one of this project, of which transformers knows the decoder.

    Raises :class:`ConfigError` if transformers alone cannot decode the codes.
    """
    if card.decoder_path is not None:
        raise ConfigError(
            f"{card.recipe} has a separate decoder, which transformers does not know: remove "
            "[codec.decoder], and materialize the serving model again"
        )
    if is_compact(codec.path):
        return True
    config = codec.path / CONFIG_FILE
    kind = json.loads(config.read_text()).get("model_type") if config.is_file() else None
    if kind not in DECODABLE:
        raise ConfigError(
            f"the codec of {card.recipe} is {kind or 'SNAC'!r}; exported models have one of "
            f"{', '.join(DECODABLE)}"
        )
    return False


def write_decoder(codec: Path, target: Path) -> None:
    """Write the decoder of a codec of this project as an ``Xcodec2Model``, in float32.

    The encoder is left out: with the published class it would give other codes.
    """
    target.mkdir()
    config = json.loads((codec / CONFIG_FILE).read_text())
    config |= {"model_type": "xcodec2", "architectures": ["Xcodec2Model"], "dtype": "float32"}
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    weights = load_file(codec / WEIGHTS_FILE)
    kept = {name: one.float() for name, one in weights.items() if name.startswith(DECODER_PARTS)}
    save_file(kept, target / WEIGHTS_FILE, {"format": "pt"})


def copy(source: Path, target: Path) -> None:
    """Copy one file, and make its folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write_generation_config(target: Path, card: ServingCard, prompts: PromptFormat) -> None:
    """Add the shortest speech and the tokens that are never drawn to the sampling defaults.

    The sampler of this project draws speech tokens and the end of speech only
    (``speechlm/generate.py``); ``suppress_tokens`` gives transformers the same.
    """
    vocabulary = prompts.vocabulary
    others = np.setdiff1d(np.arange(vocabulary.size), allowed_ids(vocabulary))
    config = GenerationConfig.from_pretrained(target)
    config.update(min_new_tokens=card.sampling.min_tokens, suppress_tokens=others.tolist())
    config.save_pretrained(target)


def example(card: ServingCard, prompts: PromptFormat, codec: str) -> str:
    """The program of ten lines; ``codec`` is the folder of the model that decodes."""
    [units] = prompts.units([EXAMPLE_TEXT])
    before, _, after = prompts.prompt_string("\0").partition("\0")
    form = prompts.vocabulary.format
    start, _, end = form.speech.partition("{}")
    return EXAMPLE.format(
        text=units,
        units="as the model reads it: words" if units == EXAMPLE_TEXT else "phonemes of espeak-ng",
        before=before,
        after=after,
        added=prompts.adds_prefix,
        speech=f"{re.escape(start)}(\\d+){re.escape(end)}",
        rate=card.sample_rate,
        codec=codec,
    )


def copy_samples(report: Report, target: Path) -> list[tuple[SampleResult, str]]:
    """Copy the first synthesis of each category; returns them with their paths in ``target``."""
    found = []
    for samples in by_category(read_samples(report.path)).values():
        spoken = next((one for one in samples if one.audio and one.temperature is None), None)
        if spoken is not None and spoken.audio is not None:
            name = f"{SAMPLES_FOLDER}/{spoken.anchor}{Path(spoken.audio).suffix}"
            copy(report.path / spoken.audio, target / name)
            found.append((spoken, name))
    return found


def model_card(
    source: Exported, card: ServingCard, samples: list[tuple[SampleResult, str]], program: str
) -> str:
    """The text of ``README.md``."""
    facts = source.report.facts
    own = ", ".join(sorted({x for found in licences(source.arrays).values() for x in found}))
    metrics = {"WER": facts.wer, "DNSMOS P.808": facts.dnsmos_p808}
    metrics |= {"speaker similarity": facts.speaker_similarity}
    measured = {name: value for name, value in metrics.items() if value is not None}
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-to-speech",
        "license: other",
        f"license_name: {yaml_text(own or 'unknown')}",
        f"language: {json.dumps(card.languages)}",
        *([f"base_model: {yaml_text(source.base)}"] if source.base else []),
        "tags: [text-to-speech, speech-synthesis, synthetic-voice]",
        "---",
        "",
        f"# {literal(card.recipe)}",
        "",
        f"A speech language model of {source.model.facts.parameters / 1e6:.1f} M parameters: text "
        f"in, {card.token_rate:g} codec tokens a second out, {card.sample_rate} Hz.",
        f"Languages: {literal(', '.join(card.languages) or 'unknown')}. "
        f"Licence of the recordings: {literal(own or 'unknown')}. {DATA_FILE} describes them.",
        "",
        "**The speech is synthetic.** Say so where people hear it, and use the voice only for what "
        "the speakers agreed to:",
        "",
        *consent_lines(source.consents),
        "",
        "## Use",
        "",
        "transformers alone, without code of this repository:",
        "",
        f"```python\n{program.rstrip()}\n```",
        "",
        "Write numbers and dates in words. With `tts-assets`, `tts-assets say TEXT --model FOLDER` "
        "normalizes texts, splits long ones, and marks the files as synthetic.",
        "",
        "## Measured",
        "",
        f"{facts.texts} texts of the suite {literal(facts.suite)}, transcribed by Whisper:",
        "",
        "| metric | value |",
        "|---|---|",
        *(table_row([name, shown(name, value)]) for name, value in measured.items()),
        *(table_row([f"WER, {name}", f"{wer:.1%}"]) for name, wer in facts.wer_by_category.items()),
        "",
        "## Samples",
        "",
        *(f"- [{literal(sample.text)}]({path})" for sample, path in samples),
        "",
        f"Made from {lineage(source.model)}.",
    ]
    return "\n".join(lines) + "\n"


def shown(name: str, value: float) -> str:
    """A figure as text; the WER in percent."""
    return f"{value:.1%}" if name == "WER" else f"{value:.2f}"


def lineage(model: Handle) -> str:
    """The inputs of the serving model with the first digits of their content."""
    inputs = model.manifest.inputs.values()
    return ", ".join(f"{one.asset} {one.content[:12]}" for one in inputs)


def consent_lines(consents: Mapping[str, VoiceConsent | None]) -> list[str]:
    """One line for each corpus: who agreed to what."""
    return [
        f"- {literal(name)}: "
        f"{literal(one.in_words()) if isinstance(one, Consent) else 'a synthetic voice'}"
        for name, one in sorted(consents.items())
    ]


def data_card(source: Exported) -> str:
    """The text of ``DATA.md``: what the model was trained on."""
    of_corpora = licences(source.arrays)
    rows = [
        table_row(
            [
                name,
                f"{array.facts.hours:.2f}",
                str(array.facts.train_samples),
                str(array.facts.val_samples),
                str(array.facts.speakers),
                ", ".join(of_corpora[name]),
            ]
        )
        for name, array in sorted(source.arrays.items())
    ]
    lines = [
        "# Data",
        "",
        "| corpus | hours | training utterances | validation utterances | speakers | licence |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "The recordings are not part of this repository. The model imitates these voices, with the "
        "consent of:",
        "",
        *consent_lines(source.consents),
    ]
    return "\n".join(lines) + "\n"
