"""Does GRPO raise the reward on prompts it was never given, and by more than chance?

    python benchmarks/grpo.py --serving storage/serving/announcer/all/current

trains ``[rlhf.announcer_grpo]`` from a serving model with the WER reward alone, once for each of
three seeds, and says 64 held-out digit strings before and after with several sampling seeds. The
strings are in neither the recipe's texts, nor the suite, nor the corpus. Prints a Markdown table:
the mean rewards, the spread over sampling seeds before any training, that over training seeds, the
interval of the mean rise, and the minutes of each run. ``--steps`` and ``--texts`` make it shorter;
``--keep`` keeps the run folders.
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
from tts_assets.rlhf.assets import recipe_texts
from tts_assets.rlhf.config import HeldOutConfig, RlhfProgram, RlhfRecipe
from tts_assets.rlhf.engines import PolicyEngine
from tts_assets.rlhf.prompts import PromptSet, RolloutPrompt
from tts_assets.rlhf.reward_config import WerReward
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.rollouts import RolloutWorker
from tts_assets.rlhf.train import own_lm
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.settings import Settings, load_settings
from tts_assets.speechlm.model import SpeechLM

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTHS = range(3, 8)  # digits, as in the recipe's texts
SAMPLING_SEEDS_BEFORE, SAMPLING_SEEDS_AFTER = 6, 3
STEP = -2  # in the seeds of completions: neither a step of training nor its own measurement


def held_out(settings: Settings, known: list[str], count: int) -> list[RolloutPrompt]:
    """Digit strings that the policy was given nowhere."""
    suite = (settings.root / settings.evaluation.suite).read_text().splitlines()
    known = known + [json.loads(line)["text"] for line in suite]
    for corpus in settings.corpora.values():
        lines = (settings.root / corpus.path / "samples.jsonl").read_text().splitlines()
        known += [json.loads(line)["transcript"] for line in lines]
    taken = {normalize_for_match(text) for text in known}
    draw = random.Random(20_261_121)
    texts: dict[str, None] = {}
    while len(texts) < count:
        text = " ".join(draw.choices(DIGITS, k=LENGTHS[len(texts) % len(LENGTHS)]))
        if normalize_for_match(text) not in taken:
            texts[text] = None
    return [RolloutPrompt(text=text) for text in texts]


def mean_rewards(
    folder: Path, lm: SpeechLM | None, recipe: RlhfRecipe, prompts: list[RolloutPrompt], seeds: int
) -> list[float]:
    """The mean reward over all prompts, once a sampling seed, of the serving model in ``folder``;
    ``lm`` in place of its own weights."""
    synthesizer = Synthesizer.open(folder)
    engine = PolicyEngine(lm or own_lm(synthesizer))
    panel = RewardExecutor.open(recipe, synthesizer)
    means = []
    for seed in range(seeds):
        worker = RolloutWorker(synthesizer, engine, panel, recipe.sampling, seed)
        rollouts = worker.run(prompts, STEP, 0)
        means.append(statistics.mean(one.verdict.total for one in rollouts))
    panel.close()
    return means


def train(
    folder: Path, serving: Path, recipe: RlhfRecipe, texts: list[str], processes: int
) -> tuple[Path, float]:
    """The result folder of a run in processes of its own, and its minutes."""
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


def report(before: list[float], after: list[list[float]], minutes: list[float]) -> None:
    base = statistics.mean(before)
    means = [statistics.mean(own) for own in after]
    print("| training seed | before | after | rise | minutes |\n|---|---|---|---|---|")
    for seed, (mean, taken) in enumerate(zip(means, minutes, strict=True)):
        print(f"| {seed} | {base:.4f} | {mean:.4f} | {mean - base:+.4f} | {taken:.1f} |")
    sampling, training = statistics.stdev(before), statistics.stdev(means)
    rise = statistics.mean(means) - base
    error = (training**2 / len(means) + sampling**2 / len(before)) ** 0.5
    half = float(student_t.ppf(0.975, len(means) - 1)) * error
    print(f"\nBefore, by sampling seed: {', '.join(f'{value:.4f}' for value in before)};")
    print(f"standard deviation over sampling seeds {sampling:.4f}, over training seeds of the")
    print(f"means {training:.4f}. Mean rise {rise:+.4f}, 95 % interval of Student's t over the")
    print(f"training seeds {rise - half:+.4f} to {rise + half:+.4f}: ", end="")
    print("beyond the noise." if rise > half else "NOT beyond the noise.")
    lowest = min(value for own in after for value in own)
    print(f"The highest before is {max(before):.4f}, the lowest after {lowest:.4f}.")


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
    texts = recipe_texts(recipe, settings.root)
    recipe = recipe.model_copy(
        update={
            "rewards": (WerReward(),),
            "heldout": HeldOutConfig(fraction=0),
            "steps": options.steps or recipe.steps,
        }
    )
    processes = settings.compute.shape("rlhf").processes
    prompts = held_out(settings, texts, options.texts)
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
            result, taken = train(folder, serving, own, texts, processes)
            codebook = json.loads((result.parent / "result.json").read_text())["codebook_size"]
            lm = SpeechLM.load(result, codebook)
            after.append(mean_rewards(serving, lm, own, prompts, SAMPLING_SEEDS_AFTER))
            minutes.append(taken)
            print(f"seed {seed}: {after[-1]}", file=sys.stderr, flush=True)
    report(before, after, minutes)


if __name__ == "__main__":
    main()
