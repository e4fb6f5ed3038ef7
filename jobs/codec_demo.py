"""``make codec-demo``: the embedded profile's codec, trained again from nothing.

An hour and a half on two cores; interrupted, it goes on. The profile ``codec_demo`` puts a training
recipe where the embedded one names the vendored checkpoint; the trained codec is another version of
the asset ``codec``, and ``make demo`` afterwards returns to the vendored one.
"""

from __future__ import annotations

from dagster import DagsterInstance

from jobs.asset_jobs import TRAIN_CODEC
from jobs.demo import register_corpora, run_job
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.settings import load_settings


def main() -> None:
    settings = load_settings()
    if settings.codec.train is None:
        raise SystemExit("this profile names a checkpoint; run it as: make codec-demo")
    with DagsterInstance.get() as instance:
        register_corpora(instance, settings)
        for corpus in settings.codec.train.corpora:
            run_job(instance, settings, TRAIN_CODEC, {"dagster/partition": corpus})
    codec = ArtifactStore(settings.storage).current("codec")
    print(
        f"\nthe codec lies in {codec.path}; how good it is: benchmarks/codec_quality.py --codec …"
    )


if __name__ == "__main__":
    main()
