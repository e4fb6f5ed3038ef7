"""What the model sounds like while it learns: a few validation texts, spoken by it as it is.

Every ``listen_every`` steps and at the end rank 0 puts the weights of that step into a model of its
own, which speaks; the others wait. Texts and random numbers are the same each time and none of the
trainer's, so that listening changes nothing of the training. ``result/listening/`` gets a FLAC file
a text and step and a line each in ``samples.jsonl``; ``result/listening.ipynb`` plays them beside
the recordings, as the codec gives them back.
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

from tts_assets.codec.model import Codec
from tts_assets.core.artifacts import written_aside
from tts_assets.core.audio import statement, write_speech
from tts_assets.core.config import ConfigError
from tts_assets.core.notebook import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.core.program import Run
from tts_assets.sft.config import SftProgram
from tts_assets.sft.dataset import TrainingSample, UtteranceDataset
from tts_assets.sft.model import merge_lora, open_base
from tts_assets.sft.strategies import Strategy, Tensors
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Completion, Request, generate
from tts_assets.speechlm.model import SpeechLM

FOLDER, LIST_FILE = "listening", "samples.jsonl"
STREAM = 3  # of random numbers below the recipe's seed
LONGEST_SECONDS = 10.0  # of a recording, where there are enough that are shorter
TIMES_AS_LONG = 2  # as the recording; a young model does not know where to end
SHOWN = 6  # moments of a run in the notebook, the last among them
PATIENCE = timedelta(days=1)  # of the ranks that wait; if the one that speaks fails, all end


class Listening:
    """Speaks on rank 0; every rank has one and calls :meth:`speak` at the same step."""

    def __init__(
        self, run: Run, program: SftProgram, lm: SpeechLM, pool: UtteranceDataset | None
    ) -> None:
        """``pool`` None: there are no texts with their speech, as in pretraining. Nothing is spoken
        of a base that is not trained: its report is heard."""
        self.run, self.program, self.lm = run, program, lm
        recipe = program.recipe
        count = 0 if recipe.steps == 0 else recipe.listen
        self.texts = chosen(pool, count, program.token_rate, recipe.seed) if pool else []
        self.folder = run.result_dir / FOLDER
        if pool is None or not self.texts:
            return
        self.pool = pool
        self.codec = open_codec(program) if run.is_main else None
        # Not the group of training: its messages end with an error after some minutes.
        distributed = run.world_size > 1
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if distributed else None

    def due(self, step: int, steps: int) -> bool:
        """Whether texts are spoken after ``step`` of ``steps`` steps."""
        return bool(self.texts) and (step % self.program.recipe.listen_every == 0 or step == steps)

    def speak(self, strategy: Strategy, step: int) -> None:
        """Save every text as the weights of now say it."""
        weights = strategy.weights()
        if self.run.is_main:
            said = self._complete(weights)
            self._save(step, said)
        if self._group is not None:
            dist.barrier(group=self._group)

    def _complete(self, weights: Tensors) -> list[Completion]:
        on_gpu = self.run.device.type == "cuda"
        # Half of the memory, which training has taken most of.
        dtype = torch.bfloat16 if on_gpu else torch.float32
        speaker = SpeechLM(
            self._model(weights).to(self.run.device, dtype),  # type: ignore[arg-type]
            self.lm.tokenizer,
            self.lm.vocabulary,
        )
        prompts = [self._prompt(text) for text in self.texts]
        longest = max(len(self._codes(text)) for text in self.texts)
        room = self.lm.model.config.max_position_embeddings - max(map(len, prompts))
        limit = min(TIMES_AS_LONG * longest, room)
        sampling = SamplingConfig(repetition_penalty=1.0, min_tokens=1, max_tokens=limit)
        seed = self.program.recipe.seed
        return generate(speaker, [Request(p, seed + i) for i, p in enumerate(prompts)], sampling)

    def _model(self, weights: Tensors) -> torch.nn.Module:
        """Another model than the trainer's, with these weights; adapters are merge_lora."""
        if self.program.recipe.lora is None:
            return whole_model(self.lm, weights)
        return merge_lora(open_base(self.program), self.program.recipe, weights).model.eval()

    def _prompt(self, utterance: int) -> NDArray[np.int64]:
        """As in training, up to ``<|speech_start|>``."""
        inputs = self.pool.encode(TrainingSample((utterance,), 0, utterance)).inputs
        return inputs[: int(np.argmax(inputs == self.lm.vocabulary.speech_start)) + 1]

    def _codes(self, utterance: int) -> NDArray[np.int64]:
        """Of the recording."""
        inputs = self.pool.encode(TrainingSample((utterance,), 0, utterance)).inputs
        return self.lm.vocabulary.codes(inputs[len(self._prompt(utterance)) :])

    def _save(self, step: int, said: list[Completion]) -> None:
        self.folder.mkdir(exist_ok=True)
        if not (self.folder / LIST_FILE).is_file():
            self._write_recordings()
        lines = [line for line in self._lines() if line["step"] != step]  # said again on resume
        for number, completion in enumerate(said):
            name = f"step-{step:07d}-{number}.flac"
            self._write(name, completion.codes, statement(f"sft/{self.program.name}"))
            line = {"step": step, "text": self._text(number), "ended": completion.ended}
            lines.append({"audio": name, "number": number, **line})
        self._write_lines(lines)

    def _write_recordings(self) -> None:
        """The originals, as step 0 of the list."""
        lines = []
        for number, utterance in enumerate(self.texts):
            name = f"recording-{number}.flac"
            self._write(name, self._codes(utterance))
            line = {"step": 0, "text": self._text(number), "ended": True}
            lines.append({"audio": name, "number": number, **line})
        self._write_lines(lines)

    def _text(self, number: int) -> str:
        return self.pool.transcript(self.texts[number])

    def _write(self, name: str, codes: NDArray[np.int64], comment: str = "") -> None:
        assert self.codec is not None, "only rank 0 writes"
        (wave,) = self.codec.decode([codes])
        write_speech(self.folder / name, wave, self.program.sample_rate, comment, "FLAC")

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / LIST_FILE).read_text().splitlines()]

    def _write_lines(self, lines: list[dict[str, Any]]) -> None:
        with written_aside(self.folder / LIST_FILE) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def publish(self) -> None:
        """Write the notebook (rank 0)."""
        if self.texts and self.run.is_main:
            name, path = self.program.name, self.run.result_dir / NOTEBOOK_FILE
            write_notebook(path, name, list(sections(self.folder, self._lines())))


