#!/usr/bin/env python3
"""Make a corpus folder from the Asterisk prompts, as Debian packages them.

    apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-g722
    for deb in asterisk-core-sounds-en*.deb; do dpkg-deb -x "$deb" tree; done
    python3 scripts/make_asterisk_corpus.py tree examples/corpora/asterisk_en

The audio is copied byte for byte (G.722, 16 kHz). ``samples.jsonl`` has a line a prompt in the
sample schema, with paths relative to it. The same works for the other languages of the family:
``--language es`` reads asterisk-core-sounds-es.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

G722_BYTES_A_SECOND = 8000
SAMPLE_RATE = 16_000
VOICES = {"en": ("en_US_f_Allison", "allison_smith"), "es": ("es_MX_f_Allison", "allison_smith")}
LICENCE = "CC-BY-SA-3.0"
# Not speech, or not what the text says.
NOT_SPEECH = re.compile(r"^(silence/|beep|confbridge-(join|leave)$|.*scending|tt-monkeys$)")
NOTES = re.compile(r"\[[^\]]*\]|\([^)]*\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path, help="where the packages were unpacked")
    parser.add_argument("corpus", type=Path, help="the folder to make")
    parser.add_argument("--language", choices=sorted(VOICES), default="en")
    arguments = parser.parse_args()
    make_corpus(arguments.tree, arguments.corpus, arguments.language)


def make_corpus(tree: Path, corpus: Path, language: str) -> None:
    folder, speaker = VOICES[language]
    sounds = tree / "usr/share/asterisk/sounds" / folder
    package = f"asterisk-core-sounds-{language}"
    documents = tree / "usr/share/doc" / package
    samples = []
    for key, text in prompts(documents / f"core-sounds-{language}.txt.gz"):
        source = sounds / f"{key}.g722"
        if NOT_SPEECH.match(key) or not text or not source.is_file():
            continue
        target = corpus / "audio" / f"{key}.g722"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        samples.append(
            {
                "wav_path": str(target.relative_to(corpus)),
                "transcript": text,
                "language": language,
                "duration": round(source.stat().st_size / G722_BYTES_A_SECOND, 3),
                "sample_rate": SAMPLE_RATE,
                "speaker_id": speaker,
                "original_data": {"key": key, "package": f"{package}-g722", "licence": LICENCE},
            }
        )
    samples.sort(key=lambda sample: sample["wav_path"])
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    (corpus / "samples.jsonl").write_text("".join(lines))
    shutil.copyfile(documents / "copyright", corpus / "LICENSE")
    minutes = sum(sample["duration"] for sample in samples) / 60
    print(f"{corpus}: {len(samples)} prompts, {minutes:.1f} minutes")


def prompts(path: Path) -> Iterator[tuple[str, str]]:
    """``key: text`` lines without comments; notes in brackets are not spoken."""
    with gzip.open(path, "rt", encoding="utf-8-sig") as lines:
        for line in lines:
            key, colon, text = line.partition(":")
            if colon and not line.startswith(";"):
                yield key.strip(), NOTES.sub("", text).strip()


if __name__ == "__main__":
    main()
