"""Whole jobs in the instance of the UI: the demo, a codec, and a base model.

    python -m jobs.demo          runs refresh (once per corpus), retrain and align
    python -m jobs.demo codec    runs prepare (once per corpus), and train_codec
                                 (profile codec_demo)
    python -m jobs.demo base     runs prepare and refresh (once per corpus), and retrain
                                 (profile base)

``make demo``, ``make codec-demo`` and ``make base`` start them, and ``tts-assets demo`` the first.
One line is printed per finished asset, and a progress bar. The demo ends with the metrics of all
reports and the paths of the listening pages. Assets that exist are not built again, and interrupted
programs resume.

The codec demo trains the decoder of the demo's codec on, in an hour and a half of one core; it
makes synthetic speech of three speakers first. The result is another version of the asset
``codec``; ``make demo`` afterwards returns to the vendored checkpoint. ``make base`` trains a base
model on synthetic speech, in hours on two cores.
"""

from __future__ import annotations

import json
import sys
import time

from dagster import DagsterInstance

from jobs.asset_jobs import ALIGN, IMPORT, PREPARE, REFRESH, RETRAIN, TRAIN_CODEC
from jobs.foreground import Request, RequestError, register_corpora, run
from tts_assets.core.artifacts import ArtifactError, ArtifactStore, Handle
from tts_assets.core.config import ConfigError
from tts_assets.evaluation.results import COMPARISON_PAGE, FIGURES_FILE
from tts_assets.settings import Settings, load_settings


def main(arguments: list[str]) -> None:
    """Run the demo, or what the argument names."""
    modes = {"demo": run_demo, "codec": run_codec_demo, "base": run_base}
    mode = "".join(arguments) or "demo"
    if mode not in modes:
        sys.exit(f"usage: python -m jobs.demo [{' | '.join(modes)}]")
    with DagsterInstance.get() as instance:
        modes[mode](instance, load_settings())


def run_demo(instance: DagsterInstance, settings: Settings) -> None:
    """All corpora, SFT and RLHF recipes and their reports."""
    started = time.monotonic()
    for corpus in register_corpora(instance, settings):
        run(instance, settings, Request(REFRESH, corpus=corpus))
    for corpus in settings.arrays.imported:
        run(instance, settings, Request(IMPORT, corpus=corpus))
    run(instance, settings, Request(RETRAIN))
    if settings.aligned:
        run(instance, settings, Request(ALIGN))
    print(f"\nfinished in {(time.monotonic() - started) / 60:.1f} minutes\n")
    print_summary(settings)


def run_codec_demo(instance: DagsterInstance, settings: Settings) -> None:
    """The codec of a profile with ``[codec.train]``."""
    if settings.codec.train is None:
        sys.exit("this profile has no [codec.train]; run: make codec-demo")
    register_corpora(instance, settings)
    for corpus in settings.codec.train.corpora:  # the codec needs the samples of all of them
        run(instance, settings, Request(PREPARE, corpus=corpus))
    run(instance, settings, Request(TRAIN_CODEC, corpus=next(iter(settings.codec.train.corpora))))
    codec = ArtifactStore(settings.storage).current("codec")
    print(f"\ncodec: {codec.path}\nmeasure it with: benchmarks/codec_quality.py --codec …")


def run_base(instance: DagsterInstance, settings: Settings) -> None:
    """The base model of the profile ``base``."""
    for corpus in register_corpora(instance, settings):
        run(instance, settings, Request(PREPARE, corpus=corpus))
        run(instance, settings, Request(REFRESH, corpus=corpus))
    run(instance, settings, Request(RETRAIN))
    print_summary(settings)


def print_summary(settings: Settings) -> None:
    """Print the metrics of all reports and comparisons, and the paths of their pages."""
    store = ArtifactStore(settings.storage)
    for recipe in settings.stage_of:
        report = store.current(f"report/{recipe}")
        print(f"{recipe}: WER by category, transcribed by Whisper")
        for category, wer in report.facts.wer_by_category.items():
            print(f"  {category:12} {wer:7.1%}")
        print(f"  listen: {report.path / 'report.html'}")
    for recipe in settings.aligned:
        print(describe_comparison(store.current(f"comparison/{recipe}")))
    print(
        f"\nartifacts: {settings.storage}\nlineage:   tts-assets ui, then http://127.0.0.1:3000/assets"
    )


def describe_comparison(comparison: Handle) -> str:
    """WER of both models by category, with the interval of the difference."""
    facts = comparison.facts
    categories = json.loads((comparison.path / FIGURES_FILE).read_text())["categories"]
    lines = [f"{facts.baseline} -> {facts.candidate}: change of the WER, interval"]
    for name, row in categories.items():
        lines.append(
            f"  {name:12} {row['baseline']:7.1%} -> {row['candidate']:6.1%}  "
            f"{row['difference']:+7.1%} ({row['low']:+.1%} to {row['high']:+.1%})"
        )
    return "\n".join([*lines, f"  listen: {comparison.path / COMPARISON_PAGE}"])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ArtifactError, ConfigError, RequestError) as error:
        sys.exit(str(error))
