"""Program: synthesize a suite with a serving model, transcribe and score it, write a report::

    torchrun --nproc-per-node 2 -m tts_assets.evaluation.evaluate run.json

The ranks share fixed batches of texts, so that the result has the same bytes on any number of
ranks. Each finished batch is a file in ``checkpoints/``; a restart continues with the next one.

The real-time factor (RTF) is computing time divided by the duration of the speech: below 1 the
model is faster than real time. The latency is the time until the first audio of a text that is
streamed alone, one text of each batch. Both depend on the machine and its load as much as on the
model. They are therefore facts of the report, which Dagster plots and which the page reads from the
manifest where it is served, and not part of the report's files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tts_assets.audio_models.wer import rate_interval
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.program import Run, load_config, one_thread
from tts_assets.evaluation.config import TEMPERATURE_TEXTS, EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.metric_runner import (
    AUDIO_FOLDER,
    Batch,
    MetricRunner,
    ModelSource,
    RecordedSource,
    SpeechSource,
)
from tts_assets.evaluation.metrics import Setting, columns_of, not_given
from tts_assets.evaluation.report import write_report
from tts_assets.evaluation.results import SampleResult, by_category, figure, figures
from tts_assets.evaluation.suite import SuiteText, read_suite
from tts_assets.serving.synthesis import Synthesizer

RTF, LATENCY = "real_time_factor", "first_audio_seconds"
Record = dict[str, Any]
"""A finished batch: ``rows`` of results, seconds ``elapsed`` for synthesis and until the
``first_audio`` (None if unknown), and seconds of ``measuring`` by metric."""


def main(argv: list[str] | None = None) -> None:
    """Evaluate all batches that this rank has to; rank 0 then writes the report."""
    config = load_config(EvaluationProgram, argv)
    with one_thread(), Run(config.run_dir) as run:
        run.init_distributed()
        for reason in not_given(config.evaluation).values():
            run.note(f"a metric is {reason}")
        texts = read_suite(config.suite, config.evaluation.language)
        batches = in_batches(texts, config.evaluation)
        evaluator = BatchEvaluator(
            open_source=lambda: speech_source(config, str(run.device)),
            open_metrics=lambda: metric_runner(config),
            records=run.checkpoint_dir,
            audio=run.result_dir / AUDIO_FOLDER,
        )
        evaluate(run, evaluator, batches)
        if run.is_main:
            records = [evaluator.record(index) for index in range(len(batches))]
            run.finish(write_result(config, run, records))


def in_batches(texts: Sequence[SuiteText], config: EvaluationConfig) -> list[Batch]:
    """The whole suite, then the first texts of each category at the other temperatures."""
    groups: dict[str, list[SuiteText]] = {}
    for text in texts:
        groups.setdefault(text.category, []).append(text)
    few = [text for group in groups.values() for text in group[:TEMPERATURE_TEXTS]]
    parts: list[tuple[Sequence[SuiteText], tuple[int, ...], float | None]] = [
        (texts, config.seeds, None)
    ]
    parts += [(few, config.seeds[:1], temperature) for temperature in config.temperatures]
    return [
        Batch(part[start : start + config.batch_size], seeds, temperature)
        for part, seeds, temperature in parts
        for start in range(0, len(part), config.batch_size)
    ]


def speech_source(config: EvaluationProgram, device: str) -> SpeechSource:
    """The serving model on ``device``, or the folder of clips."""
    if config.synthesized is not None:
        return RecordedSource(config.synthesized)
    assert config.serving_model is not None  # the configuration has one of the two
    return ModelSource(Synthesizer.open(config.serving_model, device=device))


def metric_runner(config: EvaluationProgram) -> MetricRunner:
    """The metrics, with their cache."""
    setting = Setting(
        config.evaluation, config.references, config.speakers, config.characters_per_second
    )
    return MetricRunner(setting, config.measurements)


class BatchEvaluator:
    """Synthesizes and scores batches, and writes each finished one to a file in ``records``.

    Models are loaded when the first batch needs them: a finished run loads none.
    """

    def __init__(
        self,
        open_source: Callable[[], SpeechSource],
        open_metrics: Callable[[], MetricRunner],
        records: Path,
        audio: Path,
    ) -> None:
        self.open_source = open_source
        self.open_metrics = open_metrics
        self.records = records
        self.audio = audio

    @cached_property
    def source(self) -> SpeechSource:
        """The source of the speech."""
        return self.open_source()

    @cached_property
    def metrics(self) -> MetricRunner:
        """The ASR model and the metrics."""
        return self.open_metrics()

    def _file(self, index: int) -> Path:
        return self.records / f"batch-{index:04d}.json"

    def record(self, index: int) -> Record:
        """The record of a finished batch."""
        return json.loads(self._file(index).read_text())

    def evaluate(self, index: int, batch: Batch) -> None:
        """Synthesize and score one batch, unless its file exists."""
        if self._file(index).is_file():
            return
        utterances, elapsed = self.source.synthesize(batch, self.audio)
        self.metrics.seconds.clear()
        rows = [row.model_dump() for row in self.metrics.measure(utterances)]
        record = {"rows": rows, "elapsed": elapsed, "measuring": dict(self.metrics.seconds)}
        if batch.temperature is None:
            record["first_audio"] = self.source.first_audio(batch)
        with atomic_write(self._file(index)) as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def evaluate(run: Run, evaluator: BatchEvaluator, batches: Sequence[Batch]) -> None:
    """Evaluate every ``world_size``-th batch, and wait until all ranks are done."""
    # All ranks have the same number of rounds: they agree on a stop after each round.
    rounds = range(-(-len(batches) // run.world_size))
    for number in run.progress(rounds, "evaluation"):
        index = number * run.world_size + run.rank
        if index < len(batches):
            evaluator.evaluate(index, batches[index])
        if run.should_stop():
            run.stopped()
    if run.world_size > 1:
        dist.barrier()


def write_result(config: EvaluationProgram, run: Run, records: Sequence[Record]) -> dict[str, Any]:
    """Write the report and log its numbers; returns the facts of the artifact."""
    results = [SampleResult.parse(row, "batch") for record in records for row in record["rows"]]
    samples = [sample for sample in results if sample.temperature is None]
    columns = columns_of(config.evaluation)
    write_report(run.result_dir, config, results)
    total = figures(samples, columns).metrics
    numbers = {
        f"{name}{suffix}": getattr(found, field)
        for name, found in total.items()
        for suffix, field in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    numbers |= real_time_factor(records) | latency(records)
    run.metrics(0, numbers)
    run.table("samples", table_rows(samples))
    run.note(f"computing time of metrics, seconds per utterance: {cost(records, len(results))}")
    by_kind = {
        kind: figure(rows, column)
        for kind, rows in by_category(samples).items()
        for column in columns
        if column.name == "wer"
    }
    return {
        "recipe": config.name,
        "suite": config.suite_name,
        "texts": len({sample.id for sample in samples}),
        "wer": total["wer"].value if "wer" in total else None,
        "wer_by_category": {kind: found.value for kind, found in by_kind.items() if found},
        "dnsmos_p808": total["dnsmos_p808"].value if "dnsmos_p808" in total else None,
        "speaker_similarity": (
            total["speaker_similarity"].value if "speaker_similarity" in total else None
        ),
        "metrics": numbers,
    }


def real_time_factor(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The RTF with its 95 % interval over batches; empty without speech or without times.

    A batch is synthesized as a whole, so single utterances have no computing time.
    """
    timed = [record for record in records if record["elapsed"] is not None]
    pairs = [(r["elapsed"], sum(row["seconds"] for row in r["rows"])) for r in timed]
    with_speech = [(elapsed, seconds) for elapsed, seconds in pairs if seconds > 0]
    if not with_speech:
        return {}
    elapsed, seconds = zip(*with_speech, strict=True)
    interval = rate_interval(elapsed, seconds)
    return {
        RTF: sum(elapsed) / sum(seconds),
        f"{RTF}_low": interval.low,
        f"{RTF}_high": interval.high,
    }


def latency(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean seconds until the first audio, with its 95 % interval over batches, if measured."""
    found = [seconds for record in records if (seconds := record.get("first_audio")) is not None]
    if not found:
        return {}
    interval = rate_interval(found, [1.0] * len(found))
    mean = sum(found) / len(found)
    return {LATENCY: mean, f"{LATENCY}_low": interval.low, f"{LATENCY}_high": interval.high}


def cost(records: Sequence[Record], utterances: int) -> str:
    """The computing time of each metric per utterance, as text."""
    spent: defaultdict[str, float] = defaultdict(float)
    for record in records:
        for name, seconds in record["measuring"].items():
            spent[name] += seconds
    return ", ".join(f"{name} {seconds / utterances:.3f}" for name, seconds in spent.items())


def table_rows(samples: Sequence[SampleResult]) -> list[dict[str, Any]]:
    """One row for each synthesis for W&B: text, transcript, and every value."""
    kept = {"id", "category", "text", "heard", "seed", "seconds"}
    return [sample.model_dump(include=kept) | sample.values for sample in samples]


if __name__ == "__main__":
    main()
