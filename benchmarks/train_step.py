"""A training step: packed rows against padded batches, losses in chunks against whole logits.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py

Uses the recipe ``[sft.announcer]`` and the code arrays of ``make demo``, one utterance a sample.
Each method runs in separate processes, in turn, and the best result counts. Prints two Markdown
tables.
*Padded* has the samples of each packed row in one batch, padded to the longest, with the attention
of transformers; loss and optimizer are the same. *Whole logits* has the same packed rows with the
logits and the loss of transformers, at a vocabulary of 193,856.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tts_assets.core.artifacts import ArtifactStore
from tts_assets.settings import load_settings
from tts_assets.sft.dataset import UtteranceDataset
from tts_assets.sft.epochs import Encoded, TrainingSample
from tts_assets.sft.model import SpeechLoss, prepare, uses_bf16
from tts_assets.sft.optimizer import Optimizers
from tts_assets.sft.packing import first_fit, pack
from tts_assets.speechlm.model import SpeechLM, build, output_table
from tts_assets.speechlm.ops import summed_cross_entropy
from tts_assets.speechlm.prompts import PromptFormat

SPEED, MEMORY = ("packed", "padded"), ("chunks", "whole logits")
SPEED_TOKENS, MEMORY_TOKENS = 2048, 4096  # of a row: the recipe's, and the default of all recipes
ROWS, PASSES = 12, 2  # rows of a pass; the first pass warms up the kernels of all shapes
REPEATS = 3  # of the speed measurement; memory varies by less than 1 %
VOCABULARY = 193_856  # Llama 3 with the 65,536 codes of X-Codec-2
PADDED_TO = 32  # as in tts_assets/speechlm/ops.py: fewer shapes for oneDNN to compile
Step = Callable[[Sequence[Encoded]], Tensor]


def open_model(tokens: int) -> tuple[SpeechLM, list[list[Encoded]], bool]:
    """The small model, the samples of each row of up to ``tokens`` tokens, and whether it computes
    in bfloat16."""
    settings = load_settings()
    recipe = settings.sft["announcer"]
    store = ArtifactStore(settings.storage)
    arrays = {name: store.current("code_arrays", name) for name in recipe.corpora}
    codebook = next(iter(arrays.values())).facts.codebook_size
    lm = build(recipe.base, codebook, recipe.vocabulary, recipe.seed)
    folders = {name: handle.path for name, handle in arrays.items()}
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    dataset = UtteranceDataset(folders, "train", prompts, recipe.max_seq_len)
    order = np.random.default_rng(recipe.seed).permutation(len(dataset)).tolist()
    rows = first_fit(order, lambda u: dataset.length((u,)), tokens)
    samples = [[dataset.encode(TrainingSample((u,), 0, u)) for u in row] for row in rows]
    return lm, samples, uses_bf16(recipe, torch.device("cpu"))


def packed(lm: SpeechLM, bf16: bool) -> Step:
    """This project's step: packed rows, loss in chunks."""
    prepare(lm.model, dropout=0.0)
    loss = SpeechLoss(lm.model, bf16)
    return lambda samples: loss(pack(samples))[0]


