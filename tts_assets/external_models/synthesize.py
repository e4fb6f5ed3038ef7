"""Program: synthesize a suite with an external model, into a folder that reports read::

python -m tts_assets.external_models.synthesize run.json
"""

from __future__ import annotations

import json
from pathlib import Path

from tts_assets.audio_models.watermark import mark
from tts_assets.core.audio import read_clip
from tts_assets.core.program import Run, load_config
from tts_assets.evaluation.metric_runner import (
    AUDIO_FOLDER,
    Synthesis,
    clip_name,
    write_syntheses,
)
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.suite import SuiteText, read_suite
from tts_assets.external_models.config import CLONING, ExternalSynthesisProgram
from tts_assets.external_models.coqui import Line, SynthesisJob
from tts_assets.external_models.environment import run_job


def main(argv: list[str] | None = None) -> None:
    """Synthesize every text with every seed, then publish FLAC files with their provenance."""
    config = load_config(ExternalSynthesisProgram, argv)
    with Run(config.run_dir) as run:
        texts = read_suite(config.suite, config.language)
        requests = [(text, seed) for text in texts for seed in config.seeds]
        folder = run.checkpoint_dir / "said"
        files = [folder / f"{number:05d}.wav" for number in range(len(requests))]
        lines = [
            Line(text.text, text.language, seed, str(file), voice_clips(text, config))
            for (text, seed), file in zip(requests, files, strict=True)
        ]
        events = str(config.run_dir / "events.jsonl")
        job = SynthesisJob(config.family, str(config.model), events, lines)
        run_job(run, config.python, job, "synthesis", len(lines))
        syntheses = [
            publish(text, seed, file, run.result_dir / AUDIO_FOLDER, config.provenance)
            for (text, seed), file in zip(requests, files, strict=True)
        ]
        write_syntheses(run.result_dir, syntheses)
        run.finish(
            {
                "recipe": config.name,
                "suite": config.suite_name,
                "texts": len(texts),
                "syntheses": len(syntheses),
                "silent": sum(synthesis.audio is None for synthesis in syntheses),
            }
        )


def voice_clips(text: SuiteText, config: ExternalSynthesisProgram) -> list[str]:
    """The text's voice prompt if the model can imitate it; empty for the model's own clips."""
    given = config.family in CLONING and text.prompt_wav is not None
    return [str(text.prompt_wav)] if given else []


def publish(text: SuiteText, seed: int, file: Path, folder: Path, provenance: str) -> Synthesis:
    """Convert a WAV file of the other environment to FLAC; no file if it has no samples.

    The clip gets the watermark.
    """
    known = json.loads(file.with_suffix(".json").read_text())
    name = None
    if known["samples"]:
        name = clip_name(text, seed)
        clip = read_clip(file)
        write_flac(folder / name, mark(clip.wave, clip.rate), clip.rate, provenance)
    return Synthesis(id=text.id, seed=seed, audio=name, ended=known["ended"])


if __name__ == "__main__":
    main()
