"""How a published SpeechLM reads texts that it has not seen: WER, DNSMOS and speaker similarity.

    python benchmarks/base_voice.py storage/sft/reader_en/all/current

Each text of the suites is synthesized once for each seed. The script prints a row of a Markdown
table for each category: the WER by Whisper of each seed, and the means of DNSMOS P.808 and of the
similarity to the recordings in ``--recordings`` (Resemblyzer).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from base_model import SAMPLING, synthesize
from numpy.typing import NDArray

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.speaker_similarity import SpeakerEncoder
from tts_assets.audio_models.transcription import PACKAGED, Transcriber
from tts_assets.audio_models.wer import match
from tts_assets.codec.model import Codec
from tts_assets.core.audio import read_clip
from tts_assets.evaluation.suite import read_suite
from tts_assets.speechlm.model import SpeechLM

CODEC = Path("examples/codecs/announcer-16khz")
SUITES = [Path("examples/suites/everyday.jsonl"), Path("examples/suites/announcer.jsonl")]
REFERENCES = 30  # recordings whose mean embedding is that of the speaker
SHORTEST_SECONDS = 2.0  # of a recording whose speaker is measured


def speaker_of(folder: Path, encoder: SpeakerEncoder) -> NDArray[np.float32]:
    """The mean embedding (256,) of the first recordings below ``folder`` that are long enough."""
    found: list[NDArray[np.float32]] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".wav", ".flac", ".g722")):
        clip = read_clip(path)
        if len(clip.wave) < SHORTEST_SECONDS * clip.rate:
            continue
        embedding = encoder.embed(clip.wave, clip.rate)
        found += [] if embedding is None else [np.asarray(embedding)]
        if len(found) == REFERENCES:
            break
    mean = np.mean(found, axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a published checkpoint, or a serving model")
    parser.add_argument("--codec", type=Path, default=CODEC)
    parser.add_argument("--description", default="", help="voice description of the syntheses")
    parser.add_argument("--suites", type=Path, nargs="+", default=SUITES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--whisper", default=PACKAGED)
    parser.add_argument("--recordings", type=Path, help="of the speaker, to measure similarity")
    options = parser.parse_args()

    codec = Codec.load(options.codec)
    lm = SpeechLM.load(options.model, codec.codebook_size)
    lm.model.eval()
    sampling = SAMPLING.model_copy(update={"temperature": options.temperature})
    transcriber = Transcriber(options.whisper, batch_size=1, threads=1)
    dnsmos, encoder = DnsmosScorer(), SpeakerEncoder()
    speaker = speaker_of(options.recordings, encoder) if options.recordings else None
    rate = codec.sample_rate
    print("| suite | category | words | WER of each seed | DNSMOS P.808 | speaker similarity |")
    print("|---|---|---|---|---|---|")
    for suite in options.suites:
        rows = read_suite(suite, "en")
        texts = [row.text for row in rows]
        waves = [
            synthesize(
                *(lm, codec, texts, options.description), first_seed=1000 * seed, sampling=sampling
            )
            for seed in options.seeds
        ]
        said = [transcriber([(wave, rate) for wave in each]) for each in waves]
        for category in dict.fromkeys(row.category for row in rows):
            own = [number for number, row in enumerate(rows) if row.category == category]
            errors = [[match(rows[i].text, each[i]) for i in own] for each in said]
            words = sum(one.words for one in errors[0])
            wer = [sum(one.word_errors for one in each) / words for each in errors]
            clips = [each[i] for each in waves for i in own]
            scores = [mos.p808 for wave in clips if (mos := dnsmos(wave, rate)) is not None]
            near = []
            if speaker is not None:
                found = encoder.embed_all([(wave, rate) for wave in clips])
                near = [float(np.dot(one, speaker)) for one in found if one is not None]
            print(
                f"| {suite.stem} | {category} | {words} | {', '.join(f'{w:.1%}' for w in wer)} "
                f"| {np.mean(scores):.2f} | {f'{np.mean(near):.2f}' if near else ''} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
