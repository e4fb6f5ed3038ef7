"""From codes to codes: a model that memorized ten utterances generates them exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.sft.conftest import CODEBOOK, CORPUS, program, write_split
from tests.sft.test_train import losses, train
from tts_assets.arrays.arrays import CodeTable
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request, generate
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat

LLAMA = {"hidden_size": 128, "intermediate_size": 256, "layers": 2, "heads": 4, "kv_heads": 2}
GREEDY = SamplingConfig(temperature=0, repetition_penalty=1.0, min_tokens=0, max_tokens=200)


@pytest.mark.slow
def test_ten_memorized_utterances_are_generated_code_by_code(tmp_path: Path) -> None:
    lines = (CORPUS / "samples.jsonl").read_text().splitlines()
    every = [json.loads(line) for line in lines]
    ten = [sample for sample in every if 1 <= sample["duration"] <= 3][::20][:10]
    folder = tmp_path / "arrays"
    folder.mkdir()
    write_split(folder, "train", ten)
    write_split(folder, "val", ten[:1])
    config = program(
        tmp_path / "run",
        folder,
        base={"llama": LLAMA},
        steps=120,  # a loss of 0.001: after 90 (0.012) one of ten may still differ
        eval_every=120,
        concatenate=None,
        batch_tokens=4000,
        micro_tokens=4000,
        optimizer={"name": "muon", "lr": 5e-3, "weight_decay": 0.0},
    )
    train(config)
    assert losses(config.run_dir)[-1] < 0.01
    lm = SpeechLM.load(config.run_dir / "result", CODEBOOK)
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    table = CodeTable.of_split(folder, "train")
    requests = [Request(prompts.inference(sample["transcript"]), seed=0) for sample, _ in table]
    said = generate(lm, requests, GREEDY)
    assert len(said) == 10 and all(completion.ended for completion in said)
    for completion, (sample, codes) in zip(said, table, strict=True):
        assert np.array_equal(completion.codes, codes), sample["transcript"]
