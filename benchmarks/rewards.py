"""Rewards of 64 completions: batched and shared, against one by one.

    python benchmarks/rewards.py

takes the codes of 64 real clips as completions after one voice prompt, and has WER, DNSMOS and
speaker similarity judged: *one by one*, where each reward decodes each completion for itself and
scores it alone, and by the trainer's panel, which decodes once and judges in batches, in threads of
one process or in workers. Whisper reads windows of 10 s in both; one row has the whole 30 s, as
Whisper does by itself. Every model has one thread, but for the row that gives it all cores.
Prints a Markdown table with the shortest time of each, and the largest difference of a score.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.transcription import Transcriber
from tts_assets.codec.model import Codec, Codes
from tts_assets.core.audio import read_wave
from tts_assets.rlhf.reward_config import DnsmosReward, SimilarityReward, WerReward
from tts_assets.rlhf.reward_executor import RewardExecutor, TaskRunner, ThreadRunner
from tts_assets.rlhf.reward_workers import WorkerRunner
from tts_assets.rlhf.rewards import (
    DecodedCompletion,
    DnsmosRewardFunction,
    RewardFunction,
    SimilarityRewardFunction,
    WerRewardFunction,
)
from tts_assets.serving.config import Voice
from tts_assets.serving.synthesis import decode

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples/corpora/asterisk_en"
CODEC = ROOT / "examples/codecs/announcer-16khz"
COMPLETIONS, REPEATS = 64, 2
SHORTEST, LONGEST = 1.5, 6.0  # seconds
REWARDS = (WerReward(), DnsmosReward(), SimilarityReward())
Scores = list[dict[str, float]]


@dataclass(frozen=True)
class Said:
    """A completion as the trainer has it."""

    text: str
    codes: Codes


def completions(codec: Codec) -> tuple[list[Said], Voice]:
    """Real clips as codes, and the voice prompt that all of them are said after."""
    said: list[Said] = []
    for line in (CORPUS / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if SHORTEST < sample["duration"] < LONGEST and len(said) <= COMPLETIONS:
            wave = read_wave(CORPUS / sample["wav_path"], codec.input_rate)
            said.append(Said(sample["transcript"], codec.encode([wave])[0]))
    voice = Voice(text=said[-1].text, codes=tuple(int(code) for code in said[-1].codes))
    return said[:COMPLETIONS], voice


class OneByOne:
    """Each reward decodes each completion for itself, and scores it alone."""

    def __init__(self, codec: Codec, seconds: float, threads: int) -> None:
        wer = WerRewardFunction(WerReward(window_seconds=seconds))
        wer.ear = Transcriber(beam_size=1, window_seconds=seconds, batch_size=1, threads=threads)
        dnsmos = DnsmosRewardFunction()
        dnsmos.scorer = DnsmosScorer(threads)
        self.rewards: dict[str, RewardFunction] = {
            "wer": wer,
            "dnsmos": dnsmos,
            "similarity": SimilarityRewardFunction(SimilarityReward()),
        }
        self.codec = codec

    def __call__(self, said: list[Said], voice: Voice) -> Scores:
        reference = self.codec.decode([np.asarray(voice.codes)])[0]
        return [
            {
                name: self._score(reward, one, voice, reference)
                for name, reward in self.rewards.items()
            }
            for one in said
        ]

    def _score(
        self, reward: RewardFunction, one: Said, voice: Voice, reference: np.ndarray
    ) -> float:
        (wave,) = decode(self.codec, [one.codes.astype(np.int64)], [voice])
        rate = self.codec.facts.sample_rate
        return reward([DecodedCompletion(one.text, wave, rate, True, voice, reference=reference)])[
            0
        ].value


class Shared:
    """The trainer's panel: one decode, batches, all rewards at the same time."""

    def __init__(self, codec: Codec, judges: TaskRunner) -> None:
        self.codec = codec
        waves = {}

        def reference(voice: Voice | None) -> np.ndarray:
            assert voice is not None
            if voice not in waves:
                waves[voice] = codec.decode([np.asarray(voice.codes)])[0]
            return waves[voice]

        self.panel = RewardExecutor(REWARDS, judges, reference)

    def __call__(self, said: list[Said], voice: Voice) -> Scores:
        codes = [one.codes.astype(np.int64) for one in said]
        waves = decode(self.codec, codes, [voice] * len(said))
        rate = self.codec.facts.sample_rate
        spoken = [
            DecodedCompletion(one.text, wave, rate, True, voice)
            for one, wave in zip(said, waves, strict=True)
        ]
        return [verdict.rewards for verdict in self.panel.judge(spoken)]


def difference(ours: Scores, theirs: Scores) -> float:
    """The largest of any reward of any completion."""
    pairs = zip(ours, theirs, strict=True)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in a)


def main() -> None:
    codec = Codec.load(CODEC)
    said, voice = completions(codec)
    cores = torch.get_num_threads()
    ways: dict[str, Callable[[list[Said], Voice], Scores]] = {
        "one by one": OneByOne(codec, 10.0, 1),
        f"one by one, {cores} threads a model": OneByOne(codec, 10.0, cores),
        "one by one, windows of 30 s": OneByOne(codec, 30.0, 1),
        f"panel, {cores} threads": Shared(codec, ThreadRunner(REWARDS, cores)),
        f"panel, {cores} workers": Shared(codec, WorkerRunner(REWARDS, ["cpu"] * cores)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, Scores] = {}
    for judge in ways.values():  # models are loaded, workers started
        judge(said[: 8 * cores], voice)
    for _ in range(REPEATS):
        for name, judge in ways.items():
            started = time.perf_counter()
            scores[name] = judge(said, voice)
            times[name].append(time.perf_counter() - started)
    seconds = sum(len(one.codes) for one in said) / codec.facts.token_rate
    print(f"torch {torch.__version__}, {cores} threads;")
    print(f"{len(said)} completions, {seconds:.0f} s of speech, rewards: wer, dnsmos, similarity\n")
    print("| way | s | one by one / this | largest difference of a score |\n|---|---|---|---|")
    slow = min(times["one by one"])
    for name, taken in times.items():
        apart = difference(scores[name], scores["one by one"])
        print(f"| {name} | {min(taken):.1f} | {slow / min(taken):.2f} | {apart:.1e} |")
    for way in ways.values():
        if isinstance(way, Shared):
            way.panel.close()


if __name__ == "__main__":
    main()
