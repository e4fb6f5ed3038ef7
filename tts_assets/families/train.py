"""Train a model of another family on filtered samples, in the environment that has it::

    python -m tts_assets.families.train run.json

This program prepares the clips, then starts ``coqui/train.py`` with the other interpreter and
tells what that tells. What the other trainer can go on from lies in ``checkpoints/``.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import soundfile

from tts_assets.accounting import SET_ASIDE_FILE, write_set_aside
from tts_assets.config import ConfigError
from tts_assets.families.config import CLONING, LEARNING_RATES, FamilyTrainProgram
from tts_assets.families.coqui.job import VOICES_FOLDER, TrainJob
from tts_assets.families.dataset import Dataset, add, all_samples, write_lists
from tts_assets.families.driver import drive
from tts_assets.metrics import METRICS_FILE, publish_metrics, read_metrics
from tts_assets.program import Run, load_config

# What coqui's trainer tells of how long it took.
CLOCK = frozenset({"step_time", "loader_time", "val_step_time", "val_loader_time"})


def main(argv: list[str] | None = None) -> None:
    config = load_config(FamilyTrainProgram, argv)
    with Run(config.run_dir) as run:
        train(config, run)


def train(config: FamilyTrainProgram, run: Run) -> None:
    """Clips, model, voices, facts; raises ConfigError where the family cannot learn these."""
    folder = config.run_dir / "dataset"
    dataset = prepare(config, run, folder)
    check(config, dataset)
    write_lists(dataset, folder)
    recipe = config.recipe
    job = TrainJob(
        family=recipe.family,
        dataset=str(folder),
        work=str(run.checkpoint_dir),
        result=str(run.result_dir),
        events=str(config.run_dir / "events.jsonl"),
        start=str(recipe.model) if recipe.model else None,
        sample_rate=recipe.rate,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate or LEARNING_RATES[recipe.family],
        save_steps=recipe.save_steps,
        log_steps=recipe.log_steps,
        export=recipe.export,
        seed=recipe.seed,
        config=recipe.config,
    )
    steps = recipe.epochs * -(-len(dataset.train) // recipe.batch_size)
    drive(run, config.python, job, "training", 1 if recipe.family == "tortoise" else steps)
    if recipe.family in CLONING:
        write_voices(dataset, run.result_dir / VOICES_FOLDER, recipe.voices)
    write_set_aside(run.result_dir / SET_ASIDE_FILE, dataset.set_aside)
    if (config.run_dir / METRICS_FILE).is_file():
        publish_metrics(config.run_dir, run.result_dir, without=CLOCK)
    run.finish(facts(config, dataset, run.result_dir))


def prepare(config: FamilyTrainProgram, run: Run, folder: Path) -> Dataset:
    """Every sample as a clip in the family's rate; those that are there from before are kept."""
    dataset = Dataset()
    samples = list(all_samples(config.samples))
    for corpus, sample in run.progress(samples, "clips"):
        add(dataset, folder, corpus, sample, config.recipe, config.validation)
        if run.stop_requested:
            run.stopped()
    return dataset


def check(config: FamilyTrainProgram, dataset: Dataset) -> None:
    if not dataset.train:
        raise ConfigError(f"{config.name}: no clip to train on is left of {list(config.samples)}")
    if config.recipe.family == "vits" and dataset.speakers > 1:
        raise ConfigError(
            f"{config.name}: vits learns one voice, and {list(config.samples)} have "
            f"{dataset.speakers} speakers; name corpora of one, or use xtts"
        )


def write_voices(dataset: Dataset, folder: Path, count: int) -> None:
    """The longest training clips: what a family that clones is shown of the voice."""
    folder.mkdir(exist_ok=True)
    clips = [Path(clip["audio_file"]) for clip in dataset.train]
    clips.sort(key=lambda path: (-soundfile.info(path).frames, path.name))
    for number, clip in enumerate(clips[:count]):
        shutil.copyfile(clip, folder / f"{number}.wav")


def facts(config: FamilyTrainProgram, dataset: Dataset, result: Path) -> dict[str, Any]:
    """What was learnt from what; the last losses are those that the other trainer told."""
    path = result / METRICS_FILE
    records = read_metrics(path) if path.is_file() else []
    last: dict[str, float] = {}
    for record in records:
        last |= {name: value for name, value in record.items() if "loss" in name}
    return {
        "family": config.recipe.family,
        "recipe": config.name,
        "steps": max((int(record["step"]) for record in records), default=0),
        "train_samples": len(dataset.train),
        "val_samples": len(dataset.val),
        "set_aside": len(dataset.set_aside),
        "hours": dataset.seconds / 3600,
        "parameters": sum(parameters(path) for path in result.glob("*.safetensors")),
        "losses": last,
    }


def parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    return sum(math.prod(shape) for shape in shapes)


if __name__ == "__main__":
    main()
