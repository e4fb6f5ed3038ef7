"""UTMOS: a second opinion on naturalness, where its weights are given.

They are not to be had as a package: ``[evaluation] utmos`` names an ONNX file whose input is a
waveform at 16 kHz, float32 (1, samples), and whose output is the score. That of UTMOS22's strong
learner is written by ``torch.onnx.export`` of the model that its authors publish.
Source: Saeki et al., UTMOS (Interspeech 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tts_assets.artifacts import sha256_file
from tts_assets.audio import resample
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.metrics.metric import (
    Column,
    Metric,
    Setting,
    Unmeasured,
    Utterance,
    Values,
)

RATE = 16_000
SHORTEST_SECONDS = 0.1


class Utmos(Metric):
    name, version = "utmos", "1"
    columns = (
        Column("utmos", "UTMOS", "UTMOS22: how natural listeners would find it, 1 to 5.", "high"),
    )

    def __init__(self, setting: Setting) -> None:
        import onnxruntime

        super().__init__(setting)
        assert setting.config.utmos is not None, "missing() was asked first"
        self.digest = sha256_file(setting.config.utmos)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(setting.config.utmos), options)
        self.input = self.session.get_inputs()[0].name

    @classmethod
    def missing(cls, config: EvaluationConfig) -> str:
        if config.utmos is None:
            return "not given: [evaluation] utmos names no ONNX file"
        if not config.utmos.is_file():
            return f"not given: there is no file {config.utmos.name}"
        return ""

    def key(self, utterance: Utterance) -> str:
        return self.digest

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._one(utterance) for utterance in utterances]

    def _one(self, utterance: Utterance) -> Values | Unmeasured:
        if utterance.seconds < SHORTEST_SECONDS:
            return Unmeasured(f"shorter than {SHORTEST_SECONDS:g} s")
        wave = resample(utterance.wave, utterance.rate, RATE)
        score = self.session.run(None, {self.input: wave[None].astype(np.float32)})[0]
        return {"utmos": float(np.mean(score))}
