"""Trains a codec: ``python -m tts_assets.codec.train run.json``, directly or under torchrun.

The training has two stages. The first uses spectral losses only. From ``adversarial.start`` on
discriminators are added, because spectral losses without a phase leave a hoarse sound. By default
the encoder is frozen in the second stage, so only the decoder learns from the discriminators.

The published weights are an exponential moving average. Validation uses the same average. If the
encoder is frozen in the second stage, that stage starts from the average, too.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tts_assets.audio_models.whisper import model_folder
from tts_assets.codec.backends import (
    WEIGHTS_FILE,
    facts_of,
    is_compact,
    open_compact,
    save_codec,
    write_recipe,
)
from tts_assets.codec.config import CodecProgram, CodecRecipe, SemanticConfig
from tts_assets.codec.losses import SpectralLoss, covariance_loss, usage
from tts_assets.codec.original import PublishedCodec
from tts_assets.codec.semantic import (
    OwnFeatures,
    SemanticFeatures,
    SemanticHead,
    WhisperFeatures,
)
from tts_assets.codec.training import Generated, GeneratorLoop
from tts_assets.codec.windows import TrainingAudio
from tts_assets.codec.xcodec2 import CompactXcodec2, build, calibrate, centre_latents
from tts_assets.core.artifacts import CodecFacts
from tts_assets.core.program import Run, load_config

TrainableCodec = CompactXcodec2 | PublishedCodec
VALIDATION_CLIPS = 16  # validation on so many whole clips costs as much as about ten steps


def main(argv: list[str] | None = None) -> None:
    """Train the codec of a ``run.json`` and publish it to ``result/``."""
    program = load_config(CodecProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        trainer = codec_trainer(run, program)
        trainer.train()
        run.finish(trainer.export().model_dump())


def codec_trainer(run: Run, program: CodecProgram) -> CodecTrainer:
    """Data, model and trainer of a program; resumes from the run folder's newest checkpoint."""
    recipe = program.recipe
    audio = training_audio(program)
    return CodecTrainer(run, recipe, audio, initial_codec(recipe, audio))


def training_audio(program: CodecProgram) -> TrainingAudio:
    """The windows of the program's samples."""
    recipe = program.recipe
    return TrainingAudio(
        program.samples, recipe, program.validation, speeds=recipe.speeds, gains=recipe.gains
    )


def initial_codec(recipe: CodecRecipe, audio: TrainingAudio) -> TrainableCodec:
    """The codec before the first step: the base, or random weights calibrated to the audio.

    Raises ValueError for a base that is neither a codec of this project nor an X-Codec-2.
    """
    if recipe.base is not None:
        return opened_base(recipe.base)
    if recipe.architecture.semantic_model is not None:
        model = PublishedCodec.build(recipe.architecture, recipe.seed)
        with torch.no_grad():
            centre_latents(model.model.quantizer.project_in, model.latents(audio.calibration()))
        return model
    compact = build(recipe.architecture, recipe.seed)
    calibrate(compact, audio.calibration())
    compact.semantic_encoder.requires_grad_(False)
    return compact


def opened_base(folder: Path) -> TrainableCodec:
    """The codec of a folder, for training; see :func:`initial_codec`."""
    if is_compact(folder):
        compact = open_compact(folder)
        compact.semantic_encoder.requires_grad_(False)
        return compact
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind != "xcodec2":
        raise ValueError(
            f"{folder} holds a {kind!r} model: [codec.train] continues codecs of this project and "
            'X-Codec-2; for NeuCodec train a decoder: [codec.decoder] with start = "codec"'
        )
    return PublishedCodec.open(folder)


