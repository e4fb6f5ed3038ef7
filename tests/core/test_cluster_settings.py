"""Keys that only clusters, teams and other time zones need reach Slurm, W&B and the schedules."""

from __future__ import annotations

from pathlib import Path

from dagster import ScheduleDefinition

from jobs.asset_jobs import build_jobs, build_schedules
from resources.launcher import Program
from resources.slurm import SlurmLauncher
from resources.slurm_job import render
from tests.support.programs import CountConfig
from tts_assets.core.compute import Shape
from tts_assets.core.tracking import RunCard, WandbConfig, write_card
from tts_assets.definitions import build_launcher
from tts_assets.settings import load_settings

CLUSTER = {
    "compute": {
        "launcher": "slurm",
        "gpus": 8,
        "slurm": {
            "qos": "long",
            "constraint": "h100",
            "modules": ["cuda/13.0", "apptainer"],
            "srun_options": ["--container-image=/images/tts.sqsh"],
        },
    },
    "wandb": {"project": "tts", "entity": "speech-team"},
    "schedules": {"timezone": "Europe/Berlin"},
}


def test_slurm_options_are_in_the_batch_script(tmp_path: Path) -> None:
    settings = load_settings(environment={}, overrides=CLUSTER)
    launcher = build_launcher(settings.compute)
    assert isinstance(launcher, SlurmLauncher)
    program = Program(
        "tests.support.programs", CountConfig(run_dir=tmp_path, total=1), Shape(gpus=1)
    )
    script = render(program, launcher.slurm_options())
    assert "#SBATCH --qos=long\n" in script and "#SBATCH --constraint=h100\n" in script
    assert "\nmodule load cuda/13.0 apptainer\n" in script
    assert " --container-image=/images/tts.sqsh " in script


def test_the_entity_is_in_the_card_of_the_run(tmp_path: Path) -> None:
    settings = load_settings(environment={}, overrides=CLUSTER)
    assert isinstance(settings.wandb, WandbConfig)
    write_card(tmp_path, settings.wandb, "sft/announcer")
    assert RunCard.from_json(tmp_path / "wandb.json").entity == "speech-team"


def test_schedules_use_the_time_zone() -> None:
    settings = load_settings(environment={}, overrides=CLUSTER)
    schedules = build_schedules(build_jobs(settings), settings)
    assert all(isinstance(schedule, ScheduleDefinition) for schedule in schedules)
    assert {schedule.execution_timezone for schedule in schedules} == {"Europe/Berlin"}
