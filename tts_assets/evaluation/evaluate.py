"""A serving model says a suite; every clip is heard and scored; a report comes out::

    torchrun --nproc-per-node 2 -m tts_assets.evaluation.evaluate run.json

Texts are spoken in fixed batches, which the ranks share out: the result has the same bytes on
any number of ranks. A batch that is done is kept, and a restart goes on with the next.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tts_assets.artifacts import written_aside
from tts_assets.evaluation.config import EvaluationProgram
from tts_assets.evaluation.report import write_report
from tts_assets.evaluation.results import SampleResult, by_category, figures
from tts_assets.evaluation.scoring import Scorer, write_flac
from tts_assets.evaluation.suite import SuiteText, read_suite
from tts_assets.program import Run, load_config
from tts_assets.serving.synthesis import Line, Synthesizer


def main(argv: list[str] | None = None) -> None:
    config = load_config(EvaluationProgram, argv)
    with Run(config.run_dir) as run:
        run.init_distributed()
        evaluate(config, run)


def evaluate(config: EvaluationProgram, run: Run) -> None:
    texts = read_suite(config.suite, config.evaluation.language)
    batches = in_batches(texts, config.evaluation.batch_size)
    speaker = Speaker(config, run)
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
        samples = [s for index in range(len(batches)) for s in speaker.said(index)]
        run.finish(write_result(config, samples, run.result_dir))


def in_batches(texts: Sequence[SuiteText], size: int) -> list[Sequence[SuiteText]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


class Speaker:
    """Says and scores batches of texts, and remembers in the run folder which are done."""

    def __init__(self, config: EvaluationProgram, run: Run) -> None:
        self.config = config
        self.run = run
        self._models: tuple[Synthesizer, Scorer] | None = None

    def models(self) -> tuple[Synthesizer, Scorer]:
        """Loaded when the first batch needs them: a finished run is taken over in no time."""
        if self._models is None:
            device = str(self.run.device)
            synthesizer = Synthesizer.open(self.config.serving_model, device=device)
            scorer = Scorer(self.config.evaluation, self.config.references)
            self._models = synthesizer, scorer
        return self._models

    def record(self, index: int) -> Path:
        return self.run.checkpoint_dir / f"batch-{index:04d}.json"

    def said(self, index: int) -> list[SampleResult]:
        path = self.record(index)
        return [SampleResult.parse(row, str(path)) for row in json.loads(path.read_text())]

    def say(self, index: int, texts: Sequence[SuiteText]) -> None:
        """Speak, write, read back and score one batch, unless that was done before."""
        if self.record(index).is_file():
            return
        evaluation = self.config.evaluation
        synthesizer, scorer = self.models()
        voice = synthesizer.voice(evaluation.voice) if evaluation.voice else None
        asked = [(text, seed) for text in texts for seed in evaluation.seeds]
        lines = [Line(text.text, voice, seed) for text, seed in asked]
        rows = []
        spoken = synthesizer.say(lines, evaluation.sampling)
        for (text, seed), speech in zip(asked, spoken, strict=True):
            audio = None
            if len(speech.wave):
                audio = self.run.result_dir / "audio" / f"{text.id}-{seed}.flac"
                write_flac(audio, speech.wave, synthesizer.sample_rate)
            rows.append(scorer.score(text, seed, audio, speech.ended).model_dump())
        with written_aside(self.record(index)) as aside:
            aside.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def write_result(
    config: EvaluationProgram, samples: Sequence[SampleResult], folder: Path
) -> dict[str, Any]:
    """Report, notebook and numbers; returns the facts of the artifact."""
    write_report(folder, config.name, samples, config.evaluation, config.lineage)
    total = figures(samples)
    return {
        "recipe": config.name,
        "texts": total.texts,
        "wer": total.wer,
        "wer_by_category": {
            category: figures(rows).wer for category, rows in by_category(samples).items()
        },
        "dnsmos_p808": total.dnsmos_p808,
        "speaker_similarity": total.speaker_similarity,
    }


if __name__ == "__main__":
    main()
