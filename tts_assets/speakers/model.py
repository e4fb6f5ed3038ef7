"""Networks of speaker encoders, their files, and the loss of their training.

A network maps mels (batch, frames, bands) to unit vectors (batch, embedding). The ResNet uses group
norm, so an embedding does not depend on other clips of the batch.

An encoder folder has ``model.safetensors``, and ``config.json`` with the architecture and the
preprocessing. The public weights of Resemblyzer and Real-Time-Voice-Cloning are one ``.pt`` file
without settings; their settings are
:data:`~tts_assets.speakers.config.PUBLIC_AUDIO`.

The loss is the generalized end-to-end loss (GE2E; Wan et al., 2018,
https://arxiv.org/abs/1710.10467).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import Config, ConfigError
from tts_assets.speakers.config import (
    CONFIG_FILE,
    PUBLIC_ARCHITECTURE,
    PUBLIC_AUDIO,
    WEIGHTS_FILE,
    AudioSettings,
    CardArchitecture,
    EncoderRecipe,
    check_exists,
)

BLOCKS = (3, 4, 6, 3)  # of ResNet34
GROUPS = 4
SCALE, OFFSET = 10.0, -5.0  # of GE2E, initial values in the paper
LEAST_SCALE = 1e-6


class LstmEncoder(nn.Module):
    """A linear layer on the last state of an LSTM (Wan et al., 2018).

    The weights have the names of the public checkpoints.
    """

    def __init__(self, architecture: CardArchitecture, mels: int) -> None:
        super().__init__()
        hidden, self.relu = architecture.hidden, architecture.relu
        self.lstm = nn.LSTM(mels, hidden, architecture.layers, batch_first=True)
        self.linear = nn.Linear(hidden, architecture.embedding)

    def forward(self, mels: Tensor) -> Tensor:
        """Mels (batch, frames, bands) to unit vectors (batch, embedding)."""
        _, (states, _) = self.lstm(mels)
        raw = self.linear(states[-1])
        return F.normalize(raw.relu() if self.relu else raw, dim=-1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm, and a skip connection (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, outputs) for _ in range(2))
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, bands, frames) to (batch, outputs, bands / stride, frames / stride)."""
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.skip(x))


class ResNetEncoder(nn.Module):
    """ResNet34 over time and frequency; a linear layer on the mean and deviation over time.

    Source: Chung et al., In defence of metric learning for speaker recognition (2020).
    """

    def __init__(self, architecture: CardArchitecture, mels: int) -> None:
        super().__init__()
        width, self.relu = architecture.channels, architecture.relu
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, width)
        layers: list[nn.Module] = []
        inputs, bands = width, mels
        for stage, blocks in enumerate(BLOCKS):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                bands = -(-bands // stride)
                layers.append(ResidualBlock(inputs, width << stage, stride))
                inputs = width << stage
        self.blocks = nn.Sequential(*layers)
        self.linear = nn.Linear(2 * inputs * bands, architecture.embedding)

    def forward(self, mels: Tensor) -> Tensor:
        """Mels (batch, frames, bands) to unit vectors (batch, embedding)."""
        x = F.relu(self.norm(self.stem(mels.transpose(1, 2)[:, None])))
        x = self.blocks(x).flatten(1, 2)  # (batch, channels x bands, frames)
        deviation = x.var(dim=-1, correction=0).clamp_min(1e-8).sqrt()
        raw = self.linear(torch.cat([x.mean(dim=-1), deviation], dim=-1))
        return F.normalize(raw.relu() if self.relu else raw, dim=-1)


def build(architecture: CardArchitecture, audio: AudioSettings, seed: int = 0) -> nn.Module:
    """An encoder with random weights that follow from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = LstmEncoder if architecture.kind == "lstm" else ResNetEncoder
        return kind(architecture, audio.mels)


class EncoderCard(Config):
    """The ``config.json`` of an encoder.

    ``scale`` and ``offset`` are those of the loss at the end of the training. Fine-tuning continues
    with them, because with the initial values its first steps would degrade the weights.
    """

    architecture: CardArchitecture
    audio: AudioSettings
    scale: float = Field(SCALE, gt=0)
    offset: float = OFFSET

    @classmethod
    def of(cls, recipe: EncoderRecipe) -> EncoderCard:
        """The card of a new encoder."""
        architecture = CardArchitecture(**recipe.architecture.model_dump())
        return cls(architecture=architecture, audio=recipe.audio.settings())


def save_encoder(model: nn.Module, card: EncoderCard, folder: Path) -> None:
    """Write the encoder folder."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(folder / WEIGHTS_FILE) as aside:
        save_file(tensors, aside)
    with atomic_write(folder / CONFIG_FILE) as aside:
        aside.write_text(card.to_json())


def open_encoder(path: Path) -> tuple[nn.Module, EncoderCard]:
    """Open a folder of this project or a public ``.pt``; the model is in evaluation mode.

    Raises ConfigError if ``path`` is no encoder, or if weights and architecture do not match.
    """
    check_exists(path)
    if path.is_file():
        card, weights = _public(path)
    else:
        card = EncoderCard.from_json(path / CONFIG_FILE)
        weights = load_file(path / WEIGHTS_FILE)
    model = build(card.architecture, card.audio)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"the weights of {path} do not match its architecture: {error}") from None
    return model.eval(), card