def chosen(pool: UtteranceDataset, count: int, token_rate: float, seed: int) -> list[int]:
    """``count`` utterances of the pool, always the same; fewer where it has fewer."""
    short = np.flatnonzero(pool.code_counts <= LONGEST_SECONDS * token_rate)
    among = short if len(short) >= count else np.arange(len(pool))
    return np.random.default_rng([seed, STREAM]).permutation(among)[:count].tolist()


def open_codec(program: SftProgram) -> Codec:
    """On the CPU: the GPU's memory is that of training. It speaks with its own decoder, also where
    a ``codec_decoder`` serves: what is heard here is part of the checkpoint's bytes, so the decoder
    would be an input, and a better one would train every model again."""
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


def whole_model(lm: SpeechLM, weights: Tensors) -> torch.nn.Module:
    """Another model of the same architecture with these weights; the trainer's random state and
    its attention over packed rows stay its own."""
    with torch.random.fork_rng(devices=[]):
        config = copy.deepcopy(lm.model.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    missing, unknown = model.load_state_dict(weights, strict=False)
    tied = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    if unknown or set(missing) - tied:
        raise RuntimeError(f"weights do not fit the model: {[*unknown, *missing]}")
    return model.eval()


def sections(folder: Path, lines: list[dict[str, Any]]) -> Iterator[Section]:
    """A section a text: the recording, then how the model says it at some of the steps."""
    steps = sorted({line["step"] for line in lines if line["step"]})
    shown = {
        steps[i] for i in np.linspace(0, len(steps) - 1, min(SHOWN, len(steps))).round().astype(int)
    }
    texts = defaultdict(list)
    for line in sorted(lines, key=lambda line: line["step"]):
        if not line["step"] or line["step"] in shown:
            texts[line["number"]].append(line)
    for number in sorted(texts):
        clips = [
            NotebookClip(title(line), caption(line), folder / line["audio"])
            for line in texts[number]
        ]
        yield Section(texts[number][0]["text"], clips)


def title(line: dict[str, Any]) -> str:
    return f"step {line['step']}" if line["step"] else "the recording"


def caption(line: dict[str, Any]) -> str:
    if not line["step"]:
        return "encoded and decoded again: the best that can be reached"
    return "ended by itself" if line["ended"] else "did not end, cut off"
