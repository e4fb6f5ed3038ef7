"""Speed from code arrays to batches: this project against the method of the reference trainer.

    OMP_NUM_THREADS=1 python benchmarks/data_path.py

makes arrays of 4,000 utterances with the lengths and texts of examples/corpora/asterisk_en (2.6 s
on average), and again of four concatenated utterances (10 s, as usual in read speech), with random
codes of 65,536 and a tokenizer of 193,856 tokens. Both methods convert samples to tensors on one
core, in turn and in one process. The result is the number of the samples' tokens a second, without
padding. Prints Markdown tables.

* codes to ids: ``tts_assets.sft`` with texts from ``token_arrays``. A batch of 32,768 tokens is
  composed, sharded and packed into rows of at most 8,192.
* strings: the codes of a sample become ``<|s_1|><|s_2|>…`` and go through the tokenizer with the
  prompt. Labels before ``<|speech_start|>`` are masked. Four samples are padded to the longest.

Both methods give the same ids, which is checked for the first samples.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tts_assets.arrays.arrays import CodeTable
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.dataset import UtteranceDataset
from tts_assets.sft.epochs import SampleStream, TrainingSample
from tts_assets.sft.packing import RankSharding
from tts_assets.speechlm.config import VocabularyConfig
from tts_assets.speechlm.formats import INSTRUCTION
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.tokens import write_text_ids
from tts_assets.speechlm.vocabulary import extend_tokenizer, tokenizer_digest

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "corpora" / "asterisk_en"
CODEBOOK, BASE_TOKENS = 65_536, 128_256
SAMPLES, RATE, BATCH = 4_000, 50, 4
OURS, THEIRS, ROUNDS = 4_000, 200, 5  # samples a round, and rounds
RECIPE = SftRecipe.model_validate(
    {
        "base": {"llama": {}},
        "corpora": {"benchmark": 1.0},
        "steps": 1,
        "batch_tokens": 32_768,
        "micro_tokens": 8_192,
        "max_seq_len": 2_048,
    }
)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts, with as many tokens as that of Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4_000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for number in range(len(vocabulary), BASE_TOKENS - 1):
        vocabulary[f"unused {number}"] = number
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def make_arrays(folder: Path, rows: list[dict[str, Any]], joined: int) -> None:
    """Write arrays of samples that have ``joined`` random rows each."""
    random = np.random.default_rng(0)
    groups = random.integers(0, len(rows), (SAMPLES, joined))
    seconds = np.array([row["duration"] for row in rows])[groups].sum(axis=1)
    lengths = np.maximum(1, np.round(seconds * RATE)).astype(np.int64)
    codes = random.integers(0, CODEBOOK, lengths.sum(), dtype=np.uint16)
    np.save(folder / "train_codes.npy", codes)
    np.save(folder / "train_codes_index.npy", np.cumsum(lengths) - lengths)
    with (folder / "train_samples.jsonl").open("w") as lines:
        for number, group in enumerate(groups):
            text = " ".join(rows[i]["transcript"] for i in group)
            lines.write(json.dumps({"id": str(number), "transcript": text}) + "\n")


class Ours:
    """Packed rows, as in the trainer of this project."""

    def __init__(self, folder: Path, prompts: PromptFormat) -> None:
        self.dataset = UtteranceDataset(
            {"benchmark": folder}, "train", prompts, RECIPE.max_seq_len, {"benchmark": folder}
        )
        self.sharding = RankSharding(0, 1, micro_tokens=RECIPE.micro_tokens, seed=RECIPE.seed)
        self.stream = SampleStream(self.dataset, RECIPE, float(RATE))

    def ids(self, utterance: int) -> list[int]:
        encoded = self.dataset.encode(TrainingSample((utterance,), 0, 0))
        return [*encoded.inputs.tolist(), int(encoded.targets[-1])]

    def work(self, samples: int) -> int:
        """Make batches of at least ``samples`` samples. Returns their tokens."""
        done = tokens = 0
        while done < samples:
            batch = self.stream.batch()
            done += len(batch)
            tokens += len(batch)  # the last token of each is a target alone
            tokens += sum(row.tokens for row in self.sharding.rows(self.dataset, batch))
        return tokens


class Theirs:
    """Strings through the tokenizer, one sample at a time, and padded."""

    def __init__(self, folder: Path, prompts: PromptFormat) -> None:
        self.table = CodeTable.of_split(folder, "train")
        self.samples = self.table.samples
        self.tokenizer = prompts.tokenizer
        self.start = prompts.vocabulary.speech_start
        self.order = np.random.default_rng(1).permutation(len(self.table))
        self.at = 0

    def ids(self, utterance: int) -> list[int]:
        text = self.samples[utterance]["transcript"]
        speech = "".join(f"<|s_{code}|>" for code in self.table[utterance])
        prompt = f"{INSTRUCTION}<|text_prompt_start|>{text}<|text_prompt_end|>\n"
        whole = f"{prompt}<|speech_start|>{speech}<|speech_end|>"
        found: list[int] = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
        return found

    def work(self, samples: int) -> int:
        tokens = 0
        for _ in range(samples // BATCH):
            rows = []
            for _ in range(BATCH):
                rows.append(torch.tensor(self.ids(int(self.order[self.at % len(self.order)]))))
                self.at += 1
            tokens += sum(map(len, rows))
            end = self.tokenizer.eos_token_id
            inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end)
            labels = inputs.clone()
            for label, row in zip(labels, rows, strict=True):
                label[: int(torch.eq(row, self.start).nonzero()[0])] = -100
                label[len(row) :] = -100
        return tokens


def rate(work: Callable[[int], int], samples: int) -> float:
    """Tokens per second of processor time, so that other processes do not matter."""
    started = time.process_time()
    return work(samples) / (time.process_time() - started)


def compare(rows: list[dict[str, Any]], prompts: PromptFormat, joined: int) -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_arrays(folder, rows, joined)
        own = folder / tokenizer_digest(prompts.tokenizer)
        own.mkdir()
        write_text_ids(CodeTable.of_split(folder, "train"), prompts, own, "train")
        ours, theirs = Ours(folder, prompts), Theirs(folder, prompts)
        assert all(ours.ids(i) == theirs.ids(i) for i in range(20)), "the ids differ"
        found = [(rate(ours.work, OURS), rate(theirs.work, THEIRS)) for _ in range(ROUNDS)]
    tokens = ours.dataset.alone.mean()
    print(f"\n{len(ours.dataset)} samples of {tokens:.0f} tokens on average\n")
    print("| tokens a second of one core | best | of each round |\n|---|---|---|")
    for name, rates in zip(("codes to ids", "strings"), zip(*found, strict=True), strict=True):
        every = ", ".join(f"{rate:,.0f}" for rate in rates)
        print(f"| {name} | {max(rates):,.0f} | {every} |")
    best = max(mine for mine, _ in found) / max(other for _, other in found)
    print(f"| ratio | {best:.0f}x | {', '.join(f'{a / b:.0f}x' for a, b in found)} |")


def main() -> None:
    torch.set_num_threads(1)
    lines = (CORPUS / "samples.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["transcript"] and row["duration"] <= 30]
    tokenizer = make_tokenizer([row["transcript"] for row in rows])
    vocabulary = extend_tokenizer(tokenizer, CODEBOOK, VocabularyConfig(order="lexicographic"))
    print(f"{vocabulary.size:,} tokens")
    for joined in (1, 4):
        compare(rows, PromptFormat(tokenizer, vocabulary), joined)


if __name__ == "__main__":
    main()
