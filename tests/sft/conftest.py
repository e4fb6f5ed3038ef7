"""Code arrays of real clips. A code is loudness and zero crossings of a frame, 50 a second: fast to
compute, with the rhythm of speech."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tts_assets.arrays.arrays import SPLITS, CodeTable
from tts_assets.codec.backends import save_codec
from tts_assets.codec.config import CodecArchitecture
from tts_assets.codec.xcodec2 import build
from tts_assets.sft.config import SftProgram
from tts_assets.speechlm.config import LlamaSize, TokenizerConfig, VocabularyConfig
from tts_assets.speechlm.model import new_llama
from tts_assets.speechlm.prompts import PromptFormat, open_tokenizer
from tts_assets.speechlm.tokens import write_pretraining, write_text_ids
from tts_assets.speechlm.vocabulary import tokenizer_digest

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpora" / "asterisk_en"
CODEBOOK = 256
FRAME = 320  # 20 ms at 16 kHz
VALIDATION_EVERY = 8
ARCHITECTURE = CodecArchitecture(
    hidden=32, layers=1, heads=1, intermediate=64, semantic_hidden=32, levels=(8, 8, 4)
)


def rough_codes(path: Path) -> np.ndarray:
    """One code a frame: 16 x loudness level + zero-crossing level."""
    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
    wave = np.concatenate(frames).astype(np.float64) / 32768
    rows = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME)
    decibel = 20 * np.log10(np.sqrt((rows**2).mean(axis=1)) + 1e-4)  # -80 … 0
    loudness = np.clip((decibel + 80) / 5, 0, 15).astype(np.uint16)
    crossings = (np.diff(np.sign(rows), axis=1) != 0).mean(axis=1)
    return loudness * 16 + np.clip(crossings * 30, 0, 15).astype(np.uint16)


def write_split(folder: Path, split: str, samples: list[dict[str, Any]]) -> None:
    codes = [rough_codes(CORPUS / sample["wav_path"]) for sample in samples]
    starts = np.cumsum([0, *(len(c) for c in codes[:-1])]).astype(np.int64)
    np.save(folder / f"{split}_codes.npy", np.concatenate(codes).astype(np.uint16))
    np.save(folder / f"{split}_codes_index.npy", starts)
    lines = [json.dumps(sample | {"id": sample["wav_path"]}) + "\n" for sample in samples]
    (folder / f"{split}_samples.jsonl").write_text("".join(lines))


@pytest.fixture(scope="session")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays of 64 clips of one speaker, 8 of them for validation."""
    folder = tmp_path_factory.mktemp("arrays")
    lines = (CORPUS / "samples.jsonl").read_text().splitlines()
    every = [json.loads(line) for line in lines]
    samples = [sample for sample in every if sample["duration"] <= 10][::8][:64]
    write_split(folder, "val", samples[::VALIDATION_EVERY])
    kept = [sample for i, sample in enumerate(samples) if i % VALIDATION_EVERY]
    write_split(folder, "train", kept)
    return folder


def speaking_folder(folder: Path, intermediate: int = 96) -> Path:
    """A small model with a speech vocabulary, as a folder of the hub."""
    size = LlamaSize(
        hidden_size=64,
        intermediate_size=intermediate,
        layers=2,
        heads=2,
        kv_heads=1,
        tie_embeddings=False,
    )
    lm = new_llama(size, CODEBOOK, VocabularyConfig(), seed=3)
    folder.mkdir(parents=True)
    lm.save(folder)
    return folder


@pytest.fixture(scope="session")
def prompts() -> PromptFormat:
    """The prompt format of a model from scratch over the rough codes."""
    return open_tokenizer(TokenizerConfig(hub=None, vocabulary=VocabularyConfig()), CODEBOOK)


@pytest.fixture(scope="session")
def streams(arrays: Path, prompts: PromptFormat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``token_arrays`` of the arrays, with the streams of pretraining."""
    root = tmp_path_factory.mktemp("token_arrays")
    write_streams(root, arrays, prompts)
    return root


def write_streams(root: Path, arrays: Path, prompts: PromptFormat) -> None:
    folder = root / tokenizer_digest(prompts.tokenizer)
    folder.mkdir(parents=True)
    for split in SPLITS:
        table = CodeTable.of_split(arrays, split)
        texts = write_text_ids(table, prompts, folder, split)
        write_pretraining(table, texts, prompts, folder, split)


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained codec with the same codebook size."""
    folder = tmp_path_factory.mktemp("codec")
    save_codec(build(ARCHITECTURE, 0), folder, "fp32")
    return folder


def recipe_values(**changes: Any) -> dict[str, Any]:
    """A recipe that trains for seconds, with the changes of a test."""
    llama = {"hidden_size": 64, "intermediate_size": 96, "layers": 2, "heads": 2, "kv_heads": 2}
    return {
        "base": {"llama": llama},
        "corpora": {"asterisk": 1.0},
        "steps": 6,
        "batch_tokens": 1500,
        "micro_tokens": 900,
        "max_seq_len": 800,
        "concatenate": {"max_utterances": 3, "short_share": 0.3},
        "optimizer": {"lr": 3e-3},
        "eval_every": 3,
        "export": "last",
        "precision": "fp32",
        "sample_texts": 0,
        **changes,
    }


def program_values(run_dir: Path, arrays: Path, **changes: Any) -> dict[str, Any]:
    return {
        "run_dir": str(run_dir),
        "name": "test",
        "recipe": recipe_values(**changes),
        "arrays": {"asterisk": str(arrays)},
        "codec": "0123abcd",
        "sample_rate": 16000,
        "token_rate": 50.0,
        "codebook_size": CODEBOOK,
    }


def program(run_dir: Path, arrays: Path, **changes: Any) -> SftProgram:
    return SftProgram.model_validate(program_values(run_dir, arrays, **changes))
