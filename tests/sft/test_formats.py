"""Fine-tuning of bases with the formats of public models: samples, targets, publication."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sft.conftest import CODEBOOK, program_values, write_streams
from tests.sft.test_train import train
from tests.support.public_bases import published, random_base
from tts_assets.arrays.arrays import SPLITS, CodeTable
from tts_assets.codec.shard_files import Frame
from tts_assets.core.artifacts import CheckpointFacts
from tts_assets.serving.verify import compare_transformers, compare_vllm
from tts_assets.sft.config import SftProgram
from tts_assets.sft.dataset import UtteranceDataset
from tts_assets.sft.epochs import TrainingSample
from tts_assets.speechlm.formats import LLASA, NEUTTS, ORPHEUS, SpeechFormat
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat

TEXTS = ["one two", "three"]
each_format = pytest.mark.parametrize(
    "form", [LLASA, NEUTTS, pytest.param(ORPHEUS, marks=pytest.mark.slow)], ids=lambda one: one.name
)


def codebook(form: SpeechFormat) -> int:
    return sum(form.frame) or CODEBOOK


def in_frames(form: SpeechFormat, arrays: Path, target: Path) -> Path:
    """The arrays in whole frames of a format's codec, with a speaker's name."""
    if not form.frame:
        return arrays
    target.mkdir()
    frame = Frame(form.frame)
    for split in SPLITS:
        table = CodeTable.of_split(arrays, split)
        rows = [table[row][: len(table[row]) // 7 * 7] for row in range(len(table))]
        codes = np.concatenate(rows).astype(np.int64)
        flat = codes + np.tile(frame.bounds[:-1], len(codes) // 7)
        np.save(target / f"{split}_codes.npy", flat.astype(np.uint16))
        np.save(target / f"{split}_codes_index.npy", np.cumsum([0, *map(len, rows[:-1])]))
        lines = (arrays / f"{split}_samples.jsonl").read_text().splitlines()
        named = [json.dumps(json.loads(line) | {"voice_description": "tara"}) for line in lines]
        (target / f"{split}_samples.jsonl").write_text("\n".join(named) + "\n")
    return target


def of_format(form: SpeechFormat, arrays: Path, root: Path, **changes: Any) -> SftProgram:
    arrays = in_frames(form, arrays, root / "arrays")
    values = program_values(root / "run", arrays, base={"hub": str(root / "base")}, **changes)
    values |= {"codebook_size": codebook(form), "frame": form.frame}
    return SftProgram.model_validate(values)


def fine_tuned(form: SpeechFormat, arrays: Path, root: Path, **changes: object) -> SftProgram:
    tokenizer = published(form, codebook(form))
    random_base(root / "base", tokenizer, len(tokenizer) + 9)
    made = of_format(form, arrays, root, **changes)
    train(made)
    return made


@each_format
def test_a_fine_tuned_base_keeps_its_format(
    form: SpeechFormat, arrays: Path, tmp_path: Path
) -> None:
    made = fine_tuned(form, arrays, tmp_path, steps=2)
    result = made.run_dir / "result"
    lm = SpeechLM.load(result, codebook(form))
    assert lm.vocabulary.format is form
    facts = CheckpointFacts.from_json(made.run_dir / "result.json")
    assert facts.vocabulary == lm.vocabulary.digest
    agreement = compare_transformers(result, result, codebook(form), TEXTS, tokens=12)
    assert agreement.holds and agreement.prompts_equal, agreement


@pytest.mark.slow
@each_format
def test_vllm_reads_the_format(form: SpeechFormat, arrays: Path, tmp_path: Path) -> None:
    result = fine_tuned(form, arrays, tmp_path, steps=1).run_dir / "result"
    agreement = compare_vllm(result, result, codebook(form), TEXTS, tokens=12)
    assert agreement.holds and agreement.tokens > 12, agreement


@each_format
def test_samples_are_the_prompts_and_targets_begin_with_speech(
    form: SpeechFormat, arrays: Path, tmp_path: Path
) -> None:
    tokenizer = published(form, codebook(form))
    random_base(tmp_path / "base", tokenizer, len(tokenizer))
    made = of_format(form, arrays, tmp_path, steps=1)
    arrays = made.arrays["asterisk"]
    name = "tara" if form.named else ""
    lm = SpeechLM.load(saved(tmp_path / "lm", made), codebook(form))
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    write_streams(tmp_path / "tokens", arrays, prompts)
    for tokens in ({}, {"asterisk": tmp_path / "tokens"}):
        dataset = UtteranceDataset({"asterisk": arrays}, "train", prompts, 800, tokens)
        encoded = dataset.encode(TrainingSample((0,), 0, 0))
        assert dataset.length((0,)) == len(encoded.inputs) + 1
        codes = dataset.tables[0][int(dataset.row_of[0])]
        whole = prompts.training(dataset.transcript(0), codes, name)
        assert encoded.inputs.tolist() == whole[:-1].tolist()
        assert encoded.targets[encoded.first] == lm.vocabulary.speech_start
        ending = encoded.targets[-len(prompts.after_speech) :]
        assert np.array_equal(ending, prompts.after_speech)


def saved(folder: Path, made: SftProgram) -> Path:
    from tts_assets.sft.model import open_base

    open_base(made).save(folder)
    return folder
