"""Decoding clips of equal length in batches and one by one: speed and differences.

    python benchmarks/decode.py

It measures the vendored codec on random codes with one thread; the shortest of seven rounds counts.
The server decodes clip by clip, so that samples do not depend on other requests; the table shows
the cost. A stream's chunks are decoded with all of their past: 25, 57, 121, 249 codes and more,
after those of the voice prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from tts_assets.codec.backends import facts_of, open_compact

CODEC = Path(__file__).resolve().parents[1] / "examples/codecs/announcer-16khz"
LENGTHS, CLIPS, ROUNDS = (25, 57, 121, 249), (4, 16), 7


def seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """The shortest time of all rounds, and the result."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        made = work()
        times.append(time.perf_counter() - started)
    return min(times), made


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    model = open_compact(CODEC).eval()
    size = facts_of(model).codebook_size

    def decode(codes: Tensor) -> Tensor:
        return model.waves(model.quantizer.from_codes(codes.unsqueeze(-1)))

    print("| codes | clips | one by one, ms | together, ms | ratio | difference | 16 bits differ |")
    print("|---|---|---|---|---|---|---|")
    random = torch.Generator().manual_seed(0)
    for length, clips in product(LENGTHS, CLIPS):
        codes = torch.randint(size, (clips, length), generator=random)
        batched, batch = seconds(partial(decode, codes))
        single, alone = seconds(
            lambda codes=codes: torch.cat([decode(clip[None]) for clip in codes])
        )
        difference = float((batch - alone).abs().max())
        other = float((sixteen_bits(batch) != sixteen_bits(alone)).float().mean())
        print(
            f"| {length} | {clips} | {1e3 * single:.0f} | {1e3 * batched:.0f} | "
            f"{single / batched:.2f} | {difference:.0e} | {other:.2%} |",
            flush=True,
        )


def sixteen_bits(wave: Tensor) -> Tensor:
    return (wave.clamp(-1, 1) * 32767).round()


if __name__ == "__main__":
    main()
