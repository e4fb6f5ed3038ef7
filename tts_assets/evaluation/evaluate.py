"""A serving model says a suite; every clip is heard and scored; a report comes out::

    torchrun --nproc-per-node 2 -m tts_assets.evaluation.evaluate run.json

Texts are spoken in fixed batches, which the ranks share out: the result has the same bytes on
any number of ranks. A batch that is done is kept, and a restart goes on with the next.

The real-time factor: seconds of work for a second of speech, below 1 faster than it is heard.

It is of the machine and of its other work as much as of the model: a fact of a report and a number
in Dagster, where it can be watched, and not in the report's files, whose bytes are the model's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tts_assets.audio_models.wer import rate_interval
from tts_assets.core.artifacts import written_aside
from tts_assets.core.program import Run, load_config
from tts_assets.evaluation.config import EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.measuring import MetricRunner
from tts_assets.evaluation.metrics.metric import Setting
from tts_assets.evaluation.metrics.registry import columns_of, not_given
from tts_assets.evaluation.report import write_report
from tts_assets.evaluation.results import SampleResult, by_category, figure, figures
from tts_assets.evaluation.speech_sources import AUDIO_FOLDER, Batch, SpeechSource, talker_of
from tts_assets.evaluation.suite import SuiteText, read_suite

NAME = "real_time_factor"


def real_time_factor(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the batches of an evaluation, with its 95 % interval over batches; none of silence.

    A batch is spoken as one: its utterances have no times of their own. What was said elsewhere
    has none at all.
    """
    timed = [record for record in records if record["elapsed"] is not None]
    pairs = [(r["elapsed"], sum(row["seconds"] for row in r["rows"])) for r in timed]
    heard = [(elapsed, seconds) for elapsed, seconds in pairs if seconds > 0]
    if not heard:
        return {}
    elapsed, seconds = zip(*heard, strict=True)
    interval = rate_interval(elapsed, seconds)
    return {
        NAME: sum(elapsed) / sum(seconds),
        f"{NAME}_low": interval.low,
        f"{NAME}_high": interval.high,
    }


def main(argv: list[str] | None = None) -> None:
    config = load_config(EvaluationProgram, argv)
    with Run(config.run_dir) as run:
        run.init_distributed()
        evaluate(config, run)


def evaluate(config: EvaluationProgram, run: Run) -> None:
    texts = read_suite(config.suite, config.evaluation.language)
    batches = in_batches(texts, config.evaluation)
    speaker = SuiteSynthesis(config, run)
    for reason in not_given(config.evaluation).values():
        run.note(f"a metric is {reason}")
    rounds = range(-(-len(batches) // run.world_size))  # all ranks make as many: they ask together
    for number in run.progress(rounds, "evaluation"):
        index = number * run.world_size + run.rank
        if index < len(batches):
            speaker.say(index, batches[index])
        if run.should_stop():
            run.stopped()
    if run.world_size > 1:
        dist.barrier()
    if run.is_main:
        records = [speaker.record(index) for index in range(len(batches))]
        run.finish(write_result(config, run, records))


def in_batches(texts: Sequence[SuiteText], config: EvaluationConfig) -> list[Batch]:
    """The whole suite, then the first texts of each category at the other temperatures."""
    groups: dict[str, list[SuiteText]] = {}
    for text in texts:
        groups.setdefault(text.category, []).append(text)
    few = [text for group in groups.values() for text in group[: config.temperature_texts]]
    asked: list[tuple[Sequence[SuiteText], tuple[int, ...], float | None]] = [
        (texts, config.seeds, None)
    ]
    asked += [(few, config.seeds[:1], temperature) for temperature in config.temperatures]
    return [
        Batch(some[start : start + config.batch_size], seeds, temperature)
        for some, seeds, temperature in asked
        for start in range(0, len(some), config.batch_size)
    ]


class SuiteSynthesis:
    """Says and scores batches of texts, and remembers in the run folder which are done."""

    def __init__(self, config: EvaluationProgram, run: Run) -> None:
        self.config = config
        self.run = run
        self._models: tuple[SpeechSource, MetricRunner] | None = None

    def models(self) -> tuple[SpeechSource, MetricRunner]:
        """Loaded when the first batch needs them: a finished run is taken over in no time."""
        if self._models is None:
            given = self.config
            talker = talker_of(given, str(self.run.device))
            setting = Setting(
                given.evaluation, given.references, given.speakers, given.characters_per_second
            )
            cache = given.cache or self.run.run_dir / "metrics.sqlite"
            self._models = talker, MetricRunner(setting, cache)
        return self._models

    def _file(self, index: int) -> Path:
        return self.run.checkpoint_dir / f"batch-{index:04d}.json"

    def record(self, index: int) -> dict[str, Any]:
        return json.loads(self._file(index).read_text())

    def say(self, index: int, batch: Batch) -> None:
        """Speak, write, read back and score one batch, unless that was done before."""
        if self._file(index).is_file():
            return
        talker, gauge = self.models()
        spoken, elapsed = talker.say(batch, self.run.result_dir / AUDIO_FOLDER)
        gauge.seconds.clear()
        rows = [row.model_dump() for row in gauge.measure(spoken)]
        record = {"rows": rows, "elapsed": elapsed, "measuring": dict(gauge.seconds)}
        with written_aside(self._file(index)) as aside:
            aside.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def write_result(
    config: EvaluationProgram, run: Run, records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Report, notebook and numbers; returns the facts of the artifact.

    What took how long is a fact and no part of the files: these have the same bytes anywhere.
    """
    said = [SampleResult.parse(row, "batch") for record in records for row in record["rows"]]
    samples = [sample for sample in said if sample.temperature is None]
    columns = columns_of(config.evaluation)
    write_report(run.result_dir, config, said)
    total = figures(samples, columns).metrics
    numbers = {
        f"{name}{part}": getattr(of, field)
        for name, of in total.items()
        for part, field in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    numbers |= real_time_factor(records)
    run.metrics(0, numbers)
    run.table("samples", table_rows(samples))
    run.note(f"measuring took, in seconds an utterance: {cost(records, len(said))}")
    words = next(column for column in columns if column.name == "wer")
    errors = {kind: figure(rows, words) for kind, rows in by_category(samples).items()}
    return {
        "recipe": config.name,
        "suite": config.suite_name,
        "texts": len({sample.id for sample in samples}),
        "wer": total["wer"].value,
        "wer_by_category": {kind: found.value for kind, found in errors.items() if found},
        "dnsmos_p808": total["dnsmos_p808"].value if "dnsmos_p808" in total else None,
        "speaker_similarity": (
            total["speaker_similarity"].value if "speaker_similarity" in total else None
        ),
        "metrics": numbers,
    }


def cost(records: Sequence[dict[str, Any]], utterances: int) -> str:
    """What each metric took; what the cache knew took nothing."""
    spent: defaultdict[str, float] = defaultdict(float)
    for record in records:
        for name, seconds in record["measuring"].items():
            spent[name] += seconds
    return ", ".join(f"{name} {seconds / utterances:.3f}" for name, seconds in spent.items())


def table_rows(samples: Sequence[SampleResult]) -> list[dict[str, Any]]:
    """A row a synthesis for W&B: what was said and heard, and every value."""
    kept = {"id", "category", "text", "heard", "seed", "seconds"}
    return [sample.model_dump(include=kept) | sample.values for sample in samples]


if __name__ == "__main__":
    main()
