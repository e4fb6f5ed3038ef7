"""How well the checkpoints of an SFT run read: text gain, and WER of unseen texts.

    TTS_PROFILE=base tts-assets run --select 'key:"sft/reader_en"'      (or any other recipe)
    python benchmarks/base_model.py storage/.work/sft.reader_en.all.* --corpus joe

The run may still be going: the script reads ``run.json`` and the weights ``best-*.safetensors`` in
``checkpoints/``. For each of them it prints a row of a Markdown table:

- the loss of held-out codes, in nats, after their own text and after that of another utterance. The
  difference is the text gain: a model that ignores its text has none;
- the WER of syntheses of the suite's texts, each with one seed, by Whisper tiny.en.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tts_assets.audio_models.transcription import Transcriber
from tts_assets.audio_models.wer import match
from tts_assets.codec.model import Codec
from tts_assets.core.audio import Wave
from tts_assets.core.program import load_config
from tts_assets.evaluation.suite import read_suite
from tts_assets.normalization.front_end import normalize
from tts_assets.sft.config import SftProgram
from tts_assets.sft.epochs import Encoded, validation_samples
from tts_assets.sft.mixture import open_dataset
from tts_assets.sft.model import SpeechLoss, open_base, prepare
from tts_assets.sft.packing import pack
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request, generate
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat

SAMPLES = 64  # held-out utterances
SAMPLING = SamplingConfig(temperature=0.7, top_k=50, min_tokens=20, max_tokens=600)


def held_out(program: SftProgram, prompts: PromptFormat, corpus: str) -> list[Encoded]:
    """Utterances of the validation split of ``corpus``."""
    dataset = open_dataset(program, prompts, "val")
    source = dataset.sources.index(corpus)
    chosen = validation_samples(dataset, 4 * SAMPLES, seed=0)
    own = [sample for sample in chosen if dataset.source(sample.items[0]) == source]
    return [dataset.encode(sample) for sample in own[:SAMPLES]]


def after_text_of(sample: Encoded, other: Encoded) -> Encoded:
    """The codes of ``sample`` after the prompt of ``other``."""
    inputs = np.concatenate([other.inputs[: other.first], sample.inputs[sample.first :]])
    targets = np.concatenate([other.targets[: other.first], sample.targets[sample.first :]])
    return Encoded(inputs, targets, other.first)


@torch.no_grad()
def mean_loss(loss: SpeechLoss, samples: list[Encoded]) -> float:
    """The mean over all targets, in nats."""
    sums = [
        (loss(pack([sample]))[0].item(), len(sample.inputs) - sample.first) for sample in samples
    ]
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


def synthesize(
    lm: SpeechLM,
    codec: Codec,
    texts: list[str],
    description: str,
    *,
    first_seed: int = 1,
    sampling: SamplingConfig = SAMPLING,
) -> list[Wave]:
    """One waveform (samples,) for each text, silence where the model says nothing.

    The seeds count from ``first_seed``.
    """
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    requests = [
        Request(prompts.inference(normalize(text, "en"), voice_description=description), seed)
        for seed, text in enumerate(texts, start=first_seed)
    ]
    completions = generate(lm, requests, sampling)
    silence = np.zeros(codec.sample_rate, dtype=np.float32)
    return [codec.decode([one.codes])[0] if len(one.codes) else silence for one in completions]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("--corpus", required=True, help="of the held-out utterances")
    parser.add_argument("--description", default="", help="voice description of the syntheses")
    parser.add_argument("--codec", type=Path, default=Path("examples/codecs/announcer-16khz"))
    parser.add_argument("--suite", type=Path, default=Path("examples/suites/everyday.jsonl"))
    parser.add_argument("--newest", action="store_true", help="the newest weights only")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as aside:  # the run is not touched
        config = Path(aside) / "run.json"
        config.write_bytes((options.run / "run.json").read_bytes())
        program = load_config(SftProgram, [str(config)])
    lm = open_base(program)
    prepare(lm.model, dropout=0.0)
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    loss = SpeechLoss(lm.model, bf16=False).eval()
    samples = held_out(program, prompts, options.corpus)
    others = samples[1:] + samples[:1]
    crossed = [after_text_of(one, two) for one, two in zip(samples, others, strict=True)]
    texts = [text.text for text in read_suite(options.suite, "en")]
    codec, transcriber = Codec.load(options.codec), Transcriber(batch_size=1, threads=1)

    print("| weights | own text | another text | text gain | WER | words |")
    print("|---|---|---|---|---|---|")
    files = sorted((options.run / "checkpoints").glob("best-*.safetensors"))
    for file in files[-1:] if options.newest else files:
        lm.model.load_state_dict(load_file(file), strict=False)
        lm.model.tie_weights()
        own, other = mean_loss(loss, samples), mean_loss(loss, crossed)
        lm.model.set_attn_implementation("sdpa")  # generation has a cache and a mask
        waves = synthesize(lm, codec, texts, options.description)
        prepare(lm.model, dropout=0.0)
        transcripts = transcriber([(wave, codec.sample_rate) for wave in waves])
        found = [match(text, said) for text, said in zip(texts, transcripts, strict=True)]
        wer = sum(one.word_errors for one in found) / sum(one.words for one in found)
        print(
            f"| {file.stem} | {own:.2f} | {other:.2f} | {other - own:.2f} | {wer:.1%} | "
            f"{sum(one.words for one in found)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
