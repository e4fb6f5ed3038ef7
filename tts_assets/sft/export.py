"""The result of a run: a Hugging Face folder, and what goes with it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tts_assets.accounting import SET_ASIDE_FILE, write_set_aside
from tts_assets.metrics import publish_metrics, read_metrics
from tts_assets.program import Run
from tts_assets.sft.checkpoint import Progress
from tts_assets.sft.config import SftProgram
from tts_assets.sft.meter import SPEED
from tts_assets.sft.strategies.base import Tensors
from tts_assets.sft.stream import SamplePool
from tts_assets.speechlm.model import SpeechLM

TRAIN_LOSS_SHARE = 0.05  # the published train_loss is the mean over the last steps


def export(run: Run, lm: SpeechLM, weights: Tensors | None, pools: Sequence[SamplePool]) -> None:
    """Write ``result/`` (rank 0); ``weights`` None: those of ``lm``."""
    folder = run.result_dir
    lm.save(folder, weights=weights)
    publish_metrics(run.run_dir, folder, without=SPEED)
    write_set_aside(folder / SET_ASIDE_FILE, [item for pool in pools for item in pool.dropped])


def facts(
    run: Run, program: SftProgram, lm: SpeechLM, parameters: int, progress: Progress
) -> dict[str, object]:
    """The facts of a Checkpoint artifact."""
    records = read_metrics(run.run_dir / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    speeds = [record["tokens_per_second"] for record in records if "loss" in record]
    last = losses[-max(1, round(TRAIN_LOSS_SHARE * len(losses))) :]
    val_losses = {r["step"]: r["val_loss"] for r in records if "val_loss" in r}
    at = progress.best_step if program.recipe.export == "best" else progress.step
    return {
        "stage": "sft",
        "recipe": program.name,
        "steps": progress.step,
        "tokens": progress.tokens,
        "train_loss": round(sum(last) / len(last), 5) if last else None,
        "val_loss": val_losses.get(at, last[-1] if last else None),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "parameters": parameters,
        "vocabulary": lm.vocabulary.digest,
        "codec": program.codec,
        "sample_rate": program.sample_rate,
        "token_rate": program.token_rate,
        "codebook_size": program.codebook_size,
    }
