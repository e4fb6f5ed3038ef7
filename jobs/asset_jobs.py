"""The asset jobs and their schedules. ``refresh`` is partitioned by corpus, so that it backfills;
the rest is not."""

from __future__ import annotations

from collections.abc import Iterator

from dagster import (
    AssetSelection,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    define_asset_job,
    schedule,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from sensors.conditions import WHOLE_CORPUS
from tts_assets.partitions import corpus_partitions
from tts_assets.settings import Settings

REFRESH, IMPORT, TRAIN_CODEC, RETRAIN = "refresh", "import_arrays", "train_codec", "retrain"
ALIGN, EVALUATE, PROMOTE = "align", "evaluate", "promote"
TRAIN_SPEAKERS, TRAIN_FAMILIES = "train_speakers", "train_families"


def build_jobs(settings: Settings) -> list[UnresolvedAssetJobDefinition]:
    trained = list(settings.sft)
    aligned = list(settings.rlhf)
    import_arrays = define_asset_job(
        IMPORT,
        AssetSelection.groups("arrays"),
        partitions_def=corpus_partitions,
        tags={WHOLE_CORPUS: "yes"},
        description="One corpus of [arrays.imported]: its folder -> arrays.",
    )
    promote = define_asset_job(
        PROMOTE,
        AssetSelection.groups("promotion"),
        description="For each voice: the candidate whose report beats what serves, if one does.",
    )
    train_speakers = define_asset_job(
        TRAIN_SPEAKERS,
        AssetSelection.assets("speaker_encoder", "speaker_report"),
        description="The speaker encoder of [speakers], and its report.",
    )
    train_families = define_asset_job(
        TRAIN_FAMILIES,
        AssetSelection.groups("families")
        | _keys(report=list(settings.families.recipes))
        | AssetSelection.assets("evaluation_suite"),
        description="Models of other families, what they say, their reports, and the table of all.",
    )
    return [
        *([train_families] if settings.families.recipes else []),
        *([import_arrays] if settings.arrays.imported else []),
        *([train_speakers] if settings.speakers else []),
        define_asset_job(
            REFRESH,
            AssetSelection.groups("corpora", "codec", "arrays"),
            partitions_def=corpus_partitions,
            tags={WHOLE_CORPUS: "yes"},
            description="One corpus: recordings -> samples -> codes -> arrays.",
        ),
        define_asset_job(
            TRAIN_CODEC,
            AssetSelection.groups("corpora", "codec_decoder") | AssetSelection.assets("codec"),
            partitions_def=corpus_partitions,
            description="The codec and what it is trained on (profile codec_demo: from nothing).",
        ),
        define_asset_job(
            RETRAIN,
            _keys(texts=list(settings.texts), sft=trained, serving=trained, report=trained)
            | AssetSelection.assets("evaluation_suite"),
            description="Texts, every SFT recipe, its serving model and its report.",
        ),
        define_asset_job(
            ALIGN,
            _keys(rlhf=aligned, serving=aligned, report=aligned, comparison=aligned),
            description="Every RLHF recipe, its serving model, report and comparison.",
        ),
        define_asset_job(
            EVALUATE,
            AssetSelection.groups("evaluation"),
            description="All reports of the current serving models.",
        ),
        *([promote] if settings.promotion else []),
    ]


def build_schedules(
    jobs: list[UnresolvedAssetJobDefinition], settings: Settings
) -> list[ScheduleDefinition]:
    """All are off until somebody turns them on. Unchanged inputs cost nothing."""
    named = {job.name: job for job in jobs}
    when = settings.schedules
    return [
        nightly_refresh(named[REFRESH], settings),
        *(
            ScheduleDefinition(
                name=name, job=named[job], cron_schedule=cron, execution_timezone=when.timezone
            )
            for name, job, cron in (
                ("weekly_retrain", RETRAIN, when.retrain),
                ("monthly_align", ALIGN, when.align),
            )
        ),
    ]


def nightly_refresh(job: UnresolvedAssetJobDefinition, settings: Settings) -> ScheduleDefinition:
    """A run for each corpus that is a partition and has recordings."""

    @schedule(
        name="nightly_refresh",
        job=job,
        cron_schedule=settings.schedules.refresh,
        execution_timezone=settings.schedules.timezone,
        description="Looks again at every corpus; what did not change is taken over.",
    )
    def refresh_all(context: ScheduleEvaluationContext) -> Iterator[RunRequest | SkipReason]:
        found, problems = settings.all_corpora.find()
        for problem in problems:
            context.log.warning(problem)
        assert corpus_partitions.name is not None
        known = context.instance.get_dynamic_partitions(corpus_partitions.name)
        corpora = [name for name in known if name in found]
        for corpus in corpora:
            # Dagster wants a key where there are several: one a night and corpus.
            key = f"{corpus}:{context.scheduled_execution_time.isoformat()}"
            yield RunRequest(run_key=key, partition_key=corpus)
        if not corpora:
            yield SkipReason("no corpus is a partition yet: switch on the sensor new_corpora")

    return refresh_all


def _keys(**recipes: list[str]) -> AssetSelection:
    keys = [[stage, name] for stage, names in recipes.items() for name in names]
    return AssetSelection.assets(*keys)
