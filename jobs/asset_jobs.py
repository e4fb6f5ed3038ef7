"""Asset jobs and their schedules. Jobs of a single corpus are partitioned by corpus."""

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

from tts_assets.orchestration.dependencies import WHOLE_CORPUS, corpus_partitions
from tts_assets.settings import Settings

PREPARE, REFRESH, IMPORT = "prepare", "refresh", "import_arrays"
TRAIN_CODEC, RETRAIN = "train_codec", "retrain"
ALIGN, EVALUATE, PROMOTE = "align", "evaluate", "promote"
TRAIN_SPEAKERS, CHECK_SPEAKERS = "train_speakers", "check_speakers"
TRAIN_FAMILIES = "train_families"
SCRUB, PRUNE = "scrub", "prune"  # jobs/storage.py: they build nothing


def build_jobs(settings: Settings) -> list[UnresolvedAssetJobDefinition]:
    """All jobs of the settings. Each asset is in at least one job."""
    speakers = settings.speakers
    purity = speakers is not None and speakers.purity is not None
    return [
        *([import_arrays()] if settings.arrays.imported else []),
        *([train_speakers()] if speakers else []),
        *([check_speakers()] if purity else []),
        *([train_families(settings)] if settings.external_models.recipes else []),
        *corpus_jobs(),
        define_asset_job(
            RETRAIN,
            retrained(settings),
            description="Texts, all SFT recipes, their serving models and reports, and promotions.",
        ),
        define_asset_job(
            ALIGN,
            aligned(settings),
            description="RLHF and DPO recipes, their serving models and reports, and promotions.",
        ),
        define_asset_job(
            EVALUATE,
            evaluated(settings),
            description="All reports: of serving models, of the codec, and of the speaker encoder.",
        ),
        *([promote()] if settings.promotion else []),
    ]


def corpus_jobs() -> list[UnresolvedAssetJobDefinition]:
    """Jobs of one corpus: data, and codec training."""
    return [
        define_asset_job(
            PREPARE,
            AssetSelection.groups("corpora"),
            partitions_def=corpus_partitions,
            description="One corpus: recordings -> samples, without a codec.",
        ),
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
            description="The codec and its training data.",
        ),
    ]


def import_arrays() -> UnresolvedAssetJobDefinition:
    """The job of ``[arrays.imported]``."""
    return define_asset_job(
        IMPORT,
        AssetSelection.groups("arrays"),
        partitions_def=corpus_partitions,
        tags={WHOLE_CORPUS: "yes"},
        description="One corpus of [arrays.imported]: its folder -> arrays.",
    )


def train_speakers() -> UnresolvedAssetJobDefinition:
    """The job of the speaker encoder."""
    return define_asset_job(
        TRAIN_SPEAKERS,
        AssetSelection.assets("speaker_encoder", "speaker_report"),
        description="The speaker encoder of [speakers], and its report.",
    )


def check_speakers() -> UnresolvedAssetJobDefinition:
    """The job that checks speaker labels of a corpus."""
    return define_asset_job(
        CHECK_SPEAKERS,
        AssetSelection.assets("speaker_purity"),
        partitions_def=corpus_partitions,
        description="One corpus: utterances that do not match their speaker label.",
    )


def train_families(settings: Settings) -> UnresolvedAssetJobDefinition:
    """The job of the external models."""
    return define_asset_job(
        TRAIN_FAMILIES,
        AssetSelection.groups("external_models")
        | AssetSelection.key_prefixes("spoken")
        | _keys(report=settings.external_models.recipes)
        | AssetSelection.assets("evaluation_suite"),
        description="External models, their syntheses and reports, and the table of all models.",
    )


def promote() -> UnresolvedAssetJobDefinition:
    """The job of all promotions."""
    return define_asset_job(
        PROMOTE,
        AssetSelection.groups("promotion"),
        description="For each voice: the candidate with a better report is promoted.",
    )


def evaluated(settings: Settings) -> AssetSelection:
    """All reports and their inputs, except the models."""
    reports: AssetSelection = AssetSelection.groups(
        "suites", "comparisons", "effects", "codec_report"
    )
    reports |= AssetSelection.key_prefixes("report")
    return reports | AssetSelection.assets("speaker_report") if settings.speakers else reports


