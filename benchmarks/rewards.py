"""Measures the rewards of 64 completions: the trainer's executor against one by one.

    python benchmarks/rewards.py

The completions are the codes of 64 real clips after one voice prompt. The rewards are WER, DNSMOS
and speaker similarity. *One by one*: each reward decodes and scores each completion separately.
*Executor*: the trainer's :class:`RewardExecutor` decodes once and scores batches, in threads or in
worker processes. Whisper reads windows of 10 s; one row uses its usual 30 s. Each model has one
thread, except in the row with all cores. The script prints a Markdown table with the shortest time
of each and the largest difference of a score.
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
from tts_assets.rlhf.reward_executor import RewardExecutor, TaskRunner, ThreadRunner, WorkerRunner
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
Scores = list[dict[str, float]]  # for each completion, by reward


@dataclass(frozen=True)
class EncodedClip:
    """A clip as a completion: its transcript and its codes (T,)."""

    text: str
    codes: Codes


def completions(codec: Codec) -> tuple[list[EncodedClip], Voice]:
    """Returns 64 encoded clips and the voice prompt of all of them."""
    clips: list[EncodedClip] = []
    for line in (CORPUS / "samples.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if SHORTEST < sample["duration"] < LONGEST and len(clips) <= COMPLETIONS:
            wave = read_wave(CORPUS / sample["wav_path"], codec.input_rate)
            clips.append(EncodedClip(sample["transcript"], codec.encode([wave])[0]))
    voice = Voice(text=clips[-1].text, codes=tuple(int(code) for code in clips[-1].codes))
    return clips[:COMPLETIONS], voice


class OneByOne:
    """Each reward decodes and scores each completion separately."""

    def __init__(self, codec: Codec, seconds: float, threads: int) -> None:
        wer = WerRewardFunction(WerReward(window_seconds=seconds))
        wer.transcriber = Transcriber(
            beam_size=1, window_seconds=seconds, batch_size=1, threads=threads
        )
        dnsmos = DnsmosRewardFunction()
        dnsmos.scorer = DnsmosScorer(threads)
        self.rewards: dict[str, RewardFunction] = {
            "wer": wer,
            "dnsmos": dnsmos,
            "similarity": SimilarityRewardFunction(SimilarityReward()),
        }
        self.codec = codec

    def __call__(self, clips: list[EncodedClip], voice: Voice) -> Scores:
        reference = self.codec.decode([np.asarray(voice.codes)])[0]
        return [
            {
                name: self._score(reward, one, voice, reference)
                for name, reward in self.rewards.items()
            }
            for one in clips
        ]

    def _score(
        self, reward: RewardFunction, one: EncodedClip, voice: Voice, reference: np.ndarray
    ) -> float:
        (wave,) = decode(self.codec, [one.codes.astype(np.int64)], [voice])
        rate = self.codec.facts.sample_rate
        completion = DecodedCompletion(one.text, wave, rate, True, voice, reference=reference)
        return reward([completion])[0].value


class Executor:
    """The trainer's executor: decodes once, scores batches, runs all rewards side by side."""

    def __init__(self, codec: Codec, runner: TaskRunner) -> None:
        self.codec = codec
        waves = {}

        def reference(voice: Voice | None) -> np.ndarray:
            assert voice is not None
            if voice not in waves:
                waves[voice] = codec.decode([np.asarray(voice.codes)])[0]
            return waves[voice]

        self.rewards = RewardExecutor(REWARDS, runner, reference)

    def __call__(self, clips: list[EncodedClip], voice: Voice) -> Scores:
        codes = [one.codes.astype(np.int64) for one in clips]
        waves = decode(self.codec, codes, [voice] * len(clips))
        rate = self.codec.facts.sample_rate
        decoded = [
            DecodedCompletion(one.text, wave, rate, True, voice)
            for one, wave in zip(clips, waves, strict=True)
        ]
        return [result.rewards for result in self.rewards.score(decoded)]


def largest_difference(scores: Scores, others: Scores) -> float:
    """Returns the largest difference of a score."""
    pairs = zip(scores, others, strict=True)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in a)


def main() -> None:
    codec = Codec.load(CODEC)
    clips, voice = completions(codec)
    cores = torch.get_num_threads()
    methods: dict[str, Callable[[list[EncodedClip], Voice], Scores]] = {
        "one by one": OneByOne(codec, 10.0, 1),
        f"one by one, {cores} threads a model": OneByOne(codec, 10.0, cores),
        "one by one, windows of 30 s": OneByOne(codec, 30.0, 1),
        f"executor, {cores} threads": Executor(codec, ThreadRunner(REWARDS, cores)),
        f"executor, {cores} workers": Executor(codec, WorkerRunner(REWARDS, ["cpu"] * cores)),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    scores: dict[str, Scores] = {}
    for method in methods.values():  # warm-up: loads models, starts workers
        method(clips[: 8 * cores], voice)
    for _ in range(REPEATS):
        for name, method in methods.items():
            started = time.perf_counter()
            scores[name] = method(clips, voice)
            times[name].append(time.perf_counter() - started)
    seconds = sum(len(one.codes) for one in clips) / codec.facts.token_rate
    print(f"torch {torch.__version__}, {cores} threads;")
    print(
        f"{len(clips)} completions, {seconds:.0f} s of speech, rewards: wer, dnsmos, similarity\n"
    )
    print("| method | s | one by one / this | largest difference of a score |\n|---|---|---|---|")
    baseline = min(times["one by one"])
    for name, seconds_taken in times.items():
        difference = largest_difference(scores[name], scores["one by one"])
        shortest = min(seconds_taken)
        print(f"| {name} | {shortest:.1f} | {baseline / shortest:.2f} | {difference:.1e} |")
    for method in methods.values():
        if isinstance(method, Executor):
            method.rewards.close()


if __name__ == "__main__":
    main()
