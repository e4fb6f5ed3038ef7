"""The asset jobs and their schedules. ``refresh`` is partitioned by corpus, so that it backfills;
the rest is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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

from tts_assets.orchestration.conditions import WHOLE_CORPUS
from tts_assets.orchestration.partitions import corpus_partitions
from tts_assets.settings import Settings

REFRESH, IMPORT, TRAIN_CODEC, RETRAIN = "refresh", "import_arrays", "train_codec", "retrain"
ALIGN, EVALUATE, PROMOTE = "align", "evaluate", "promote"
TRAIN_SPEAKERS, SPEAKER_PURITY = "train_speakers", "speaker_purity"
TRAIN_FAMILIES = "train_families"


def build_jobs(settings: Settings) -> list[UnresolvedAssetJobDefinition]:
    """Every asset is in a job; ``retrain`` and ``align`` end with who serves."""
    speakers = settings.speakers
    purity = speakers is not None and speakers.purity is not None
    return [
        *([import_arrays()] if settings.arrays.imported else []),
        *([train_speakers()] if speakers else []),
        *([speaker_purity()] if purity else []),
        *([train_families(settings)] if settings.families.recipes else []),
        *corpus_jobs(),
        define_asset_job(
            RETRAIN,
            retrained(settings),
            description="Texts, every SFT recipe, its serving model and reports, and who serves.",
        ),
        define_asset_job(
            ALIGN,
            aligned(settings),
            description="Every RLHF recipe, its serving model, reports and comparisons, and who "
            "serves.",
        ),
        define_asset_job(
            EVALUATE,
            evaluated(settings),
            description="All reports: of the current serving models, of the codec, and of the "
            "speaker encoder where there is one.",
        ),
        *([promote()] if settings.promotion else []),
    ]


def corpus_jobs() -> list[UnresolvedAssetJobDefinition]:
    """Of one corpus each."""
    return [
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
    ]


def import_arrays() -> UnresolvedAssetJobDefinition:
    return define_asset_job(
        IMPORT,
        AssetSelection.groups("arrays"),
        partitions_def=corpus_partitions,
        tags={WHOLE_CORPUS: "yes"},
        description="One corpus of [arrays.imported]: its folder -> arrays.",
    )


def train_speakers() -> UnresolvedAssetJobDefinition:
    return define_asset_job(
        TRAIN_SPEAKERS,
        AssetSelection.assets("speaker_encoder", "speaker_report"),
        description="The speaker encoder of [speakers], and its report.",
    )


def speaker_purity() -> UnresolvedAssetJobDefinition:
    return define_asset_job(
        SPEAKER_PURITY,
        AssetSelection.assets("speaker_purity"),
        partitions_def=corpus_partitions,
        description="One corpus: which utterances are not their speaker's.",
    )


def train_families(settings: Settings) -> UnresolvedAssetJobDefinition:
    return define_asset_job(
        TRAIN_FAMILIES,
        AssetSelection.groups("families")
        | _keys(report=settings.families.recipes)
        | AssetSelection.assets("evaluation_suite"),
        description="Models of other families, what they say, their reports, and the table of all.",
    )


def promote() -> UnresolvedAssetJobDefinition:
    return define_asset_job(
        PROMOTE,
        AssetSelection.groups("promotion"),
        description="For each voice: the candidate whose report beats what serves, if one does.",
    )


def evaluated(settings: Settings) -> AssetSelection:
    """Every report and what it is made with, without the models."""
    reports = AssetSelection.groups("evaluation", "codec_report")
    return reports | AssetSelection.assets("speaker_report") if settings.speakers else reports


def retrained(settings: Settings) -> AssetSelection:
    """What follows from SFT alone."""
    evaluation = settings.evaluation
    compared = [
        name for name, pair in evaluation.comparisons.items() if set(pair.models) <= {*settings.sft}
    ]
    return (
        _made_by("sft", settings.sft)
        | _served_by(settings, settings.sft)
        | _keys(texts=settings.texts, suite=evaluation.suites, comparison=compared)
        | AssetSelection.assets("evaluation_suite")
    )


def aligned(settings: Settings) -> AssetSelection:
    """What follows from RLHF."""
    compared = [
        *settings.rlhf,
        *(
            name
            for name, pair in settings.evaluation.comparisons.items()
            if set(pair.models) & {*settings.rlhf}
        ),
    ]
    return (
        _made_by("rlhf", settings.rlhf)
        | _served_by(settings, settings.rlhf)
        | _keys(comparison=compared)
    )


def _made_by(stage: str, recipes: Iterable[str]) -> AssetSelection:
    """Checkpoints, serving models, and reports on every suite."""
    reports = [["report", name] for name in recipes]
    return _keys(**{stage: recipes}, serving=recipes) | AssetSelection.key_prefixes(*reports)


def _served_by(settings: Settings, recipes: Iterable[str]) -> AssetSelection:
    """The voices that one of ``recipes`` may serve."""
    voices = [
        voice
        for voice, config in settings.promotion.items()
        if set(config.candidates) & set(recipes)
    ]
    return _keys(promoted=voices)


def _keys(**names: Iterable[str]) -> AssetSelection:
    keys = [[stage, name] for stage, named in names.items() for name in named]
    return AssetSelection.assets(*keys)


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
                ("weekly_evaluate", EVALUATE, when.evaluate),
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
