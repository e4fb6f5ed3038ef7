"""Trains a speaker encoder: ``torchrun --nproc-per-node R -m tts_assets.speakers.train run.json``.

A batch of N x M crops is composed first and then shared out; the ranks exchange their embeddings,
with gradients, so that each sees the loss of the whole batch. The curve does not depend on the
number of ranks.

What a published encoder shows of itself: clips, their embeddings, and a script that compares.

The clips are test speakers' (their licences stand beside), stored as 16 kHz FLAC. Whoever has the
folder runs ``python FOLDER/check.py`` and knows that it gives what it gave here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam

from tts_assets.core.accounting import SET_ASIDE_FILE, write_set_aside
from tts_assets.core.artifacts import written_aside
from tts_assets.core.audio import read_wave
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config
from tts_assets.core.training import StepLoop
from tts_assets.speakers.audio import centred, fill
from tts_assets.speakers.config import EncoderProgram, EncoderRecipe, TrialConfig, resolve
from tts_assets.speakers.dataset import SpeakerRecording, read_people
from tts_assets.speakers.encoder import VoiceEncoder
from tts_assets.speakers.features import Batches, Item, prepare
from tts_assets.speakers.loss import Adversary, BatchLoss, Ge2eLoss
from tts_assets.speakers.model import EncoderCard, build, open_encoder, save_encoder
from tts_assets.speakers.verification import errors, make_trials, score_trials

EXAMPLES_FILE = "examples.json"
SPEAKERS = 2  # two clips each
LONGEST_SECONDS = 10.0
CHECK = '''"""Does this encoder still give the embeddings that it was published with?

    python check.py    # needs the package tts_assets