def semantic_targets(
    config: SemanticConfig, seed: int, codec: TrainableCodec
) -> tuple[SemanticFeatures, SemanticHead]:
    """The frozen encoder of the targets, and a head with random weights that predicts them.

    Raises ValueError for the features of a codec without a pretrained semantic encoder.
    """
    features: SemanticFeatures
    if config.features == "whisper":
        features = WhisperFeatures.load(model_folder(config.whisper, Path()))
    elif isinstance(codec, PublishedCodec):
        features = OwnFeatures(codec)
    else:
        raise ValueError(
            "codec.train.semantic: a compact codec has no pretrained semantic encoder: write "
            'features = "whisper"'
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = SemanticHead(codec.config.quantization_dim, features.size)
    return features, head


class Reconstruction(nn.Module):
    """Encodes, quantizes and decodes waveforms; the module that DDP wraps."""

    def __init__(
        self, model: TrainableCodec, frozen: bool, bf16: bool, head: SemanticHead | None = None
    ) -> None:
        """``frozen``: the encoder gets no gradients; ``head`` predicts semantic features."""
        super().__init__()
        self.model, self.frozen, self.bf16, self.head = model, frozen, bf16, head

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Waveforms (batch, samples) to reconstructions, latents, codes and semantic features.

        Returns float32 (batch, samples), (batch, codes, dimensions), (batch, codes, 1), and, with a
        head, (batch, codes, features).
        """
        device = waves.device.type
        # A frozen encoder computes the codes of inference: no gradients, full precision, and its
        # features are clamped to the range of speech (see CodecTrainer._connect). An export in half
        # precision changes 0.25 % of the codes.
        encoder_bf16 = self.bf16 and not self.frozen
        with (
            torch.autocast(device, torch.bfloat16, enabled=encoder_bf16),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen),
        ):
            latents = self.model.latents(waves)
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            quantized, codes = self.model.quantize(latents)
            made = self.model.waves(quantized)
            features = None if self.head is None else self.head(quantized).float()
        return made.float(), latents, codes, features


class CodecTrainer(GeneratorLoop):
    """Trains encoder, quantizer and decoder together."""

    what = "codec"
    recipe: CodecRecipe

    def __init__(
        self, run: Run, recipe: CodecRecipe, audio: TrainingAudio, codec: TrainableCodec
    ) -> None:
        super().__init__(run, recipe, audio)
        self.codec = codec
        nn.Module.to(codec, run.device)  # decorators of transformers hide the types
        self.spectral = SpectralLoss().to(run.device)
        data = audio.train["id"].to_list()
        size = facts_of(self.codec.published()).codebook_size
        self.semantic = self.head = None
        if recipe.semantic is not None:
            self.semantic, self.head = semantic_targets(recipe.semantic, recipe.seed, self.codec)
            self.semantic.to(run.device).calibrate(audio.calibration().to(run.device))
            self.head = self.head.to(run.device) if recipe.semantic.weight else None
        self.prepare(self.codec, {"recipe": recipe, "data": data}, size, self.head)
        self.frozen = recipe.freeze_encoder
        if recipe.adversarial and self.step > recipe.first_adversarial_step:
            self.frozen |= recipe.adversarial.freeze_encoder
        self._connect()

    def _connect(self) -> None:
        """Wrap what is trained from here on for DDP; freeze the encoder if it is frozen."""
        if self.frozen:
            for module in self.codec.encoder_parts():
                module.requires_grad_(False).eval()
        bf16 = self.recipe.precision == "bf16"
        head = None if self.frozen else self.head  # it trains the encoder
        self.reconstruct = self.parallel(Reconstruction(self.codec, self.frozen, bf16, head))

    def begin_adversarial(self) -> None:
        """Load the averaged weights and freeze the encoder, if the recipe says so.

        The published encoder is the averaged one, so the decoder must learn from its codes.
        """
        config = self.recipe.adversarial
        if config is None or not config.freeze_encoder or self.frozen:
            return
        self.codec.load_state_dict(self.average.state_dict())
        self.frozen = True
        self._connect()

    def generate(self, step: int) -> Generated:
        """Reconstruct this rank's windows; the losses are spectral, semantic and of covariance.

        The metric of the covariance loss is called ``spread`` in ``metrics.jsonl``. It is for the
        encoder of a compact codec, unless that is frozen.
        """
        waves = self.windows_of(step).to(self.run.device)
        made, latents, codes, predicted = self.reconstruct(waves)
        loss, mel = self.spectral(made, waves)
        report = {"mel": float(mel)}
        if self.semantic is not None:
            loss = loss + self._semantic_losses(waves, made, predicted, report)
        if not self.frozen and isinstance(self.codec, CompactXcodec2):
            covariance = covariance_loss(latents)
            loss = loss + self.recipe.covariance_weight * covariance
            report["spread"] = float(covariance.detach())
        return Generated(made, waves, codes, loss, report)

    def _semantic_losses(
        self, waves: Tensor, made: Tensor, predicted: Tensor | None, report: dict[str, float]
    ) -> Tensor:
        """The weighted sum of the semantic losses; adds their metrics to ``report``."""
        assert self.semantic is not None and self.recipe.semantic is not None
        config, loss = self.recipe.semantic, waves.new_zeros(())
        with torch.no_grad():
            targets = self.semantic(waves)
        if predicted is not None and config.weight:
            error = (predicted - targets).square().mean()
            loss = loss + config.weight * error
            report["semantic"] = float(error.detach())
        if config.audio_weight:
            error = (self.semantic(made) - targets).square().mean()
            loss = loss + config.audio_weight * error
            report["semantic_audio"] = float(error.detach())
        return loss

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Log-mel L1 of held-out clips and the entropy of their codes in bits per code."""
        mels: list[Tensor] = []
        counts = torch.zeros_like(self.usage.counts)
        for clip in self.audio.held_out(VALIDATION_CLIPS):
            waves = clip.to(self.run.device)
            quantized, codes = self.average.quantize(self.average.latents(waves))
            mels.append(self.spectral(self.average.waves(quantized), waves)[1])
            counts += codes.flatten().long().bincount(minlength=len(counts))
        if not mels:
            return {}
        entropy = usage(counts.cpu().numpy())["entropy"]
        return {"val_mel": float(torch.stack(mels).mean()), "val_entropy": entropy}

    def export(self) -> CodecFacts:
        """Write the codec folder to ``result/`` (rank 0); return its facts."""
        found = self.usage.figures(self.run.world_size)
        facts = facts_of(self.average.published()).model_copy(
            update={name: found[name] for name in ("perplexity", "dead_codes")}
        )
        if self.run.is_main:
            folder: Path = self.run.result_dir
            exact = self.average.encoder_parts() if self.recipe.freeze_encoder else ()
            save_codec(self.average.published(), folder, self.recipe.export_dtype, exact)
            base = self.recipe.base and self.recipe.base / WEIGHTS_FILE
            write_recipe(self.recipe, folder, "base", base)
            self.copy_metrics()
        return facts


if __name__ == "__main__":
    main()
