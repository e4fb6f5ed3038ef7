"""Evaluation suites: fixed texts, in categories, that every model synthesizes.

A suite is a JSONL file with a :class:`SuiteText` on each line, of which ``id``, ``category`` and
``text`` are required. It may also be a ``meta.lst`` of Seed-TTS-eval: lines of ``name|prompt
text|prompt wav|text``, with an optional fifth field, a recording of the text. Audio paths are
relative to the file. Source of the lists: github.com/BytedanceSpeech/seed-tts-eval (Anastassiou et
al., Seed-TTS, 2024).

It may also be the ``prompt_wav.scp`` of a folder of CV3-Eval, which also has ``text`` and
``prompt_text``. Their lines are an id, a space, and the value. Audio paths are relative to the
checkout. Source: github.com/FunAudioLLM/CV3-Eval (Du et al., CosyVoice 3, 2025).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from pydantic import Field

from tts_assets.audio_models.wer import normalize_for_match
from tts_assets.audio_models.whisper import check_transcribes, spoken_language
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.audio import BrokenAudio, measure
from tts_assets.core.config import Config, ConfigError, digest_of
from tts_assets.evaluation.config import MAIN, EvaluationConfig

SUITE_FILE = "suite.jsonl"
AUDIO_FOLDER = "wavs"
CV3_SUFFIX, CV3_TEXTS = ".scp", ("text", "prompt_text")
META_LST_FIELDS = ("id", "prompt_text", "prompt_wav", "text", "reference_wav")
# Shorter prompts do not show the voice; longer ones leave too little context for the text.
PROMPT_SECONDS = (1.0, 30.0)


class SuiteText(Config):
    """One line of a suite.

    ``prompt_wav`` with its transcript ``prompt_text`` is the voice prompt. ``speaker`` is the
    speaker of the training corpora that the voice is compared with. ``reference_wav`` is a
    recording of the same text. ``voice_description``, ``emotion`` and ``style`` are as in training.
    """

    id: str
    category: str
    text: str
    language: str = Field("", description="empty: the suite's")
    prompt_text: str = ""
    prompt_wav: Path | None = None
    speaker: str = ""
    reference_wav: Path | None = None
    voice_description: str = ""
    emotion: str = ""
    style: str = ""

    @property
    def manner(self) -> str:
        """Emotion and style, joined by a comma; empty if the text has neither."""
        return ", ".join(filter(None, (self.emotion, self.style)))

    def audio(self) -> dict[str, Path]:
        """The audio files that the text names, by key."""
        named = {"prompt_wav": self.prompt_wav, "reference_wav": self.reference_wav}
        return {key: path for key, path in named.items() if path is not None}


def read_suite(path: Path, language: str = "en") -> list[SuiteText]:
    """Read and check a suite. Audio paths become absolute, languages explicit.

    Raises :class:`ConfigError` with the file and the line.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such suite; [evaluation] suite names a JSONL, .lst or .scp file"
        )
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    if path.suffix == CV3_SUFFIX:
        rows = read_cv3(path, language)
    elif path.suffix == ".lst":
        rows = read_meta_lst(path, lines, language)
    else:
        rows = _objects(path, lines)
    texts = [_checked(row, where, path.parent, language) for where, row in rows.items()]
    repeated = [name for name, count in Counter(text.id for text in texts).items() if count > 1]
    if repeated or not texts:
        problem = f"ids used twice: {repeated}" if repeated else "no texts"
        raise ConfigError(f"{path}: {problem}")
    return texts


def suite_languages(path: Path, language: str) -> set[str]:
    """The languages of a suite: ``language``, which holds for texts without one, and of the texts.

    Lines that are no texts, and a missing file, are left to :func:`read_suite`.
    """
    found = {spoken_language(language)}
    if path.suffix in (".lst", CV3_SUFFIX) or not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8-sig").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and row.get("language"):
            found.add(spoken_language(str(row["language"])))
    return found


