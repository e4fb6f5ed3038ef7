"""The asset jobs. ``refresh`` is partitioned by corpus, so that it backfills; the rest is not."""

from __future__ import annotations

from dagster import AssetSelection, ScheduleDefinition, define_asset_job
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from sensors.conditions import WHOLE_CORPUS
from tts_assets.partitions import corpus_partitions
from tts_assets.settings import Settings

REFRESH, IMPORT, TRAIN_CODEC, RETRAIN = "refresh", "import_arrays", "train_codec", "retrain"
ALIGN, EVALUATE, TRAIN_SPEAKERS = "align", "evaluate", "train_speakers"


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
    train_speakers = define_asset_job(
        TRAIN_SPEAKERS,
        AssetSelection.assets("speaker_encoder", "speaker_report"),
        description="The speaker encoder of [speakers], and its report.",
    )
    return [
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
            AssetSelection.groups("corpora") | AssetSelection.assets("codec"),
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
    ]


def build_schedules(jobs: list[UnresolvedAssetJobDefinition]) -> list[ScheduleDefinition]:
    """Weekly retraining, off until somebody turns it on: unchanged inputs cost nothing."""
    retrain = next(job for job in jobs if job.name == RETRAIN)
    return [ScheduleDefinition(name="weekly_retrain", job=retrain, cron_schedule="0 2 * * 6")]


def _keys(**recipes: list[str]) -> AssetSelection:
    keys = [[stage, name] for stage, names in recipes.items() for name in names]
    return AssetSelection.assets(*keys)
