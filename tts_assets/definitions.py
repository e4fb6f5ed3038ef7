"""The Dagster definitions of all stages for one profile of the settings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from dagster import (
    AssetsDefinition,
    AssetSpec,
    BetaWarning,
    Definitions,
    ExecutorDefinition,
    FreshnessPolicy,
    PreviewWarning,
    SupersessionWarning,
    in_process_executor,
    multiprocess_executor,
)

from jobs.asset_jobs import build_jobs, build_schedules
from jobs.storage import build_prune_job, build_prune_schedule, build_scrub_job
from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.launcher import Launcher
from resources.slurm import SlurmLauncher
from resources.torchrun import TorchrunLauncher
from resources.vllm_server import VllmServer
from sensors.alerts import build_alert_sensors
from sensors.automation import (
    build_data_sensor,
    build_training_sensor,
    with_training_condition,
)
from sensors.checkpoints import build_checkpoint_sensor
from sensors.corpora import build_corpora_sensors
from tts_assets.arrays.assets import build_assets as arrays_assets
from tts_assets.codec.assets import build_assets as codec_assets
from tts_assets.codec_report.assets import build_assets as codec_report_assets
from tts_assets.core.compute import LEDGER_FOLDER, Compute, Shape
from tts_assets.core.tracking import WandbConfig
from tts_assets.corpora.assets import build_assets as corpora_assets
from tts_assets.evaluation.assets import build_assets as evaluation_assets
from tts_assets.evaluation.assets import vote_preferences
from tts_assets.external_models.assets import build_assets as external_model_assets
from tts_assets.promotion.assets import build_assets as promotion_assets
from tts_assets.rlhf.assets import build_assets as rlhf_assets
from tts_assets.rlhf.assets import rollout_preferences
from tts_assets.serving.assets import build_assets as serving_assets
from tts_assets.settings import Settings, load_settings
from tts_assets.sft.assets import build_assets as sft_assets
from tts_assets.speakers.assets import build_assets as speakers_assets
from tts_assets.speechlm.assets import build_assets as token_assets
from tts_assets.speechlm.assets import build_text_assets

STEPS_AT_ONCE = 8  # of a run under Slurm; each is a process of about 300 MB that waits for a job
REPORTS = ("report", "codec_report", "speaker_report")  # keys, or the first parts of them


def build_defs(settings: Settings, resources: Mapping[str, Any] | None = None) -> Definitions:
    """All definitions. ``resources`` replaces resources of the settings by name."""
    jobs, pruning = build_jobs(settings), build_prune_job(settings.retention)
    schedule = build_prune_schedule(pruning, settings.schedules)
    return Definitions(
        assets=[complete(made, settings) for made in build_assets(settings)],
        resources={**build_resources(settings), **(resources or {})},
        jobs=[*jobs, build_scrub_job(), pruning],
        schedules=[*build_schedules(jobs, settings), schedule],
        sensors=[
            *build_corpora_sensors(
                settings.all_corpora, list(settings.arrays.imported), settings.storage
            ),
            build_data_sensor(),
            build_training_sensor(),
            build_checkpoint_sensor(list(settings.sft), settings.storage),
            *build_alert_sensors(settings.alerts, settings.storage),
        ],
        executor=executor_of(settings.compute),
    )


def executor_of(compute: Compute) -> ExecutorDefinition:
    """The executor of runs.

    On this machine there is one step at a time, because each launched program uses all cores. Under
    Slurm a step only waits for its batch job, so independent steps run in processes of their own.
    """
    if compute.launcher == "slurm":
        return multiprocess_executor.configured({"max_concurrent": STEPS_AT_ONCE})
    return in_process_executor


def build_assets(settings: Settings) -> list[Any]:
    """Assets and checks of all stages, and promotions, which read results of the checks."""
    stages = build_stages(settings)
    promoted = promotion_assets(
        settings.promotion, stages, settings.evaluation, settings.suites, settings.effects
    )
    return [*stages, *promoted]


def build_stages(settings: Settings) -> list[Any]:
    """Assets and checks in the order of the data flow, except promotions."""
    root, shape = settings.root, settings.compute.shape
    # Transcripts remain the written words; tokenizers carry the lexicon.
    text, lexicon = settings.text.model_copy(update={"lexicon": {}}), settings.text.lexicon
    trained = {name: list(recipe.corpora) for name, recipe in settings.sft.items()}
    rlhf, dpo = (
        {name: trained[recipe.base] for name, recipe in recipes.items()}
        for recipes in (settings.rlhf, settings.dpo)
    )
    return [
        *corpora_assets(settings.all_corpora, settings.filters, text, shape("corpora")),
        *codec_assets(settings.codec, settings.validation, shape("codec"), root),
        *arrays_assets(settings.arrays, settings.validation, settings.codec.checkpoint, root),
        *token_assets(settings.tokenizers, settings.pretrains, shape("speechlm")),
        *build_text_assets(settings.texts, settings.validation, root),
        *sft_assets(settings.sft, shape("sft"), lexicon),
        *serving_assets(
            settings.serving,
            {"sft": trained, "rlhf": rlhf, "dpo": dpo},
            vllm_shape(settings),
            text,
            settings.consents,
            settings.codec.decoder is not None,
        ),
        *rlhf_assets(settings.aligned, shape("rlhf"), root, settings.vllm),
        *preferences(settings),
        *evaluation_assets(
            settings.evaluation,
            settings.sft,
            settings.aligned,
            root,
            shape("evaluation"),
            settings.training_corpora,
            {name: recipe.corpora for name, recipe in settings.external_models.recipes.items()},
            settings.suites,
            settings.decisive,
        ),
        *external_model_assets(
            settings.external_models,
            settings.evaluation,
            settings.validation,
            settings.stage_of,
            shape("external_models"),
            root,
            settings.consents,
            settings.suites,
        ),
        *codec_report_assets(
            settings.codec.report,
            settings.validation,
            shape("evaluation"),
            settings.codec.decoder is not None,
            settings.evaluation.whisper,
        ),
        *speakers_assets(settings.speakers, shape("speakers"), root),
    ]


def preferences(settings: Settings) -> list[Any]:
    """The assets of ``[preferences.<name>]`` and their checks, by the source of the pairs."""
    built: list[Any] = []
    root, shape = settings.root, settings.compute.shape("rlhf")
    for name, config in settings.preferences.items():
        if config.rollouts:
            recipe = settings.rlhf[config.rollouts]
            built += rollout_preferences(name, config, recipe, shape, root, settings.vllm)
        else:
            built += vote_preferences(name, config, shape, root)
    return built


def vllm_shape(settings: Settings) -> Shape:
    """The shape of the program that loads a serving model, with the interpreter of ``[vllm]``."""
    shape, python = settings.compute.shape("serving").one_process(), settings.vllm.python
    return shape.model_copy(update={"python": str(python)}) if python else shape


def complete(made: Any, settings: Settings) -> Any:
    """Add owners, automation conditions and freshness policies. Checks are not changed."""
    if not isinstance(made, AssetsDefinition):
        return made
    days = settings.schedules.report_days

    def finish(spec: AssetSpec) -> AssetSpec:
        spec = with_training_condition(spec).replace_attributes(owners=settings.project.owners)
        if spec.key.path[0] not in REPORTS:
            return spec
        policy = FreshnessPolicy.time_window(
            warn_window=timedelta(days=days), fail_window=timedelta(days=2 * days)
        )
        return spec.replace_attributes(freshness_policy=policy)

    return made.map_asset_specs(finish)


def build_resources(settings: Settings) -> dict[str, Any]:
    """The resources by name."""
    return {
        "store": ArtifactStoreResource(root=str(settings.storage), refused=settings.ended_consents),
        "io_manager": ArtifactIOManager(root=str(settings.storage)),
        "launcher": build_launcher(
            settings.compute,
            settings.wandb,
            ledger=str(settings.storage / LEDGER_FOLDER),
            **settings.budget.model_dump(),
        ),
        "vllm": VllmServer(**settings.vllm.model_dump(mode="json")),
    }


def build_launcher(compute: Compute, wandb: WandbConfig | None = None, **accounts: Any) -> Launcher:
    """The launcher of ``compute.launcher``. With ``wandb``, its programs also log to W&B.

    ``accounts`` are the fields ``ledger`` and ``gpu_hours_a_week`` of the launcher.
    """
    common = compute.model_dump(include={"grace_seconds", "retries"}) | accounts
    common["wandb"] = wandb and wandb.model_dump(mode="json", exclude_none=True)
    if compute.launcher == "slurm":
        return SlurmLauncher(**common, **compute.slurm.model_dump(mode="json"))
    return TorchrunLauncher(**common)


# The versions of Dagster are locked, so that a change of these parts cannot come unnoticed.
for category in (BetaWarning, PreviewWarning, SupersessionWarning):
    warnings.filterwarnings("ignore", category=category)
defs = build_defs(load_settings())