def suites_for(
    evaluation: EvaluationConfig, recipe: str, spoken: Set[str], root: Path
) -> list[str]:
    """The suites that a recipe with speech in the languages ``spoken`` is evaluated on.

    The first one is the main suite of the recipe: that of ``[evaluation]``, or, if it is in other
    languages, the first one of ``[evaluation.suites]`` in a language of the recipe. With an empty
    ``spoken`` all suites fit. Raises :class:`ConfigError` if no suite does, or if one that lists
    the recipe does not.
    """
    of_suite = {
        name: suite_languages(root / config.suite, config.language)
        for name in (MAIN, *evaluation.suites)
        for config in [evaluation.for_suite(name)]
    }
    other = f"{recipe!r} is trained on speech in {', '.join(sorted(spoken))}"
    fitting = []
    for name in evaluation.suites_of(recipe):
        if not spoken or spoken & of_suite[name]:
            fitting.append(name)
        elif name != MAIN and recipe in evaluation.suites[name].recipes:
            raise ConfigError(
                f"evaluation.suites.{name} is in {', '.join(sorted(of_suite[name]))}, but "
                f"{other}: set its language, or remove the recipe from its recipes"
            )
    if not fitting:
        raise ConfigError(
            f"evaluation.language is {evaluation.language!r}, but {other}: set language, suite and "
            "whisper of [evaluation] for it, or add a suite in its language as "
            "[evaluation.suites.<name>]"
        )
    return fitting


def check_transcribed(evaluation: EvaluationConfig, root: Path) -> None:
    """Raise ValueError if an ASR model does not know a language of its suite."""
    for name in (MAIN, *evaluation.suites):
        config = evaluation.for_suite(name)
        key = "evaluation.whisper" if name == MAIN else f"evaluation.suites.{name}.whisper"
        for tag in sorted(suite_languages(root / config.suite, config.language)):
            check_transcribes(config.whisper, tag, key)


def read_meta_lst(path: Path, lines: Sequence[str], language: str) -> dict[str, dict[str, str]]:
    """Suite rows of a ``meta.lst``, by file and line number; the language is the category.

    Raises :class:`ConfigError` for a line without four or five fields.
    """
    rows = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        fields = [field.strip() for field in line.split("|")]
        if len(fields) not in (4, 5) or not all(fields[:4]):
            raise ConfigError(
                f"{where}: {len(fields)} fields; write name|prompt text|prompt wav|text, and "
                "optionally a recording of the text as the fifth field"
            )
        given = {n: value for n, value in zip(META_LST_FIELDS, fields, strict=False) if value}
        rows[where] = {"category": language, **given}
    return rows


def read_cv3(path: Path, language: str) -> dict[str, dict[str, str]]:
    """Suite rows of a ``prompt_wav.scp`` of CV3-Eval, by file and id; the language is the category.

    Raises :class:`ConfigError` for an id that one of the files lacks, or audio that does not exist.
    """
    prompts, texts, transcripts = map(_keyed, cv3_files(path))
    rows = {}
    for key, wav in prompts.items():
        where = f"{path}:{key}"
        if key not in texts or key not in transcripts:
            raise ConfigError(f"{where}: {' or '.join(CV3_TEXTS)} beside it has no line of this id")
        found = [folder / wav for folder in path.absolute().parents if (folder / wav).is_file()]
        if not found:
            raise ConfigError(f"{where}: there is no {wav} in a folder above it")
        given = {"prompt_wav": str(found[0]), "prompt_text": transcripts[key]}
        rows[where] = {"id": key, "category": language, "text": texts[key], **given}
    return rows


def cv3_files(path: Path) -> list[Path]:
    """A ``prompt_wav.scp`` and the files of its texts. Raises :class:`ConfigError` without them."""
    beside = [path.parent / name for name in CV3_TEXTS]
    if missing := [file.name for file in beside if not file.is_file()]:
        raise ConfigError(f"{path}: no {' and no '.join(missing)} beside it, as CV3-Eval has them")
    return [path, *beside]


