"""Keys that only clusters, teams and other time zones need reach Slurm, W&B and the schedules."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import ScheduleDefinition

from jobs.asset_jobs import build_jobs, build_schedules
from resources.launcher import LaunchError, Program
from resources.slurm import SlurmLauncher
from resources.slurm_job import render, write_script
from tests.support.programs import CountConfig
from tts_assets.core.compute import Shape, SlurmOptions
from tts_assets.core.config import ConfigError
from tts_assets.definitions import build_launcher
from tts_assets.project_file import overlay
from tts_assets.settings import load_settings

CLUSTER = {
    "compute": {
        "launcher": "slurm",
        "gpus": 8,
        "slurm": {
            "options": ["--qos=long", "--constraint=h100"],
            "modules": ["cuda/13.0", "apptainer"],
            "srun_options": ["--container-image=/images/tts.sqsh"],
        },
    },
    "wandb": {"project": "tts"},
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


def test_a_removed_option_says_what_to_write_instead() -> None:
    changes = {"compute": {"slurm": {"qos": "long"}}}
    with pytest.raises(ConfigError, match=r"'qos' was removed: write options = \['--qos=…'\]"):
        load_settings(environment={}, overrides=overlay(CLUSTER, changes))


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        *(("slurm", key) for key in ("partition",)),
        *(("slurm", key) for key in ("modules", "options", "srun_options", "login")),
        *((section, key) for section in ("compute", "sft") for key in ("prefix", "python")),
    ],
)
def test_control_characters_in_options_are_rejected(section: str, key: str, character: str) -> None:
    injected = f"long{character}touch /tmp/injected"
    listed = key in ("modules", "options", "srun_options", "login", "prefix")
    values = {key: [injected] if listed else injected}
    tables = {"slurm": {"slurm": values}, "compute": values, "sft": {"stages": {"sft": values}}}
    with pytest.raises(ConfigError, match=f"{key}.*has the control character .*: remove it"):
        load_settings(environment={}, overrides=overlay(CLUSTER, {"compute": tables[section]}))


@pytest.mark.parametrize(
    "environment", [{"A;touch /tmp/injected;B": "1"}, {"A\nB": "1"}, {"": "1"}, {"A": "\0"}]
)
def test_environment_variables_that_no_shell_can_set_are_rejected(
    environment: dict[str, str],
) -> None:
    for values in ({"environment": environment}, {"stages": {"sft": {"environment": environment}}}):
        with pytest.raises(ConfigError, match=r"valid name of an environment variable|remove it"):
            load_settings(environment={}, overrides={"compute": values})


def test_values_of_the_environment_are_quoted_on_one_line(tmp_path: Path) -> None:
    values = {"A": "one\ntwo'\\n$HOME\t`id`", "B": "plain", "C": "\x1b[0m\x7f1", "D": "ä'\n;id"}
    config = CountConfig(run_dir=tmp_path, total=1)
    program = Program("tests.support.programs", config, Shape(gpus=1, environment=values))
    write_script(program, SlurmOptions(), {"PIPES": "two\nlines"})
    lines = (tmp_path / "environment.sh").read_text().splitlines()
    assert all(re.match("export [A-Za-z_]+=", line) for line in lines)
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    command = ["bash", "-c", f'source "$0"; exec {sys.executable} -c "$1"']
    printed = subprocess.check_output([*command, str(tmp_path / "environment.sh"), code])
    assert (values | {"PIPES": "two\nlines"}).items() <= json.loads(printed).items()


def test_a_run_folder_with_a_newline_is_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "run\ntouch injected"
    program = Program("tests.support.programs", CountConfig(run_dir=folder, total=1), Shape(gpus=1))
    with pytest.raises(LaunchError, match=r"\\ntouch injected' has a control character: rename"):
        render(program, SlurmOptions())


def test_the_entity_is_a_variable_of_the_programs() -> None:
    changes = {"wandb": {"entity": "speech-team"}}
    with pytest.raises(ConfigError, match=r"environment = \{ WANDB_ENTITY = '…' \} in \[compute\]"):
        load_settings(environment={}, overrides=overlay(CLUSTER, changes))


def test_schedules_use_the_time_zone() -> None:
    settings = load_settings(environment={}, overrides=CLUSTER)
    schedules = build_schedules(build_jobs(settings), settings)
    assert all(isinstance(schedule, ScheduleDefinition) for schedule in schedules)
    assert {schedule.execution_timezone for schedule in schedules} == {"Europe/Berlin"}
