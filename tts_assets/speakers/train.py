"""Trains a speaker encoder: ``torchrun --nproc-per-node R -m tts_assets.speakers.train run.json``.

A batch of N x M crops is drawn first and then divided among the ranks. The ranks exchange their
embeddings with gradients, so each of them computes the loss of the whole batch. The loss curve does
not depend on the number of ranks.

The published folder also has example clips of test speakers (16 kHz FLAC, with their licences),
their embeddings, and ``check.py``, which compares them with the embeddings on the current machine.
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

from tts_assets.core.accounting import SET_ASIDE_FILE, SetAside, write_set_aside
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.audio import read_wave
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config
from tts_assets.core.training import StepLoop
from tts_assets.speakers.audio import (
    Batches,
    MelRecording,
    PreparedRecordings,
    centred,
    fill,
    prepare,
)
from tts_assets.speakers.config import EncoderProgram, EncoderRecipe, resolve
from tts_assets.speakers.dataset import (
    P_TARGET,
    SpeakerRecording,
    TrialLimits,
    errors,
    make_trials,
    read_speakers,
    score_trials,
)
from tts_assets.speakers.encoder import VoiceEncoder
from tts_assets.speakers.model import (
    Adversary,
    BatchLoss,
    EncoderCard,
    Ge2eLoss,
    build,
    open_encoder,
    save_encoder,
)

GRADIENT_CLIP = 3.0  # norm of all gradients (Wan et al., 2018)
ADVERSARY_HIDDEN = 128  # units of the adversary's hidden layer
TRACKING = TrialLimits(pairs=50, utterances=20)  # trials of the validation metric

EXAMPLES_FILE = "examples.json"
SPEAKERS = 2  # with two clips each
LONGEST_SECONDS = 10.0  # of an example clip
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


def main(argv: list[str] | None = None) -> None:
    """Train the encoder of a ``run.json`` and publish it to ``result/``."""
    program = load_config(EncoderProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        trainer = encoder_trainer(run, program)
        trainer.train()
        trainer.finish()


def encoder_trainer(run: Run, program: EncoderProgram) -> EncoderTrainer:
    """Model, data and trainer of a program; resumes from the run folder's newest checkpoint."""
    recipe = program.recipe
    check_ranks(recipe, run.world_size)
    model, card = initial_encoder(recipe)
    split = read_speakers(program.corpora, program.selection)
    train = prepare(run, split.train, card.audio, recipe.speeds)
    test = prepare(run, split.test, card.audio, (1.0,))
    set_aside = [*split.set_aside, *train.set_aside, *test.set_aside]
    return EncoderTrainer(run, recipe, model, card, train, test, set_aside)


def check_ranks(recipe: EncoderRecipe, ranks: int) -> None:
    """Raise ConfigError unless every rank gets the same number of crops."""
    if recipe.speakers * recipe.utterances % ranks:
        raise ConfigError(
            f"{recipe.speakers} x {recipe.utterances} crops cannot be divided evenly "
            f"among {ranks} ranks: make speakers a multiple of them"
        )


def initial_encoder(recipe: EncoderRecipe) -> tuple[nn.Module, EncoderCard]:
    """The encoder before the first step: the base, or random weights. Raises ConfigError."""
    if recipe.base is not None:
        model, card = open_encoder(resolve(recipe.base, Path()))
        model.train()
    else:
        card = EncoderCard.of(recipe)
        model = build(card.architecture, card.audio, recipe.seed)
    if recipe.equalize and not card.audio.log:
        raise ConfigError(f"equalize needs log-mels, but {recipe.base} uses power mels")
    return model, card