def source_digest(path: Path) -> str:
    """The digest of a suite's lines."""
    if path.suffix != CV3_SUFFIX:
        return sha256_file(path)
    return digest_of([sha256_file(file) for file in cv3_files(path)])


def _keyed(path: Path) -> dict[str, str]:
    """Lines of an id, a space, and a value; lines without a value are left out."""
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    pairs = (line.strip().partition(" ") for line in lines)
    return {key: value.strip() for key, _, value in pairs if value}


def _objects(path: Path, lines: Sequence[str]) -> dict[str, dict[str, str]]:
    rows = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() and number == len(lines):
            continue
        try:
            rows[f"{path}:{number}"] = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{number}: not JSON ({error})") from None
    return rows


def _checked(row: Mapping[str, str], where: str, folder: Path, language: str) -> SuiteText:
    text = SuiteText.parse(row, where)
    changes: dict[str, object] = {"language": text.language or language}
    changes |= {key: (folder / path).resolve() for key, path in text.audio().items()}
    text = text.model_copy(update=changes)
    if not normalize_for_match(text.text, text.language):
        raise ConfigError(f"{where}: no words in {text.text!r}")
    if not text.id or Path(text.id).name != text.id:
        raise ConfigError(f"{where}: id {text.id!r} cannot name a file")
    if bool(text.prompt_wav) != bool(text.prompt_text.strip()):
        raise ConfigError(
            f"{where}: prompt_wav needs its transcript in prompt_text, and vice versa"
        )
    try:
        sizes = {key: measure(path) for key, path in text.audio().items()}
    except BrokenAudio as error:
        raise ConfigError(f"{where}: {error}") from None
    if "prompt_wav" in sizes:
        seconds = sizes["prompt_wav"].frames / sizes["prompt_wav"].rate
        if not PROMPT_SECONDS[0] <= seconds <= PROMPT_SECONDS[1]:
            raise ConfigError(
                f"{where}: the prompt has {seconds:.1f} s; use one of "
                f"{PROMPT_SECONDS[0]:g} to {PROMPT_SECONDS[1]:g} s"
            )
    return text


def audio_digests(texts: Iterable[SuiteText]) -> dict[str, str]:
    """The SHA-256 of every audio file of a suite, by ``<id>/<key>``."""
    return {
        f"{text.id}/{key}": sha256_file(path)
        for text in texts
        for key, path in text.audio().items()
    }


def known_of_suite(source: Path, language: str, texts: Sequence[SuiteText]) -> dict[str, Any]:
    """What determines a suite: the digests of its file and of its audio, and its language."""
    known: dict[str, Any] = {"source": source_digest(source), "language": language}
    audio = audio_digests(texts)
    return known | ({"audio": audio} if audio else {})


def write_suite(path: Path, texts: Sequence[SuiteText]) -> dict[str, Any]:
    """Write a suite, and copy its audio to ``wavs/`` beside it, named by digest.

    Returns the facts of the artifact: the number of texts, and of those in each category.
    """
    lines = []
    for text in texts:
        row = text.model_dump(mode="json", exclude_defaults=True)
        for key, source in text.audio().items():
            copy = Path(AUDIO_FOLDER) / (sha256_file(source)[:20] + source.suffix.lower())
            (path.parent / AUDIO_FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(source, path.parent / copy)
            row[key] = str(copy)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    path.write_text("".join(lines))
    return {"texts": len(texts), "categories": dict(Counter(text.category for text in texts))}


def known_texts(
    suite: Sequence[SuiteText], trained_on: Iterable[str], language: str = "en"
) -> list[SuiteText]:
    """The texts of the suite that equal one of ``trained_on`` after normalization."""
    known = {normalize_for_match(text, language) for text in trained_on}
    return [text for text in suite if normalize_for_match(text.text, language) in known]
