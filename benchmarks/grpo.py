"""Measures whether GRPO improves the reward on held-out prompts by more than chance.

    python benchmarks/grpo.py --serving storage/serving/announcer/all/current

The script trains ``[rlhf.announcer_grpo]`` from a serving model with the WER reward alone, once for
each of three seeds. It synthesizes 64 held-out digit strings before and after training, with
several sampling seeds. The strings are not in the recipe's texts, the suite, or the corpus. It
prints a Markdown table: mean rewards, standard deviations over sampling seeds and over training
seeds, the confidence interval of the mean improvement, and the minutes of each run. ``--steps`` and
``--texts`` make it shorter. ``--keep`` keeps the run folders.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from scipy.stats import t as student_t

from tts_assets.audio_models.wer import normalize_for_match
from tts_assets.rlhf.config import HeldOutConfig, RlhfProgram, RlhfRecipe
from tts_assets.rlhf.prompts import PromptSet, RolloutPrompt, recipe_texts
from tts_assets.rlhf.reward_config import WerReward
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.rollouts import PolicyEngine, RolloutWorker
from tts_assets.rlhf.trainer import policy_lm
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.settings import Settings, load_settings
from tts_assets.speechlm.model import SpeechLM

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTHS = range(3, 8)  # digits, as in the recipe's texts
SAMPLING_SEEDS_BEFORE, SAMPLING_SEEDS_AFTER = 6, 3
STEP = -2  # in the seeds of completions: not a step of training or of its evaluation


def held_out_prompts(settings: Settings, texts: list[str], count: int) -> list[RolloutPrompt]:
    """Returns digit strings that are not in ``texts``, the suite, or the corpora."""
    suite = (settings.root / settings.evaluation.suite).read_text().splitlines()
    known = texts + [json.loads(line)["text"] for line in suite]
    for corpus in settings.corpora.values():
        lines = (settings.root / corpus.path / "samples.jsonl").read_text().splitlines()
        known += [json.loads(line)["transcript"] for line in lines]
    excluded = {normalize_for_match(text) for text in known}
    generator = random.Random(20_261_121)
    found: dict[str, None] = {}
    while len(found) < count:
        text = " ".join(generator.choices(DIGITS, k=LENGTHS[len(found) % len(LENGTHS)]))
        if normalize_for_match(text) not in excluded:
            found[text] = None
    return [RolloutPrompt(text=text) for text in found]


def mean_rewards(
    folder: Path, lm: SpeechLM | None, recipe: RlhfRecipe, prompts: list[RolloutPrompt], seeds: int
) -> list[float]:
    """Returns the mean reward over all prompts for each sampling seed.

    ``folder``: a serving model. ``lm``: the model to use instead of the folder's; None: the
    folder's.
    """
    synthesizer = Synthesizer.open(folder)
    engine = PolicyEngine(lm or policy_lm(synthesizer))
    rewards = RewardExecutor.open(recipe, synthesizer)
    means = []
    for seed in range(seeds):
        worker = RolloutWorker(synthesizer, engine, rewards, recipe.sampling.complete(), seed)
        rollouts = worker.run(prompts, STEP, 0)
        means.append(statistics.mean(one.result.total for one in rollouts))
    rewards.close()
    return means


def train(
    folder: Path, serving: Path, recipe: RlhfRecipe, texts: list[str], processes: int
) -> tuple[Path, float]:
    """Trains in ``processes`` ranks. Returns the result folder and the minutes."""
    folder.mkdir(parents=True)
    prompts = folder / "prompts.jsonl"
    PromptSet([RolloutPrompt(text=text) for text in texts]).write(prompts)
    program = RlhfProgram(
        run_dir=folder, name="grpo", recipe=recipe, serving_model=serving, prompts=prompts
    )
    (folder / "run.json").write_text(program.to_json())
    started = time.perf_counter()
    ranks = ["--standalone", f"--nproc-per-node={processes}"]
    command = ["-m", "torch.distributed.run", *ranks, "-m", "tts_assets.rlhf.train"]
    threads = str(max(1, torch.get_num_threads() // processes))
    subprocess.run(
        [sys.executable, *command, str(folder / "run.json")],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": threads},
    )
    return folder / "result", (time.perf_counter() - started) / 60


def print_report(before: list[float], after: list[list[float]], minutes: list[float]) -> None:
    """Prints the table and the confidence interval of the mean improvement."""
    base = statistics.mean(before)
    means = [statistics.mean(own) for own in after]
    print("| training seed | before | after | improvement | minutes |\n|---|---|---|---|---|")
    for seed, (mean, duration) in enumerate(zip(means, minutes, strict=True)):
        print(f"| {seed} | {base:.4f} | {mean:.4f} | {mean - base:+.4f} | {duration:.1f} |")
    sampling, training = statistics.stdev(before), statistics.stdev(means)
    improvement = statistics.mean(means) - base
    error = (training**2 / len(means) + sampling**2 / len(before)) ** 0.5
    half = float(student_t.ppf(0.975, len(means) - 1)) * error
    by_seed = ", ".join(f"{value:.4f}" for value in before)
    print(f"\nMean reward before training, by sampling seed: {by_seed};")
    print(f"standard deviation over sampling seeds {sampling:.4f}, over training seeds of the")
    print(f"means {training:.4f}. Mean improvement {improvement:+.4f}, 95 % confidence interval of")
    print(f"Student's t {improvement - half:+.4f} to {improvement + half:+.4f}: ", end="")
    print("significant." if improvement > half else "NOT significant.")
    lowest = min(value for own in after for value in own)
    print(f"Highest before training: {max(before):.4f}. Lowest after training: {lowest:.4f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serving", type=Path, required=True, help="folder of a serving model")
    parser.add_argument("--recipe", default="announcer_grpo")
    parser.add_argument("--seeds", type=int, default=3, help="two or more")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--keep", type=Path, help="keep the run folders here")
    options = parser.parse_args()
    settings = load_settings()
    recipe = settings.rlhf[options.recipe]
    texts = recipe_texts(recipe.prompts, settings.root)
    recipe = recipe.model_copy(
        update={
            "rewards": (WerReward(),),
            "heldout": HeldOutConfig(fraction=0),
            "steps": options.steps or recipe.steps,
        }
    )
    processes = settings.compute.shape("rlhf").processes
    prompts = held_out_prompts(settings, texts, options.texts)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {recipe.steps} steps of")
    print(f"{recipe.prompts_per_step} x {recipe.generations} completions; {len(prompts)} held-out")
    print(f"strings, learning rate {recipe.learning_rate:g}\n", flush=True)
    serving = options.serving.resolve()
    before = mean_rewards(serving, None, recipe, prompts, SAMPLING_SEEDS_BEFORE)
    after, minutes = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(options.seeds):
            folder = (options.keep or Path(temporary)) / f"seed-{seed}"
            own = recipe.model_copy(update={"seed": seed})
            result, duration = train(folder, serving, own, texts, processes)
            codebook = json.loads((result.parent / "result.json").read_text())["codebook_size"]
            lm = SpeechLM.load(result, codebook)
            after.append(mean_rewards(serving, lm, own, prompts, SAMPLING_SEEDS_AFTER))
            minutes.append(duration)
            print(f"seed {seed}: {after[-1]}", file=sys.stderr, flush=True)
    print_report(before, after, minutes)


if __name__ == "__main__":
    main()
