"""Filtering a million samples: the filter program against a plain Python loop.

    python benchmarks/filter_samples.py [--samples 1000000] [--rounds 3]

writes seeded samples (one to three texts of ``examples/corpora`` each) and filters them with both
implementations in alternating child processes. The kept and rejected lines must be equal. The time
is that of the filtering alone, without the start of Python. The memory is the peak resident memory
of the child, which includes mapped pages of the input file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tts_assets.corpora.config import FilterConfig, TextConfig
from tts_assets.corpora.filter import MAX_CHARACTERS_PER_SECOND, FilterProgram
from tts_assets.normalization.front_end import unread

CORPUS = Path(__file__).resolve().parents[1] / "examples/corpora/asterisk_en/samples.jsonl"
FILTERS = FilterConfig(
    allowed_languages=("en",), max_duration=30, min_dnsmos=2.0, min_characters_per_second=0.5
)
DEFAULTS: dict[str, Any] = {
    "id": "",
    "wav_path": "",
    "transcript": "",
    "language": "unknown",
    "duration": -1.0,
    "sample_rate": -1,
    "speaker_id": "",
    "emotion": "",
    "style": "",
    "voice_description": "",
    "sound_effect": "",
    "dnsmos_mos_ovr": 0.0,
    "dataset_name": "",
    "original_data": {},
}


def write_input(path: Path, count: int) -> None:
    """Write ``count`` random samples."""
    prompts = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    texts = [prompt["transcript"] for prompt in prompts]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as lines:
        for number in range(count):
            sample = {
                "id": f"{draw.getrandbits(64):016x}",
                "wav_path": f"/data/corpus/audio/{number:07d}.wav",
                "transcript": " ".join(draw.choices(texts, k=draw.randint(1, 3))),
                "language": draw.choice(("en", "en", "en", "en-GB", "de")),
                "duration": round(draw.uniform(0.05, 35), 3),
                "sample_rate": draw.choice((4000, 16_000, 24_000, 44_100)),
                "speaker_id": f"speaker_{draw.randrange(500)}",
                "dnsmos_mos_ovr": round(draw.uniform(1.5, 4.5), 2),
                "original_data": draw.choice(prompts)["original_data"],
            }
            lines.write(json.dumps(sample, ensure_ascii=False) + "\n")


def plain_loop(program: FilterProgram, result: Path) -> None:
    """The plain implementation: one line at a time."""
    from tts_assets.normalization.front_end import is_spoken, normalize

    def normalized(text: str, language: str) -> str:
        if program.text.normalizer == "none":
            return text if is_spoken(text) else ""
        return normalize(text, language)

    config = program.filters
    with (
        program.samples[0].open(encoding="utf-8") as lines,
        (result / "kept.jsonl").open("w", encoding="utf-8") as kept,
        (result / "rejected.jsonl").open("w", encoding="utf-8") as rejected,
    ):
        for line in lines:
            sample = {**DEFAULTS, **json.loads(line)}
            rejection = reject(sample, config, normalized, program.text.normalizer != "none")
            if rejection is None:
                kept.write(json.dumps(sample, ensure_ascii=False) + "\n")
            else:
                figures = dict(zip(("reason", "value", "limit"), rejection, strict=True))
                rejected.write(json.dumps({**sample, **figures}, ensure_ascii=False) + "\n")


def reject(
    sample: dict[str, Any], config: FilterConfig, normalized: Any, check_signs: bool
) -> tuple[Any, ...] | None:
    """Reason, value and limit of a rejection, or None. Normalizes the transcript."""
    text, language, duration = sample["transcript"], sample["language"], sample["duration"]
    if not text.strip():
        return "empty transcript", None, None
    allowed = config.allowed_languages
    if not any(language == tag or language.startswith(f"{tag}-") for tag in allowed):
        return "language not allowed", language, ", ".join(allowed)
    if duration > config.max_duration:
        return "too long", duration, config.max_duration
    sample["transcript"] = normalized(text, language)
    if sample["transcript"] != text:
        sample["original_data"]["text"] = text
    if not sample["transcript"]:
        return "nothing to speak", text, None
    if check_signs and (signs := unread(sample["transcript"])):
        return "unread symbols", signs, None
    if sample["sample_rate"] < config.min_sample_rate:
        return "sample rate too low", sample["sample_rate"], config.min_sample_rate
    assert config.min_dnsmos is not None
    if 0 < sample["dnsmos_mos_ovr"] < config.min_dnsmos:
        return "DNSMOS too low", sample["dnsmos_mos_ovr"], config.min_dnsmos
    if duration < config.min_duration:
        return "too short", duration, config.min_duration
    rate = len(sample["transcript"]) / duration
    assert config.min_characters_per_second
    if rate > MAX_CHARACTERS_PER_SECOND:
        return "more text than speech", rate, MAX_CHARACTERS_PER_SECOND
    if rate < config.min_characters_per_second:
        return "more speech than text", rate, config.min_characters_per_second
    return None


def child(kind: str, path: Path) -> None:
    """Filter in this process; the last line on stdout is the time in seconds."""
    program = FilterProgram.from_json(path)
    result = program.run_dir / "result"
    result.mkdir(parents=True, exist_ok=True)
    from tts_assets.corpora.filter import (
        filter_files,
    )  # imported by both, so that they start equally

    started = time.perf_counter()
    if kind == "plain":
        plain_loop(program, result)
    else:
        filter_files(program, result, program.run_dir)
    print(time.perf_counter() - started)


def measure(kind: str, path: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds (with the start), and peak resident megabytes of a child."""
    command = [sys.executable, __file__, "--child", kind, "--config", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return float(output.split()[-1]), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def same(one: Path, other: Path) -> int:
    """The number of lines of two runs. Raises SystemExit if their content differs."""
    lines = 0
    for name in ("kept.jsonl", "rejected.jsonl"):
        with (one / name).open() as first, (other / name).open() as second:
            for left, right in zip(first, second, strict=True):
                if json.loads(left) != json.loads(right):
                    raise SystemExit(f"{name}: {left} is not {right}")
                lines += 1
    return lines


def main() -> None:
    """Parse the command line; run the benchmark or one child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for 3 GB of files; default: a temporary one")
    parser.add_argument("--child", choices=("plain", "polars"), help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child, arguments.config)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        compare(Path(folder), arguments.samples, arguments.rounds)
    return None


def compare(folder: Path, count: int, rounds: int) -> None:
    """Run both implementations and print a Markdown table."""
    source = folder / "samples.jsonl"
    write_input(source, count)
    cores = len(os.sched_getaffinity(0))
    print(f"{count:,} samples, {source.stat().st_size / 1e6:.0f} MB, {cores} cores\n")
    print("| text | way | seconds of each round | median | ratio | CPU seconds | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for text in ("rules", "none"):
        times: dict[str, list[float]] = {"plain": [], "polars": []}
        peaks = dict.fromkeys(times, 0.0)
        cpu: dict[str, list[float]] = {"plain": [], "polars": []}
        for _ in range(rounds):
            for kind in times:
                program = FilterProgram(
                    run_dir=folder / kind,
                    samples=(source,),
                    filters=FILTERS,
                    text=TextConfig(normalizer=text),  # type: ignore[arg-type]
                )
                program.run_dir.mkdir(exist_ok=True)
                path = program.run_dir / "run.json"
                path.write_text(program.to_json())
                seconds, busy, peak = measure(kind, path)
                times[kind].append(seconds)
                cpu[kind].append(busy)
                peaks[kind] = max(peaks[kind], peak)
        assert same(folder / "plain" / "result", folder / "polars" / "result") == count
        medians = {kind: statistics.median(seconds) for kind, seconds in times.items()}
        for kind, seconds in times.items():
            each = ", ".join(f"{value:.1f}" for value in seconds)
            ratio, busy = medians["plain"] / medians[kind], statistics.median(cpu[kind])
            print(
                f"| {text} | {kind} | {each} | {medians[kind]:.1f} | {ratio:.1f} | {busy:.1f} "
                f"| {peaks[kind]:.0f} |"
            )


if __name__ == "__main__":
    main()
