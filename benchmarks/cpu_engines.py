"""llama.cpp beside the other engines on a CPU: speed, memory, greedy tokens and WER.

    python benchmarks/cpu_engines.py storage/serving/announcer/all/current   # a trained voice
    python benchmarks/cpu_engines.py --hidden 1024 --layers 24               # random weights

20 texts of the suite are completed one after another, as by ``tts-assets say``. Each engine runs in
a process of its own with one thread. Seconds are CPU seconds of the process and its children, which
other programs do not change. Memory is the largest resident set after the model is open. For a
trained voice, all texts of the suite are synthesized with its sampling and transcribed by Whisper.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tests.support.speaking import publish_all
from tts_assets.audio_models.transcription import PACKAGED, Transcriber
from tts_assets.audio_models.wer import match
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.evaluation.suite import read_suite
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.serving.verify import greedy_sampling
from tts_assets.speechlm.config import LlamaSize

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "examples/suites/announcer.jsonl"
CODEC = ROOT / "examples/codecs/announcer-16khz"
CORPUS = ROOT / "examples/corpora/asterisk_en"
CLIPS = 16  # of the corpus, for the voices of random weights
TEXTS, TOKENS = 20, 100
ENGINES: dict[str, dict[str, Any]] = {
    "transformers": {"backend": "transformers"},
    "llama.cpp f16": {"backend": "llama.cpp", "weights": "f16"},
    "llama.cpp q8_0": {"backend": "llama.cpp", "weights": "q8_0"},
    "vllm": {"backend": "vllm"},
}


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    times = os.times()
    return sum(times[:4])


def peak() -> float:
    """The largest resident set of this process, or of its largest child, in MB."""
    own, children = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return max(own, children) / 1024


def measure(name: str, model: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Figures of one engine in this process; the WER of each of ``seeds``."""
    torch.set_num_threads(1)
    rows = read_suite(SUITE, "en")
    texts = [row.text for row in rows]
    before = cpu_seconds()
    synthesizer = Synthesizer.open(model, **ENGINES[name])
    opened = cpu_seconds()
    sampling = greedy_sampling(TOKENS)
    requests = [
        synthesizer.piece_requests(SynthesisLine(text), sampling)[0].request
        for text in texts[:TEXTS]
    ]
    started = cpu_seconds()
    done = [synthesizer.engine.complete([one], sampling, None)[0] for one in requests]
    ended = cpu_seconds()
    memory = peak()
    wer = [word_error_rate(synthesizer, texts, seed) for seed in seeds]
    return {
        "open": opened - before,
        "tokens": sum(len(one.token_ids) for one in done) / (ended - started),
        "memory": memory,
        "ids": [one.token_ids.tolist() for one in done],
        "wer": wer,
        "parameters": sum(file.stat().st_size for file in model.glob("*.safetensors")) / 4e6,
    }


def word_error_rate(synthesizer: Synthesizer, texts: Sequence[str], seed: int) -> float:
    """The WER of all texts by Whisper, as they are synthesized with the sampling of the model."""
    transcriber = Transcriber(PACKAGED, batch_size=1, threads=1)
    lines = [SynthesisLine(text, seed=1000 * seed + n) for n, text in enumerate(texts)]
    waves = [(one.wave, synthesizer.sample_rate) for one in synthesizer.synthesize(lines)]
    errors = [match(*pair) for pair in zip(texts, transcriber(waves), strict=True)]
    return sum(one.word_errors for one in errors) / sum(one.words for one in errors)


@contextmanager
def model_of(options: argparse.Namespace) -> Iterator[Path]:
    """The serving model of the command line, or one of random weights."""
    if options.model is not None:
        yield options.model
        return
    size = LlamaSize(
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        layers=options.layers,
        heads=options.hidden // 64,
        kv_heads=options.hidden // 64,
    )
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips"
        clips.mkdir()
        lines = islice((CORPUS / "samples.jsonl").open(), CLIPS)
        (clips / "samples.jsonl").write_text("".join(lines))
        (clips / "audio").symlink_to(CORPUS / "audio")
        store = ArtifactStore(Path(folder) / "storage")
        yield publish_all(store, clips, CODEC, size).serving.path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help="a serving model; none: random weights")
    parser.add_argument("--hidden", type=int, default=512, help="width of random weights")
    parser.add_argument("--layers", type=int, default=8, help="layers of random weights")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES)[:3])
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="syntheses for the WER")
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.model, options.seeds)))
        return
    print("| engine | M parameters | open, s | tokens per s | MB | equal greedy tokens | WER |")
    print("|---|---|---|---|---|---|---|")
    expected: list[list[int]] = []
    with model_of(options) as model:
        for name in options.engines:
            found = run(name, model, options.seeds)
            expected = expected or found["ids"]
            print(row(name, found, expected), flush=True)


def run(name: str, model: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """:func:`measure` in another process."""
    command = [sys.executable, __file__, str(model), "--one", name, "--seeds", *map(str, seeds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, found: dict[str, Any], expected: list[list[int]]) -> str:
    """A row of the table. Tokens are compared up to the first difference of each text."""
    equal = 0
    for own, other in zip(found["ids"], expected, strict=True):
        pairs = zip(own, other, strict=True)
        equal += next((n for n, (a, b) in enumerate(pairs) if a != b), len(own))
    wer = ", ".join(f"{one:.1%}" for one in found["wer"])
    return (
        f"| {name} | {found['parameters']:.1f} | {found['open']:.1f} | {found['tokens']:.0f} | "
        f"{found['memory']:.0f} | {equal} of {TEXTS * TOKENS} | {wer} |"
    )


if __name__ == "__main__":
    main()
