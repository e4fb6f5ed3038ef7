#!/usr/bin/env python3
"""Make a corpus folder from the Asterisk prompts, as Debian packages them.

    apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-g722
    python3 scripts/make_asterisk_corpus.py . examples/corpora/asterisk_en

The first argument is a folder with the two packages, or one into which they were unpacked. The
audio is copied byte for byte (G.722, 16 kHz). ``samples.jsonl`` has a line a prompt in the sample
schema, with paths relative to it. ``--language es``, ``it`` or ``ru`` reads the other languages
of the family (asterisk-core-sounds-es …).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

G722_BYTES_A_SECOND = 8000
SAMPLE_RATE = 16_000
# Not speech, or not what the text says.
NOT_SPEECH = re.compile(r"^(silence/|beep|confbridge-(join|leave)$|.*scending|tt-monkeys$)")
REMARK = re.compile(r"\([^)]*\)|\[\W*\]")  # "(simple tone sound plays)", "dash [-]"
DOUBTFUL = re.compile(r"\[|<")  # words that may be spoken or not: "no [quello] valido"


class Voice(NamedTuple):
    folder: str
    speaker: str
    licence: str


VOICES = {
    "en": Voice("en_US_f_Allison", "allison_smith", "CC-BY-SA-3.0"),
    "es": Voice("es_MX_f_Allison", "allison_smith", "CC-BY-SA-3.0"),
    "it": Voice("it_IT_m_Carlo", "carlo_flora", "CC-BY-3.0"),
    "ru": Voice("ru_RU_f_IvrvoiceRU", "ivrvoice_ru", "CC-BY-3.0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a folder with the packages, or unpacked ones")
    parser.add_argument("corpus", type=Path, help="the folder to make")
    parser.add_argument("--language", choices=sorted(VOICES), default="en")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tree = unpacked(arguments.source, arguments.language, Path(scratch))
        make_corpus(tree, arguments.corpus, arguments.language)


def unpacked(source: Path, language: str, scratch: Path) -> Path:
    """The folder itself if packages were unpacked there, else ``scratch`` with them unpacked."""
    if (source / "usr").is_dir():
        return source
    for name in (f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-g722"):
        packages = sorted(source.glob(f"{name}_*.deb"))
        if not packages:
            raise SystemExit(f"no {name}_*.deb in {source}; run: apt-get download {name}")
        subprocess.run(["dpkg-deb", "-x", str(packages[-1]), str(scratch)], check=True)
    return scratch


def make_corpus(tree: Path, corpus: Path, language: str) -> None:
    """Copy the prompts that are speech with a sure text; write ``samples.jsonl`` and LICENSE."""
    package = f"asterisk-core-sounds-{language}"
    sounds = tree / "usr/share/asterisk/sounds" / VOICES[language].folder
    documents = tree / "usr/share/doc" / package
    samples = []
    for key, text in prompts(documents / f"core-sounds-{language}.txt.gz"):
        source = sounds / f"{key}.g722"
        if NOT_SPEECH.match(key) or not text or DOUBTFUL.search(text) or not source.is_file():
            continue
        target = corpus / "audio" / f"{key}.g722"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        samples.append(sample(key, text, source, language, f"{package}-g722"))
    samples.sort(key=lambda sample: sample["wav_path"])
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    (corpus / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.copyfile(documents / "copyright", corpus / "LICENSE")
    minutes = sum(sample["duration"] for sample in samples) / 60
    print(f"{corpus}: {len(samples)} prompts, {minutes:.1f} minutes")


def sample(key: str, text: str, source: Path, language: str, package: str) -> dict:
    voice = VOICES[language]
    return {
        "wav_path": f"audio/{key}.g722",
        "transcript": text,
        "language": language,
        "duration": round(source.stat().st_size / G722_BYTES_A_SECOND, 3),
        "sample_rate": SAMPLE_RATE,
        "speaker_id": voice.speaker,
        "original_data": {"key": key, "package": package, "licence": voice.licence},
    }


def prompts(path: Path) -> Iterator[tuple[str, str]]:
    """Keys and texts of ``key: text`` lines, without comments and remarks."""
    with gzip.open(path, "rt", encoding="utf-8-sig") as lines:
        for line in lines:
            key, colon, text = line.partition(":")
            if colon and not line.startswith(";"):
                yield key.strip(), REMARK.sub("", text).strip()


if __name__ == "__main__":
    main()
