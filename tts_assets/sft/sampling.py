"""Synthesis of validation texts during training.

Every ``sample_every`` steps and at the end rank 0 copies the weights into a second model and
synthesizes a few validation texts with it; the other ranks wait. Texts and random seeds are the
same each time, and no random state of the trainer is used. Generation therefore changes neither
losses nor weights.

``result/listening/`` has a FLAC file for each text and step, and ``samples.jsonl`` with a line for
each. ``result/listening.ipynb`` plays them beside the recordings, decoded from their codes.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from tts_assets.audio_models.watermark import mark
from tts_assets.codec.model import Codec
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.audio import statement, write_speech
from tts_assets.core.config import ConfigError
from tts_assets.core.metadata import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.core.training import rank, world_size
from tts_assets.sft.config import SftProgram
from tts_assets.sft.dataset import UtteranceDataset
from tts_assets.sft.epochs import TrainingSample
from tts_assets.sft.model import merge_lora, open_base
from tts_assets.sft.strategies import Strategy, Tensors
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request, generate
from tts_assets.speechlm.model import SpeechLM

FOLDER, LIST_FILE = "listening", "samples.jsonl"
RANDOM_STREAM = 3  # the random stream of the recipe's seed that selects the texts
LONGEST_SECONDS = 10.0  # of a recording, where enough recordings are shorter
# Limit of a synthesis, in lengths of the longest recording: an early model may not end.
LENGTH_FACTOR = 2
SHOWN_STEPS = 6  # steps in the notebook, the last among them
TIMEOUT = timedelta(days=1)  # of the waiting ranks; if rank 0 fails, torchrun ends all


class TextSampler:
    """Synthesizes validation texts on rank 0. Every rank calls :meth:`sample` at the same step."""

    def __init__(
        self,
        program: SftProgram,
        lm: SpeechLM,
        dataset: UtteranceDataset | None,
        result: Path,
        device: torch.device,
    ) -> None:
        """``dataset`` None: there are no texts with speech, as in pretraining. ``result`` is the
        folder that is published. Without training steps nothing is synthesized."""
        self.program, self.lm, self.device = program, lm, device
        recipe = program.recipe
        count = 0 if recipe.steps == 0 else recipe.sample_texts
        self.texts = (
            select_texts(dataset, count, program.token_rate, recipe.seed) if dataset else []
        )
        self.result, self.folder = result, result / FOLDER
        if dataset is None or not self.texts:
            return
        self.dataset = dataset
        self.codec = open_codec(program) if rank() == 0 else None
        # A separate group: the group of training raises an error after some minutes of waiting.
        distributed = world_size() > 1
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT) if distributed else None

    def due(self, step: int, steps: int) -> bool:
        """Whether texts are synthesized after ``step`` of ``steps`` steps."""
        return bool(self.texts) and (step % self.program.recipe.sample_every == 0 or step == steps)

    def sample(self, strategy: Strategy, step: int) -> None:
        """Synthesize and save every text with the current weights."""
        weights = strategy.weights()
        if rank() == 0:
            self._save(step, self._complete(weights))
        if self._group is not None:
            dist.barrier(group=self._group)

    def _complete(self, weights: Tensors) -> list[Completion]:
        # bfloat16 on a GPU needs half of the memory, most of which training has taken.
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        lm = SpeechLM(
            self._model(weights).to(self.device, dtype),  # type: ignore[arg-type]
            self.lm.tokenizer,
            self.lm.vocabulary,
        )
        prompts = [self._prompt(text) for text in self.texts]
        longest = max(len(self._codes(text)) for text in self.texts)
        room = self.lm.model.config.max_position_embeddings - max(map(len, prompts))
        limit = min(LENGTH_FACTOR * longest, room)
        sampling = SamplingConfig(repetition_penalty=1.0, min_tokens=1, max_tokens=limit)
        seed = self.program.recipe.seed
        return generate(lm, [Request(p, seed + i) for i, p in enumerate(prompts)], sampling)

    def _model(self, weights: Tensors) -> torch.nn.Module:
        """A second model with these weights. Adapters are merged into the base."""
        if self.program.recipe.lora is None:
            return copy_with_weights(self.lm, weights)
        return merge_lora(open_base(self.program), self.program.recipe, weights).model.eval()

    def _prompt(self, utterance: int) -> NDArray[np.int64]:
        """The token ids of training up to and including ``<|speech_start|>``."""
        inputs = self.dataset.encode(TrainingSample((utterance,), 0, utterance)).inputs
        return inputs[: int(np.argmax(inputs == self.lm.vocabulary.speech_start)) + 1]

    def _codes(self, utterance: int) -> NDArray[np.int64]:
        """The codes of the recording."""
        inputs = self.dataset.encode(TrainingSample((utterance,), 0, utterance)).inputs
        return self.lm.vocabulary.codes(inputs[len(self._prompt(utterance)) :])

    def _save(self, step: int, completions: list[Completion]) -> None:
        self.folder.mkdir(exist_ok=True)
        if not (self.folder / LIST_FILE).is_file():
            self._write_recordings()
        lines = [line for line in self._lines() if line["step"] != step]  # repeated after a restart
        for number, completion in enumerate(completions):
            name = f"step-{step:07d}-{number}.flac"
            self._write(name, completion.codes, statement(f"sft/{self.program.name}"))
            line = {"step": step, "text": self._text(number), "ended": completion.ended}
            lines.append({"audio": name, "number": number, **line})
        self._write_lines(lines)

    def _write_recordings(self) -> None:
        """The recordings, as step 0 of the list."""
        lines = []
        for number, utterance in enumerate(self.texts):
            name = f"recording-{number}.flac"
            self._write(name, self._codes(utterance))
            line = {"step": 0, "text": self._text(number), "ended": True}
            lines.append({"audio": name, "number": number, **line})
        self._write_lines(lines)

    def _text(self, number: int) -> str:
        return self.dataset.transcript(self.texts[number])

    def _write(self, name: str, codes: NDArray[np.int64], comment: str = "") -> None:
        assert self.codec is not None, "only rank 0 writes"
        (wave,) = self.codec.decode([codes])
        if comment:  # of syntheses; the recordings have none
            wave = mark(wave, self.program.sample_rate)
        write_speech(self.folder / name, wave, self.program.sample_rate, comment, "FLAC")

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / LIST_FILE).read_text().splitlines()]

    def _write_lines(self, lines: list[dict[str, Any]]) -> None:
        with atomic_write(self.folder / LIST_FILE) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def publish(self) -> None:
        """Write the notebook (rank 0)."""
        if self.texts and rank() == 0:
            sections = list(notebook_sections(self.folder, self._lines()))
            write_notebook(self.result / NOTEBOOK_FILE, self.program.name, sections)


def select_texts(dataset: UtteranceDataset, count: int, token_rate: float, seed: int) -> list[int]:
    """``count`` utterances, the same for the same seed; fewer if the dataset has fewer."""
    short = np.flatnonzero(dataset.code_counts <= LONGEST_SECONDS * token_rate)
    among = short if len(short) >= count else np.arange(len(dataset))
    return np.random.default_rng([seed, RANDOM_STREAM]).permutation(among)[:count].tolist()


def open_codec(program: SftProgram) -> Codec:
    """The codec of the program, on the CPU: training needs the memory of the GPU.

    The samples are decoded by the codec's own decoder, also where a ``codec_decoder`` is used for
    serving. They are part of the checkpoint, so that decoder would become an input of every
    training. Raises :class:`ConfigError` if the codec did not make the arrays.
    """
    folder = program.codec_folder
    if folder is None or not (folder / "config.json").is_file():
        raise ConfigError(f"codec_folder {folder} holds no codec")
    codec = Codec.load(folder)
    if codec.codebook_size != program.codebook_size:
        raise ConfigError(
            f"codec_folder {folder} has {codec.codebook_size} codes, the arrays "
            f"{program.codebook_size}: it is not the codec that made them"
        )
    return codec


def copy_with_weights(lm: SpeechLM, weights: Tensors) -> torch.nn.Module:
    """A second model of the same architecture with these weights and standard attention.

    The random state is not changed. Raises RuntimeError if the weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        config = copy.deepcopy(lm.model.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    missing, unknown = model.load_state_dict(weights, strict=False)
    tied = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    if unknown or set(missing) - tied:
        raise RuntimeError(f"weights do not fit the model: {[*unknown, *missing]}")
    return model.eval()


def notebook_sections(folder: Path, lines: list[dict[str, Any]]) -> Iterator[Section]:
    """A section for each text: the recording, then the synthesis at some of the steps."""
    steps = sorted({line["step"] for line in lines if line["step"]})
    count = min(SHOWN_STEPS, len(steps))
    shown = {steps[i] for i in np.linspace(0, len(steps) - 1, count).round().astype(int)}
    texts = defaultdict(list)
    for line in sorted(lines, key=lambda line: line["step"]):
        if not line["step"] or line["step"] in shown:
            texts[line["number"]].append(line)
    for number in sorted(texts):
        clips = [
            NotebookClip(_title(line), _caption(line), folder / line["audio"])
            for line in texts[number]
        ]
        yield Section(texts[number][0]["text"], clips)


def _title(line: dict[str, Any]) -> str:
    return f"step {line['step']}" if line["step"] else "the recording"


def _caption(line: dict[str, Any]) -> str:
    if not line["step"]:
        return "encoded and decoded again: the best that can be reached"
    return "ended by itself" if line["ended"] else "did not end, cut off"