def padded(lm: SpeechLM, bf16: bool) -> Step:
    """A step on a padded batch with the attention of transformers."""
    lm.model.set_attn_implementation("sdpa")

    def step(samples: Sequence[Encoded]) -> Tensor:
        longest = max(len(sample.inputs) for sample in samples)
        width = -(-longest // PADDED_TO) * PADDED_TO
        ids = torch.zeros(len(samples), width, dtype=torch.int64)
        visible = torch.zeros(len(samples), width, dtype=torch.int64)
        counts = torch.zeros(len(samples), width, dtype=torch.bool)
        for row, sample in enumerate(samples):
            length = len(sample.inputs)
            ids[row, :length] = torch.from_numpy(sample.inputs)
            visible[row, :length] = 1
            counts[row, sample.first : length] = True
        targets = torch.from_numpy(np.concatenate([s.targets[s.first :] for s in samples]))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = lm.model.base_model(input_ids=ids, attention_mask=visible, use_cache=False)
        hidden = output.last_hidden_state[counts]
        hidden = hidden.to(torch.bfloat16 if bf16 else hidden.dtype)
        return summed_cross_entropy(hidden, output_table(lm.model), targets)[0]

    return step


def whole_logits(lm: SpeechLM, bf16: bool) -> Step:
    """A step on packed rows with the logits and the loss of transformers."""
    prepare(lm.model, dropout=0.0)

    def step(samples: Sequence[Encoded]) -> Tensor:
        row = pack(samples)
        labels = torch.full_like(row.input_ids, -100)
        labels[0, row.where] = row.targets
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = lm.model(
                input_ids=row.input_ids,
                position_ids=row.position_ids,
                segments=row.segments,
                use_cache=False,
            )
        mean = lm.model.loss_function(
            logits=output.logits, labels=None, vocab_size=VOCABULARY, shift_labels=labels
        )
        return mean * len(row.targets)

    return step


def one_way(way: str) -> dict[str, float]:
    """Train some steps in this process: tokens a second, peak memory in GB, first loss."""
    lm, batches, bf16 = open_model(SPEED_TOKENS if way in SPEED else MEMORY_TOKENS)
    batches = batches[: ROWS if way in SPEED else 1]
    if way in MEMORY:
        lm.model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    ways = {"packed": packed, "padded": padded, "chunks": packed, "whole logits": whole_logits}
    step = ways[way](lm, bf16)
    optimizer = Optimizers(lm.model, load_settings().sft["announcer"].optimizer)
    lm.model.train()
    tokens = sum(len(sample.inputs) for batch in batches for sample in batch)
    losses, seconds = [], 0.0
    for _ in range(PASSES):
        started = time.perf_counter()
        for batch in batches:
            targets = sum(len(sample.inputs) - sample.first for sample in batch)
            loss = step(batch) / targets
            loss.backward()
            optimizer.step(1e-4)
            losses.append(float(loss.detach()))
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens": tokens / seconds, "memory": peak / 1e9, "loss": losses[0]}


def measure(ways: Sequence[str], repeats: int) -> dict[str, dict[str, float]]:
    """The best result of each method, in separate processes, in turn."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for way in ways:
            command = [sys.executable, __file__, "--way", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            old = best.setdefault(way, found)
            best[way] = {
                "tokens": max(found["tokens"], old["tokens"]),
                "memory": min(found["memory"], old["memory"]),
                "loss": found["loss"],
            }
    return best


def padding_of(batches: Sequence[Sequence[Encoded]]) -> float:
    """The fraction of padding in padded batches."""
    sizes = [[len(sample.inputs) for sample in batch] for batch in batches]
    whole = sum(len(batch) * -(-max(batch) // PADDED_TO) * PADDED_TO for batch in sizes)
    return 1 - sum(map(sum, sizes)) / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=[*SPEED, *MEMORY], help="run this one alone")
    way = parser.parse_args().way
    if way is not None:
        print(json.dumps(one_way(way)))
        return
    _, batches, bf16 = open_model(SPEED_TOKENS)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, ", end="")
    print(f"{'bfloat16' if bf16 else 'float32'}, load {os.getloadavg()[0]:.1f}\n")
    speed = measure(SPEED, REPEATS)
    print("| method | useful tokens/s | first loss |\n|---|---|---|")
    for name, found in speed.items():
        print(f"| {name} | {found['tokens']:.0f} | {found['loss']:.3f} |")
    ratio = speed["packed"]["tokens"] / speed["padded"]["tokens"]
    padding = padding_of(batches[:ROWS])
    print(f"\nPacked is {ratio:.2f} times as fast; padded batches are {padding:.0%} padding.")
    print("\n| method | peak memory of the process, GB | first loss |\n|---|---|---|")
    memory = measure(MEMORY, 1)
    for name, found in memory.items():
        print(f"| {name} | {found['memory']:.2f} | {found['loss']:.3f} |")
    ratio = memory["chunks"]["memory"] / memory["whole logits"]["memory"]
    print(f"\nThe loss in chunks needs {ratio:.2f} of the memory.")


if __name__ == "__main__":
    main()
