"""Token ids of texts: made once, equal to fresh ones, and of one tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tts_assets.arrays.arrays import SPLITS, ArrayError, CodeTable
from tts_assets.core.artifacts import ArrayFacts, ArtifactStore, Build, CodeArrays
from tts_assets.speechlm import tokens
from tts_assets.speechlm.config import LlamaSize, TokenizerConfig, VocabularyConfig
from tts_assets.speechlm.model import new_llama
from tts_assets.speechlm.prompts import PromptFormat, describe, open_tokenizer
from tts_assets.speechlm.tokens import read_text_ids, text_ids
from tts_assets.speechlm.vocabulary import load_tokenizer, tokenizer_digest

CODEBOOK = 256
NUMERIC = TokenizerConfig(hub=None, vocabulary=VocabularyConfig())
LEXICOGRAPHIC = TokenizerConfig(hub=None, vocabulary=VocabularyConfig(order="lexicographic"))
SIZE = LlamaSize(hidden_size=8, intermediate_size=8, layers=1, heads=1, kv_heads=1)


@pytest.fixture
def prompts() -> PromptFormat:
    return open_tokenizer(LEXICOGRAPHIC, CODEBOOK)


@pytest.fixture
def arrays(clips: Path, tmp_path: Path) -> CodeArrays:
    """Transcripts of real clips with random codes; every third has a voice description, every
    second an emotion."""
    store = ArtifactStore(tmp_path / "storage")
    build = Build("code_arrays", {}, {}, "1", partition="clips")
    result = store.work_folder(build) / "result"
    result.mkdir()
    random = np.random.default_rng(3)
    samples = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    counts = {}
    for split, own in (("train", samples[:-3]), ("val", samples[-3:])):
        lengths = random.integers(1, 90, len(own))
        codes = random.integers(0, CODEBOOK, lengths.sum(), dtype=np.uint16)
        np.save(result / f"{split}_codes.npy", codes)
        np.save(result / f"{split}_codes_index.npy", np.cumsum(lengths) - lengths)
        with (result / f"{split}_samples.jsonl").open("w") as lines:
            for number, sample in enumerate(own):
                sample["id"] = f"{split}{number}"
                sample["voice_description"] = "" if number % 3 else f"Voice {number}, 2 × calm."
                sample["emotion"] = "" if number % 2 else "happy"
                lines.write(json.dumps(sample) + "\n")
        counts |= {f"{split}_samples": len(own), f"{split}_codes": int(lengths.sum())}
    codec = {"codec": "c", "sample_rate": 16000, "token_rate": 50, "codebook_size": CODEBOOK}
    facts = ArrayFacts(corpus="clips", hours=0.1, speakers=1, **codec, **counts)
    handle = store.publish(CodeArrays, build, result, facts)
    assert isinstance(handle, CodeArrays)
    return handle


@pytest.fixture
def written(tmp_path: Path, arrays: CodeArrays) -> Path:
    """The result of the program, by hand."""
    config = {
        "run_dir": str(tmp_path / "run"),
        "arrays": str(arrays.path),
        "tokenizers": [t.model_dump() for t in (NUMERIC, LEXICOGRAPHIC)],
        "pretraining": True,
    }
    (tmp_path / "run.json").write_text(json.dumps(config))
    tokens.main([str(tmp_path / "run.json")])
    return tmp_path / "run" / "result"


def test_stored_token_ids_equal_fresh_ones(
    written: Path, arrays: CodeArrays, prompts: PromptFormat
) -> None:
    digest = tokenizer_digest(prompts.tokenizer)
    assert digest in json.loads((written / tokens.LIST_FILE).read_text())
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        found, now = read_text_ids(table, written / digest, split), text_ids(table, prompts)
        for name in ("text", "later", "description"):
            rows, wanted = getattr(found, name), getattr(now, name)
            assert np.array_equal(rows.ids, wanted.ids)
            assert np.array_equal(rows.bounds, wanted.bounds)
        for row, sample in enumerate(table.samples):
            text = sample["transcript"]
            assert found.text[row].tolist() == prompts.text_ids(text).tolist()
            assert found.later[row].tolist() == prompts.text_ids(" " + text).tolist()
            described = describe(sample["voice_description"], sample["emotion"])
            assert found.description[row].tolist() == prompts.text_ids(described).tolist()


def test_token_ids_of_other_samples_are_rejected(
    written: Path, arrays: CodeArrays, prompts: PromptFormat
) -> None:
    table = CodeTable.of_split(arrays.path, "val")
    with pytest.raises(ArrayError, match=r"texts of 10 train samples, but .* holds 3"):
        read_text_ids(table, written / tokenizer_digest(prompts.tokenizer), "train")


def test_a_window_of_pretraining_decodes_to_codes_and_text(
    written: Path, arrays: CodeArrays, prompts: PromptFormat
) -> None:
    folder = written / tokenizer_digest(prompts.tokenizer)
    table = CodeTable.of_split(arrays.path, "train")
    vocabulary, end = prompts.vocabulary, prompts.tokenizer.eos_token
    speech = np.load(folder / "train_pretraining_codes.npy", mmap_mode="r")
    text = np.load(folder / "train_pretraining_tokens.npy", mmap_mode="r")
    assert speech.dtype == text.dtype == np.int32
    size = 64
    windows = [speech[at : at + size] for at in range(0, len(speech), size)]
    decoded = [vocabulary.codes(window) for window in windows]
    assert np.array_equal(np.concatenate(decoded), table.codes)
    first = len(table[0])
    framed = [vocabulary.speech_start, *vocabulary.ids(table[0]), vocabulary.speech_end]
    assert speech[: first + 2].tolist() == framed
    assert len(speech) == len(table.codes) + 2 * len(table)
    whole = prompts.tokenizer.decode(text)
    assert whole == "".join(sample["transcript"] + end for sample in table.samples)
    window = prompts.tokenizer.decode(text[size : 2 * size])
    assert len(window) > 20 and window in whole


def test_a_digest_is_that_of_the_tokenizer_alone(tmp_path: Path, prompts: PromptFormat) -> None:
    digest = tokenizer_digest(prompts.tokenizer)
    prompts.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(prompts.tokenizer) == digest
    assert tokenizer_digest(open_tokenizer(NUMERIC, CODEBOOK).tokenizer) != digest
    assert tokenizer_digest(open_tokenizer(LEXICOGRAPHIC, CODEBOOK + 1).tokenizer) != digest


def test_a_trained_model_has_the_tokenizer_of_its_recipe(tmp_path: Path) -> None:
    lm = new_llama(SIZE, CODEBOOK, LEXICOGRAPHIC.vocabulary, seed=1)
    lm.save(tmp_path)
    digest = tokenizer_digest(open_tokenizer(LEXICOGRAPHIC, CODEBOOK).tokenizer)
    assert tokenizer_digest(lm.tokenizer) == digest
    assert tokenizer_digest(load_tokenizer(str(tmp_path))) == digest
