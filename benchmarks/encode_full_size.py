"""The encoding speed of a full-size X-Codec-2, and the time of each of its parts.

    python benchmarks/encode_full_size.py --device cuda --precision bf16

The model has the default sizes of `transformers`: 629 million parameters, with w2v-BERT 2.0 as the
semantic encoder. Its weights are random, which does not change the computation. Clips of the demo
corpus, decoded in advance, are encoded in masked batches by length. The fastest of several rounds
gives the speed in seconds of audio per second. One more round synchronizes after every part, which
gives the fraction of time of each part.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from encode import speech
from torch import nn
from transformers import Xcodec2Config, Xcodec2Model

from tts_assets.codec.backends import PublishedBackend
from tts_assets.codec.model import Codec
from tts_assets.core.audio import Wave

ROUNDS = 3


def full_size(device: str, precision: Any) -> Codec:
    torch.manual_seed(0)
    model = Xcodec2Model(Xcodec2Config()).to(device)
    return Codec(PublishedBackend(model, device, precision), device)


def batches(codec: Codec, waves: list[Wave], budget: int) -> Iterator[list[Wave]]:
    """Batches of clips in their order, of at most ``budget`` codes including padding."""
    batch: list[Wave] = []
    for wave in waves:
        if batch and codec.codes(len(batch[0])) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(wave)
    yield batch


def finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def encode(codec: Codec, waves: list[Wave], budget: int, device: str) -> float:
    """The seconds that encoding all clips takes."""
    finish(device)
    started = time.perf_counter()
    for batch in batches(codec, waves, budget):
        codec.quantize(codec.latents(batch))
    finish(device)
    return time.perf_counter() - started


def time_fractions(codec: Codec, device: str, work: Callable[[], float]) -> dict[str, float]:
    """The fraction of time of each part of the encoder while ``work`` runs."""
    backend, model = codec.backend, codec.backend.model
    assert isinstance(backend, PublishedBackend)
    parts: dict[str, nn.Module] = {
        "filterbank": backend.filterbank,
        "w2v-BERT": model.semantic_encoder,
        "semantic adapter": model.semantic_adapter,
        "acoustic encoder": model.acoustic_encoder,
    }
    spent: dict[str, float] = defaultdict(float)

    def clock(name: str, sign: int) -> Callable[..., None]:
        def note(*_: object) -> None:
            finish(device)
            spent[name] += sign * time.perf_counter()

        return note

    for name, part in parts.items():
        part.register_forward_pre_hook(clock(name, -1))
        part.register_forward_hook(clock(name, +1))
    whole = work()
    found = {name: spent[name] / whole for name in parts}
    return found | {"rest": 1 - sum(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="or cuda")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--seconds", type=float, default=1200.0, help="of speech")
    parser.add_argument("--budget", type=int, default=20_000, help="codes a batch, with padding")
    arguments = parser.parse_args()
    device = arguments.device
    codec = full_size(device, arguments.precision)
    waves = sorted(speech(arguments.seconds), key=len, reverse=True)
    seconds = sum(map(len, waves)) / 16_000

    def work() -> float:
        return encode(codec, waves, arguments.budget, device)

    best = min(work() for _ in range(ROUNDS))
    parts = time_fractions(codec, device, work)
    where = torch.cuda.get_device_name() if device != "cpu" else f"{torch.get_num_threads()} cores"
    print(
        f"{codec.facts.parameters / 1e6:.0f} M parameters, {arguments.precision}, {where}, ", end=""
    )
    print(
        f"torch {torch.__version__}; {len(waves)} clips, {seconds:.0f} s, batches of at most ",
        end="",
    )
    print(f"{arguments.budget} codes: **{seconds / best:.1f} s of audio per second**")
    print("| part | fraction of time |\n|---|---|")
    for name, fraction in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {name} | {fraction:.1%} |")


if __name__ == "__main__":
    main()
