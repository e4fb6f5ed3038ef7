"""A model of another family says a suite; what it said is a folder that reports read::

python -m tts_assets.external_models.speak run.json
"""

from __future__ import annotations

import json
from pathlib import Path

from tts_assets.core.audio import read_clip
from tts_assets.core.program import Run, load_config
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.speech_sources import AUDIO_FOLDER, Synthesis, clip_name, write_sayings
from tts_assets.evaluation.suite import SuiteText, read_suite
from tts_assets.external_models.config import CLONING, ExternalSynthesisProgram
from tts_assets.external_models.coqui.job import Line, SpeakJob
from tts_assets.external_models.driver import drive


def main(argv: list[str] | None = None) -> None:
    config = load_config(ExternalSynthesisProgram, argv)
    with Run(config.run_dir) as run:
        speak(config, run)


def speak(config: ExternalSynthesisProgram, run: Run) -> None:
    """Say every text with every seed, then publish FLAC that says what made it."""
    texts = read_suite(config.suite, config.language)
    asked = [(text, seed) for text in texts for seed in config.seeds]
    folder = run.checkpoint_dir / "said"
    files = [folder / f"{number:05d}.wav" for number in range(len(asked))]
    lines = [
        Line(text.text, text.language, seed, str(file), voice(text, config))
        for (text, seed), file in zip(asked, files, strict=True)
    ]
    job = SpeakJob(config.family, str(config.model), str(config.run_dir / "events.jsonl"), lines)
    drive(run, config.python, job, "speaking", len(lines))
    sayings = [
        publish(text, seed, file, run.result_dir / AUDIO_FOLDER, config)
        for (text, seed), file in zip(asked, files, strict=True)
    ]
    write_sayings(run.result_dir, sayings)
    run.finish(
        {
            "recipe": config.name,
            "suite": config.suite_name,
            "texts": len(texts),
            "syntheses": len(sayings),
            "silent": sum(saying.audio is None for saying in sayings),
        }
    )


def voice(text: SuiteText, config: ExternalSynthesisProgram) -> list[str]:
    """The text's own prompt where the family can imitate one; else the model's clips."""
    given = config.family in CLONING and text.prompt_wav is not None
    return [str(text.prompt_wav)] if given else []


def publish(
    text: SuiteText, seed: int, file: Path, folder: Path, config: ExternalSynthesisProgram
) -> Synthesis:
    """FLAC that says what made it; nothing where nothing was said."""
    known = json.loads(file.with_suffix(".json").read_text())
    name = None
    if known["samples"]:
        name = clip_name(text, seed)
        clip = read_clip(file)
        write_flac(folder / name, clip.wave, clip.rate, config.provenance)
    return Synthesis(id=text.id, seed=seed, audio=name, ended=known["ended"])


if __name__ == "__main__":
    main()