def copy_encoder(path: Path, folder: Path) -> dict[str, int]:
    """Write the encoder at ``path`` to ``folder`` in this project's format; returns its facts."""
    model, card = open_encoder(path)
    save_encoder(model, card, folder)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "embedding": card.architecture.embedding}


def _public(path: Path) -> tuple[EncoderCard, dict[str, torch.Tensor]]:
    """Card and tensors of a public file, which also holds an optimizer."""
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{path} is no checkpoint of tensors only: {error}") from None
    state = found.get("model_state") if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise ConfigError(f"{path} has no model_state, which the public encoders have")
    card = EncoderCard(
        architecture=PUBLIC_ARCHITECTURE,
        audio=PUBLIC_AUDIO,
        scale=float(state.get("similarity_weight", SCALE)),
        offset=float(state.get("similarity_bias", OFFSET)),
    )
    return card, {k: v for k, v in state.items() if k.startswith(("lstm.", "linear."))}


class Ge2eLoss(nn.Module):
    """GE2E with learned scale and offset; ``kind``: the softmax or the contrast loss.

    The input are the embeddings (N speakers, M utterances, D) of one batch. The similarity of an
    utterance and a speaker is ``scale * cosine + offset`` of its embedding and the speaker's
    centroid; for its own speaker the utterance is left out of the centroid. One matrix product
    computes all similarities, and the N x M own ones are then replaced. The loss is the mean over
    utterances; the paper has the sum.
    """

    def __init__(
        self,
        kind: Literal["softmax", "contrast"] = "softmax",
        scale: float = SCALE,
        offset: float = OFFSET,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.tensor(scale))
        self.offset = nn.Parameter(torch.tensor(offset))

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Clamp the scale after a step. A clamp in ``forward`` would remove its gradient."""
        self.scale.clamp_(min=LEAST_SCALE)

    def similarities(self, embeddings: Tensor) -> Tensor:
        """Unit vectors (N, M, D) to similarities (N, M, N) of utterances and speakers."""
        speakers, utterances, _ = embeddings.shape
        sums = embeddings.sum(dim=1, keepdim=True)
        centroids = F.normalize(sums[:, 0], dim=-1)
        others = F.normalize(sums - embeddings, dim=-1)  # a mean has the direction of its sum
        cosines = embeddings @ centroids.T
        own = (embeddings * others).sum(dim=-1)
        own_index = torch.arange(speakers, device=embeddings.device)[:, None, None]
        cosines = cosines.scatter(2, own_index.expand(-1, utterances, 1), own[..., None])
        return self.scale * cosines + self.offset

    def forward(self, embeddings: Tensor) -> Tensor:
        """Unit vectors (N, M, D) to the loss, a scalar."""
        similarities = self.similarities(embeddings)
        speakers, utterances, _ = similarities.shape
        truth = torch.arange(speakers, device=embeddings.device).repeat_interleave(utterances)
        rows = similarities.flatten(0, 1)
        if self.kind == "softmax":
            return F.cross_entropy(rows, truth)
        own = rows.gather(1, truth[:, None])[:, 0]
        nearest = rows.scatter(1, truth[:, None], -torch.inf).amax(dim=1)
        return (1 - own.sigmoid() + nearest.sigmoid()).mean()


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


class Adversary(nn.Module):
    """A classifier behind a gradient reversal layer (Ganin and Lempitsky, 2015).

    It learns to predict classes from embeddings, and the encoder learns to prevent that.
    """

    def __init__(self, embedding: int, hidden: int, classes: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.layers = nn.Sequential(
            nn.Linear(embedding, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """Embeddings (batch, D) and classes (batch,) to the cross-entropy, a scalar."""
        reversed_ = _Reversal.apply(embeddings, self.weight)
        return F.cross_entropy(self.layers(reversed_), classes)


class _Gathered(torch.autograd.Function):
    """Gathers the rows of all ranks; backward sums the ranks' gradients of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


class BatchLoss(nn.Module):
    """Computes the loss of the whole batch from the crops of one rank; the module that DDP wraps.

    A rank's gradient is that of the loss through its rows, summed over the copies of the loss on
    all ranks. The mean over ranks, which DDP takes, is the gradient of the whole batch.
    """

    def __init__(self, model: nn.Module, ge2e: Ge2eLoss, adversary: Adversary | None) -> None:
        super().__init__()
        self.model, self.ge2e, self.adversary = model, ge2e, adversary

    def forward(
        self, crops: Tensor, speakers: int, classes: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Crops (rows, frames, bands) to the GE2E loss and the adversary's loss, two scalars.

        ``classes``: of all rows of the batch, for the adversary.
        """
        embeddings = self.model(crops)
        if dist.is_initialized():
            embeddings = _Gathered.apply(embeddings)
        adversarial = None
        if self.adversary is not None and classes is not None:
            adversarial = self.adversary(embeddings, classes)
        return self.ge2e(embeddings.unflatten(0, (speakers, -1))), adversarial