def retrained(settings: Settings) -> AssetSelection:
    """SFT recipes and everything downstream that needs no RLHF or DPO recipe."""
    evaluation = settings.evaluation
    compared = [
        name for name, pair in evaluation.comparisons.items() if set(pair.models) <= {*settings.sft}
    ]
    return (
        _made_by("sft", settings.sft)
        | _promoted_from(settings, settings.sft)
        | _keys(texts=settings.texts, suite=evaluation.suites, comparison=compared)
        | AssetSelection.assets("evaluation_suite")
    )


def aligned(settings: Settings) -> AssetSelection:
    """RLHF and DPO recipes with their preferences, and everything downstream."""
    compared = [
        *settings.aligned,
        *(
            name
            for name, pair in settings.evaluation.comparisons.items()
            if set(pair.models) & {*settings.aligned}
        ),
    ]
    return (
        _made_by("rlhf", settings.rlhf)
        | _made_by("dpo", settings.dpo)
        | _promoted_from(settings, settings.aligned)
        | _keys(comparison=compared, preferences=settings.preferences)
    )


def _made_by(stage: str, recipes: Iterable[str]) -> AssetSelection:
    """Checkpoints, serving models, and reports of ``recipes`` on all suites."""
    reports = [["report", name] for name in recipes]
    return _keys(**{stage: recipes}, serving=recipes) | AssetSelection.key_prefixes(*reports)


def _promoted_from(settings: Settings, recipes: Iterable[str]) -> AssetSelection:
    """The promotions with one of ``recipes`` as a candidate, and the effect of their training.

    An effect that needs reports of further recipes, beside SFT recipes, is left out.
    """
    voices = [
        voice
        for voice, config in settings.promotion.items()
        if set(config.candidates) & set(recipes)
    ]
    known = {*settings.sft, *recipes}
    effects = [voice for voice in voices if known >= {*settings.effects.get(voice, {"": ""})}]
    return _keys(promoted=voices, effect=effects)


def _keys(**names: Iterable[str]) -> AssetSelection:
    keys = [[stage, name] for stage, named in names.items() for name in named]
    return AssetSelection.assets(*keys)


def build_schedules(
    jobs: list[UnresolvedAssetJobDefinition], settings: Settings
) -> list[ScheduleDefinition]:
    """All schedules. They are off by default. Unchanged assets are skipped at no cost."""
    named = {job.name: job for job in jobs}
    when = settings.schedules
    return [
        nightly_refresh(named[REFRESH], settings),
        *(
            ScheduleDefinition(
                name=name,
                job=named[job],
                cron_schedule=cron,
                execution_timezone=when.timezone,
                description=about,
            )
            for name, job, cron, about in (
                ("weekly_retrain", RETRAIN, when.retrain, "Trains recipes whose data changed."),
                ("weekly_evaluate", EVALUATE, when.evaluate, "Makes reports of changed models."),
                ("monthly_align", ALIGN, when.align, "RLHF of recipes whose base changed."),
            )
        ),
    ]


def nightly_refresh(job: UnresolvedAssetJobDefinition, settings: Settings) -> ScheduleDefinition:
    """The schedule of ``refresh``: one run per corpus that is a partition and has recordings."""

    @schedule(
        name="nightly_refresh",
        job=job,
        cron_schedule=settings.schedules.refresh,
        execution_timezone=settings.schedules.timezone,
        description="Reads every corpus again; unchanged assets are skipped.",
    )
    def refresh_all(context: ScheduleEvaluationContext) -> Iterator[RunRequest | SkipReason]:
        found, problems = settings.all_corpora.find()
        for problem in problems:
            context.log.warning(problem)
        assert corpus_partitions.name is not None
        known = context.instance.get_dynamic_partitions(corpus_partitions.name)
        corpora = [name for name in known if name in found]
        for corpus in corpora:
            # Several requests of one tick need run keys: corpus and date.
            key = f"{corpus}:{context.scheduled_execution_time.isoformat()}"
            yield RunRequest(run_key=key, partition_key=corpus)
        if not corpora:
            yield SkipReason("no corpus is a partition yet: switch on the sensor new_corpora")

    return refresh_all