"""

import json
from pathlib import Path

import numpy as np

from tts_assets.speakers.encoder import VoiceEncoder

folder = Path(__file__).resolve().parent
encoder = VoiceEncoder.load(folder)
examples = json.loads((folder / "examples.json").read_text())
largest = 0.0
for example in examples:
    voice = encoder.wav_to_embedding(folder / example["file"])
    assert voice.shape == (encoder.card.architecture.embedding,) and voice.dtype == np.float32
    largest = max(largest, float(np.abs(voice - np.array(example["embedding"])).max()))
print(f"{len(examples)} examples, largest difference {largest:.1e}")
assert largest < 1e-4, "another library or machine rounds differently, or the weights changed"
'''


def write_examples(folder: Path, tested: Sequence[SpeakerRecording]) -> None:
    """``examples/*.flac``, ``examples.json`` and ``check.py`` beside an encoder's files."""
    encoder = VoiceEncoder.load(folder)
    rate = encoder.card.audio.sample_rate
    (folder / "examples").mkdir(exist_ok=True)
    examples = []
    for number, recording in enumerate(chosen(tested)):
        name = f"examples/{number}.flac"
        wave = read_wave(recording.path, rate)
        soundfile.write(folder / name, np.clip(wave, -1, 1), rate, subtype="PCM_16")
        examples.append(
            {
                "file": name,
                "speaker": recording.speaker,
                "licence": recording.licence,
                "embedding": encoder.wav_to_embedding(folder / name).tolist(),
            }
        )
    with written_aside(folder / EXAMPLES_FILE) as aside:
        aside.write_text(json.dumps(examples, indent=1) + "\n")
    (folder / "check.py").write_text(CHECK)


def chosen(tested: Sequence[SpeakerRecording]) -> list[SpeakerRecording]:
    """The two longest clips of at most ten seconds of the first two speakers by name."""
    names = sorted({recording.speaker for recording in tested})[:SPEAKERS]
    found = []
    for name in names:
        mine = [r for r in tested if r.speaker == name and r.seconds <= LONGEST_SECONDS]
        found += sorted(mine, key=lambda r: (-r.seconds, r.id))[:2]
    return found


TRACKING = TrialConfig(per_speaker=50, max_utterances=20)  # trials while it trains


class EncoderTrainer(StepLoop):
    """One rank's part of a run."""

    what = "encoder"
    recipe: EncoderRecipe

    def __init__(self, run: Run, program: EncoderProgram) -> None:
        super().__init__(run, program.recipe)
        rows = self.recipe.speakers * self.recipe.utterances
        if rows % run.world_size:
            raise ConfigError(
                f"{self.recipe.speakers} x {self.recipe.utterances} crops cannot be shared evenly "
                f"among {run.world_size} ranks: make speakers a multiple of them"
            )
        self.model, self.card = self._open()
        self.people = read_people(program.corpora, program.people)
        audio = self.card.audio
        self.store, items, lost = prepare(run, self.people.train, audio, self.recipe.speeds)
        self.test_store, self.test, lost_test = prepare(run, self.people.test, audio, (1.0,))
        self.set_aside = [*self.people.set_aside, *lost, *lost_test]
        self.items = items
        self.batches = Batches(items, self.store, self.recipe, audio)
        self.trials = make_trials([item.recording for item in self.test], TRACKING)
        self.ge2e = Ge2eLoss(self.recipe.loss, self.card.scale, self.card.offset).to(run.device)
        self.classes, self.adversary = self._adversary()
        self.modules = {"model": self.model, "ge2e": self.ge2e}
        if self.adversary is not None:
            self.modules["adversary"] = self.adversary
        self.optimizers = {"adam": self._adam()}
        data = [[item.recording.id, item.voice] for item in self.items]
        self.resume({"recipe": self.recipe, "data": data})
        self.loss: nn.Module = BatchLoss(self.model, self.ge2e, self.adversary)
        if run.world_size > 1:
            self.loss = DistributedDataParallel(self.loss)

    def _open(self) -> tuple[nn.Module, EncoderCard]:
        recipe = self.recipe
        if recipe.base is not None:
            model, card = open_encoder(resolve(recipe.base, Path()))
            model.train()
        else:
            card = EncoderCard(architecture=recipe.architecture, audio=recipe.audio)
            model = build(recipe.architecture, recipe.audio, recipe.seed)
        if recipe.equalize and not card.audio.log:
            raise ConfigError(f"equalize adds to log-mels, but {recipe.base} hears power mels")
        return model.to(self.run.device), card

    def _adversary(self) -> tuple[dict[str, int], Adversary | None]:
        """Numbers of the languages or corpora that embeddings must not tell."""
        config = self.recipe.adversary
        if config is None:
            return {}, None
        found = sorted({getattr(item.recording, config.what) for item in self.items})
        if len(found) < 2:
            raise ConfigError(
                f"an adversary needs at least two of {config.what}, but there is only {found}; "
                "leave out adversary"
            )
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            size = self.card.architecture.embedding
            adversary = Adversary(size, config.hidden, len(found), config.weight)
        return {name: place for place, name in enumerate(found)}, adversary.to(self.run.device)

    def _adam(self) -> Adam:
        share = self.recipe.similarity_share
        rest = [*self.model.parameters()]
        if self.adversary is not None:
            rest += self.adversary.parameters()
        groups = [
            {"params": rest, "share": 1.0},
            {"params": [*self.ge2e.parameters()], "share": share},
        ]
        return Adam(groups, lr=self.recipe.lr)

    def held_out(self) -> dict[str, float]:
        return {"test_eer": round(self.test_eer(), 6)}

    def train_step(self, step: int) -> dict[str, float]:
        """One optimizer step on one batch."""
        lr = self.set_learning_rates(step)
        crops, _ = self.batches.crops(step, self.run.rank, self.run.world_size)
        loss, confound = self.loss(
            crops.to(self.run.device), self.recipe.speakers, self.classes_of(step)
        )
        total = loss if confound is None else loss + confound
        if not math.isfinite(float(total.detach())):
            raise FloatingPointError(f"the loss of step {step + 1} is not finite: lower lr")
        total.backward()
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.optimizers["adam"].step()
        self.optimizers["adam"].zero_grad(set_to_none=True)
        self.ge2e.keep_positive()
        report = {
            "loss": float(loss.detach()),
            "gradient_norm": float(norm),
            "scale": float(self.ge2e.scale.detach()),
            "lr": lr,
        }
        if confound is not None:
            report["adversary"] = float(confound.detach())
        return {name: round(value, 6) for name, value in report.items()}

    def set_learning_rates(self, step: int) -> float:
        """From ``lr`` to ``final_lr`` by the same factor every step."""
        recipe = self.recipe
        lr = recipe.lr * (recipe.final_lr / recipe.lr) ** (step / recipe.steps)
        for group in self.optimizers["adam"].param_groups:
            group["lr"] = lr * group["share"]
        return lr

    def classes_of(self, step: int) -> Tensor | None:
        """What the adversary must tell of every row of the whole batch."""
        config = self.recipe.adversary
        if config is None:
            return None
        items, _ = self.batches.rows(step)
        numbers = [self.classes[getattr(item.recording, config.what)] for item in items]
        return torch.tensor(numbers, device=self.run.device)

    @torch.no_grad()
    def test_eer(self) -> float:
        """On a few trials of the test speakers, from one window of each recording. To be watched:
        nothing is chosen by it."""
        used = {name for trial in self.trials for name in (trial.a, trial.b)}
        items = [item for item in self.test if item.recording.id in used]
        self.model.eval()
        made = [self.model(self._middle(item).to(self.run.device)).cpu() for item in items]
        self.model.train()
        voices = {
            item.recording.id: vector[0].numpy() for item, vector in zip(items, made, strict=True)
        }
        scores = score_trials(self.trials, voices)
        return errors(scores, [t.same for t in self.trials], TRACKING.p_target).eer

    def _middle(self, item: Item) -> Tensor:
        size = self.card.audio.window_frames
        first = max(0, (item.frames - size) // 2)
        crop = fill(self.test_store(item, first, min(size, item.frames)), size, self.card.audio)
        return centred(crop[None], self.card.audio)

    def finish(self) -> None:
        """Publish the encoder, with what shows that it works, to ``result/``."""
        if not self.run.is_main:
            return
        folder = self.run.result_dir
        learnt = {name: float(p.detach()) for name, p in self.ge2e.named_parameters()}
        save_encoder(self.model, self.card.model_copy(update=learnt), folder)
        write_set_aside(folder / SET_ASIDE_FILE, self.set_aside)
        tested = sorted({item.recording for item in self.test})
        write_examples(folder, tested)
        self.run.finish(self.facts())

    def facts(self) -> dict[str, Any]:
        used = {item.recording for item in self.items}
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "embedding": self.card.architecture.embedding,
            "speakers": speakers(used),
            "test_speakers": speakers({item.recording for item in self.test}),
            "utterances": len(used),
            "test_utterances": len(self.test),
            "set_aside": len(self.set_aside),
            "hours": round(math.fsum(sorted(r.seconds for r in used)) / 3600, 6),
            "steps": self.recipe.steps,
            "test_eer": round(self.test_eer(), 6),
        }


def speakers(recordings: set[SpeakerRecording]) -> int:
    return len({recording.speaker for recording in recordings})


def main(argv: list[str] | None = None) -> None:
    program = load_config(EncoderProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        trainer = EncoderTrainer(run, program)
        trainer.train()
        trainer.finish()


if __name__ == "__main__":
    main()