class EncoderTrainer(StepLoop):
    """One rank's part of the training of an encoder."""

    what = "encoder"
    recipe: EncoderRecipe

    def __init__(
        self,
        run: Run,
        recipe: EncoderRecipe,
        model: nn.Module,
        card: EncoderCard,
        train: PreparedRecordings,
        test: PreparedRecordings,
        set_aside: Sequence[SetAside],
    ) -> None:
        super().__init__(run, recipe)
        self.model, self.card = model.to(run.device), card
        self.training, self.test, self.set_aside = train, test, set_aside
        self.batches = Batches(train.items, train.store, recipe, card.audio)
        self.trials = make_trials([item.recording for item in test.items], TRACKING)
        self.ge2e = Ge2eLoss(recipe.loss, card.scale, card.offset).to(run.device)
        self.classes, self.adversary = self._adversary()
        self.modules = {"model": self.model, "ge2e": self.ge2e}
        if self.adversary is not None:
            self.modules["adversary"] = self.adversary
        self.optimizers = {"adam": self._adam()}
        data = [[item.recording.id, item.voice] for item in train.items]
        self.resume({"recipe": recipe, "data": data})
        self.loss: nn.Module = BatchLoss(self.model, self.ge2e, self.adversary)
        if run.world_size > 1:
            self.loss = DistributedDataParallel(self.loss)

    def _adversary(self) -> tuple[dict[str, int], Adversary | None]:
        """The class index of each attribute value, and the classifier that predicts it."""
        config = self.recipe.adversary
        if config is None:
            return {}, None
        items = self.training.items
        found = sorted({getattr(item.recording, config.attribute) for item in items})
        if len(found) < 2:
            raise ConfigError(
                f"an adversary needs at least two of {config.attribute}, but there is only "
                f"{found}; leave out adversary"
            )
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            size = self.card.architecture.embedding
            adversary = Adversary(size, ADVERSARY_HIDDEN, len(found), config.weight)
        return {name: index for index, name in enumerate(found)}, adversary.to(self.run.device)

    def _adam(self) -> Adam:
        """Two parameter groups, in the order that checkpoints have."""
        networks = [*self.model.parameters()]
        if self.adversary is not None:
            networks += self.adversary.parameters()
        groups = [
            {"params": networks},
            {"params": [*self.ge2e.parameters()]},
        ]
        return Adam(groups, lr=self.recipe.lr)

    def held_out(self) -> dict[str, float]:
        """The EER of the test speakers."""
        return {"test_eer": round(self.test_eer(), 6)}

    def train_step(self, step: int) -> dict[str, float]:
        """One optimizer step. Raises FloatingPointError if the loss is not finite."""
        lr = self.set_learning_rates(step)
        crops, _ = self.batches.crops(step, self.run.rank, self.run.world_size)
        loss, adversarial = self.loss(
            crops.to(self.run.device), self.recipe.speakers, self.classes_of(step)
        )
        total = loss if adversarial is None else loss + adversarial
        if not math.isfinite(float(total.detach())):
            raise FloatingPointError(f"the loss of step {step + 1} is not finite: lower lr")
        total.backward()
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        self.optimizers["adam"].step()
        self.optimizers["adam"].zero_grad(set_to_none=True)
        self.ge2e.keep_positive()
        report = {
            "loss": float(loss.detach()),
            "gradient_norm": float(norm),
            "scale": float(self.ge2e.scale.detach()),
            "lr": lr,
        }
        if adversarial is not None:
            report["adversary"] = float(adversarial.detach())
        return {name: round(value, 6) for name, value in report.items()}

    def set_learning_rates(self, step: int) -> float:
        """Set and return the learning rate: exponential decay from ``lr`` to ``final_lr``."""
        recipe = self.recipe
        lr = recipe.lr * (recipe.final_lr / recipe.lr) ** (step / recipe.steps)
        for group in self.optimizers["adam"].param_groups:
            group["lr"] = lr
        return lr

    def classes_of(self, step: int) -> Tensor | None:
        """The class of every row of the whole batch, int64 (rows,); None without an adversary."""
        config = self.recipe.adversary
        if config is None:
            return None
        items, _ = self.batches.rows(step)
        numbers = [self.classes[getattr(item.recording, config.attribute)] for item in items]
        return torch.tensor(numbers, device=self.run.device)

    @torch.no_grad()
    def test_eer(self) -> float:
        """The EER on a few trials of the test speakers, with one window of each recording.

        It is for monitoring only: no checkpoint is selected by it.
        """
        used = {name for trial in self.trials for name in (trial.a, trial.b)}
        items = [item for item in self.test.items if item.recording.id in used]
        self.model.eval()
        made = [self.model(self._middle(item).to(self.run.device)).cpu() for item in items]
        self.model.train()
        embeddings = {
            item.recording.id: vector[0].numpy() for item, vector in zip(items, made, strict=True)
        }
        scores = score_trials(self.trials, embeddings)
        return errors(scores, [t.same for t in self.trials], P_TARGET).eer

    def _middle(self, item: MelRecording) -> Tensor:
        """The middle window of an item, (1, window_frames, bands)."""
        size = self.card.audio.window_frames
        first = max(0, (item.frames - size) // 2)
        crop = fill(self.test.store(item, first, min(size, item.frames)), size, self.card.audio)
        return centred(crop[None], self.card.audio)

    def finish(self) -> None:
        """Write the encoder and its examples to ``result/`` and finish the run (rank 0)."""
        if not self.run.is_main:
            return
        folder = self.run.result_dir
        learned = {name: float(p.detach()) for name, p in self.ge2e.named_parameters()}
        save_encoder(self.model, self.card.model_copy(update=learned), folder)
        write_set_aside(folder / SET_ASIDE_FILE, self.set_aside)
        write_examples(folder, sorted(self.test.recordings))
        self.run.finish(self.facts())

    def facts(self) -> dict[str, Any]:
        """The facts of the published encoder."""
        used = self.training.recordings
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "embedding": self.card.architecture.embedding,
            "speakers": speakers(used),
            "test_speakers": speakers(self.test.recordings),
            "utterances": len(used),
            "test_utterances": len(self.test.items),
            "set_aside": len(self.set_aside),
            "hours": round(math.fsum(sorted(r.seconds for r in used)) / 3600, 6),
            "steps": self.recipe.steps,
            "test_eer": round(self.test_eer(), 6),
        }


def speakers(recordings: set[SpeakerRecording]) -> int:
    """The number of speakers of recordings."""
    return len({recording.speaker for recording in recordings})


def write_examples(folder: Path, tested: Sequence[SpeakerRecording]) -> None:
    """Write ``examples/*.flac``, ``examples.json`` and ``check.py`` into an encoder folder."""
    encoder = VoiceEncoder.load(folder)
    rate = encoder.card.audio.sample_rate
    (folder / "examples").mkdir(exist_ok=True)
    examples = []
    for number, recording in enumerate(example_recordings(tested)):
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
    with atomic_write(folder / EXAMPLES_FILE) as aside:
        aside.write_text(json.dumps(examples, indent=1) + "\n")
    (folder / "check.py").write_text(CHECK)


def example_recordings(tested: Sequence[SpeakerRecording]) -> list[SpeakerRecording]:
    """The two longest clips of at most ten seconds of the first two speakers by name."""
    names = sorted({recording.speaker for recording in tested})[:SPEAKERS]
    found = []
    for name in names:
        mine = [r for r in tested if r.speaker == name and r.seconds <= LONGEST_SECONDS]
        found += sorted(mine, key=lambda r: (-r.seconds, r.id))[:2]
    return found


if __name__ == "__main__":
    main()
