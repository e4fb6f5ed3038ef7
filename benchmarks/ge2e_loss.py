"""Speed of the vectorized GE2E loss compared with loops over the paper's formulas.

    OMP_NUM_THREADS=1 python benchmarks/ge2e_loss.py

measures loss and gradients of both kinds at N = 64 speakers, M = 10 utterances, 256 dimensions, in
float32, and prints a Markdown table with the largest difference of values and gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.literal_ge2e import literal_ge2e
from tts_assets.speakers.model import Ge2eLoss

SPEAKERS, UTTERANCES, SIZE = 64, 10, 256
REPEATS = 50  # of the vectorized loss, of which the shortest counts; the loops take seconds


def step(loss_of: Callable[[Tensor], Tensor], raw: Tensor) -> tuple[Tensor, Tensor, float]:
    """Loss, gradient, and the seconds that both take."""
    x = raw.clone().requires_grad_()
    started = time.perf_counter()
    loss = loss_of(F.normalize(x, dim=-1))
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient, time.perf_counter() - started


def main() -> None:
    torch.manual_seed(0)
    raw = torch.randn(SPEAKERS, UTTERANCES, SIZE)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| loss | loops, ms | vectorized, ms | ratio | loss differs by | gradients by |")
    print("|---|---|---|---|---|---|")
    for kind in ("softmax", "contrast"):
        ours = Ge2eLoss(kind)

        def literal(x: Tensor, ours: Ge2eLoss = ours) -> Tensor:
            return literal_ge2e(x, ours.scale, ours.offset, ours.kind)

        a, da, slow = step(literal, raw)
        steps = [step(ours, raw) for _ in range(REPEATS)]
        b, db, _ = steps[0]
        fast = min(seconds for _, _, seconds in steps)
        apart = [float((a - b).abs()), float((da - db).abs().max() / da.abs().max())]
        assert max(apart) < 1e-4, apart
        print(
            f"| {kind} | {1000 * slow:.0f} | {1000 * fast:.2f} | {slow / fast:.0f} | "
            f"{apart[0]:.1e} | {apart[1]:.1e} |"
        )


if __name__ == "__main__":
    main()
