"""Fine-tuning of bases with the formats of public models: samples, targets, publication."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.sft.conftest import CODEBOOK, program, write_streams
from tests.sft.test_train import train
from tests.support.public_bases import published, random_base
from tts_assets.core.artifacts import CheckpointFacts
from tts_assets.serving.verify import compare_transformers, compare_vllm
from tts_assets.sft.config import SftProgram
from tts_assets.sft.dataset import TrainingSample, UtteranceDataset
from tts_assets.speechlm.formats import LLASA, NEUTTS, SpeechFormat
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat

TEXTS = ["one two", "three"]


def fine_tuned(form: SpeechFormat, arrays: Path, root: Path, **changes: object) -> SftProgram:
    tokenizer = published(form, CODEBOOK)
    random_base(root / "base", tokenizer, len(tokenizer) + 9)
    made = program(root / "run", arrays, base={"hub": str(root / "base")}, **changes)
    train(made)
    return made


@pytest.mark.parametrize("form", [LLASA, NEUTTS])
def test_a_fine_tuned_base_keeps_its_format(
    form: SpeechFormat, arrays: Path, tmp_path: Path
) -> None:
    made = fine_tuned(form, arrays, tmp_path, steps=2)
    result = made.run_dir / "result"
    lm = SpeechLM.load(result, CODEBOOK)
    assert lm.vocabulary.format is form
    facts = CheckpointFacts.from_json(made.run_dir / "result.json")
    assert facts.vocabulary == lm.vocabulary.digest
    agreement = compare_transformers(result, result, CODEBOOK, TEXTS, tokens=12)
    assert agreement.holds and agreement.prompts_equal, agreement


@pytest.mark.slow
@pytest.mark.parametrize("form", [LLASA, NEUTTS])
def test_vllm_reads_the_format(form: SpeechFormat, arrays: Path, tmp_path: Path) -> None:
    result = fine_tuned(form, arrays, tmp_path, steps=1).run_dir / "result"
    agreement = compare_vllm(result, result, CODEBOOK, TEXTS, tokens=12)
    assert agreement.holds and agreement.tokens > 12, agreement


@pytest.mark.parametrize("form", [LLASA, NEUTTS])
def test_samples_are_the_prompts_and_targets_begin_with_speech(
    form: SpeechFormat, arrays: Path, tmp_path: Path
) -> None:
    tokenizer = published(form, CODEBOOK)
    random_base(tmp_path / "base", tokenizer, len(tokenizer))
    made = program(tmp_path / "run", arrays, base={"hub": str(tmp_path / "base")}, steps=1)
    lm = SpeechLM.load(saved(tmp_path / "lm", made), CODEBOOK)
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    write_streams(tmp_path / "tokens", arrays, prompts)
    for tokens in ({}, {"asterisk": tmp_path / "tokens"}):
        dataset = UtteranceDataset({"asterisk": arrays}, "train", prompts, 800, tokens)
        encoded = dataset.encode(TrainingSample((0,), 0, 0))
        assert dataset.length((0,)) == len(encoded.inputs) + 1
        codes = dataset.tables[0][int(dataset.row_of[0])]
        whole = prompts.training(dataset.transcript(0), codes)
        assert encoded.inputs.tolist() == whole[:-1].tolist()
        assert encoded.targets[encoded.first] == lm.vocabulary.speech_start
        ending = encoded.targets[-len(prompts.after_speech) :]
        assert np.array_equal(ending, prompts.after_speech)


def saved(folder: Path, made: SftProgram) -> Path:
    from tts_assets.sft.model import open_base

    open_base(made).save(folder)
    return folder
