"""Trains a codec: ``python -m tts_assets.codec.train run.json``, by hand or under torchrun.

Two stages: first spectra alone; from ``adversarial.start`` on also against discriminators, because
spectra without a phase sound hoarse. By then the encoder knows what to write; it is frozen, and the
decoder learns how to say it. The published weights are an exponential moving average, which is also
what validation measures and, where the encoder is frozen then, what the second stage begins with.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tts_assets.codec.config import CodecProgram, CodecRecipe
from tts_assets.codec.dataset import TrainingAudio
from tts_assets.codec.losses import SpectralLoss, spread_loss
from tts_assets.codec.quality import usage
from tts_assets.codec.storage import (
    WEIGHTS_FILE,
    facts_of,
    open_compact,
    save_compact,
    write_recipe,
)
from tts_assets.codec.training import Generated, TrainingLoop
from tts_assets.codec.xcodec2 import CompactXcodec2, build, calibrate
from tts_assets.core.artifacts import CodecFacts
from tts_assets.core.program import Run, load_config

VALIDATION_CLIPS = 16  # a validation of whole clips costs as much as some ten steps


class Reconstruction(nn.Module):
    """Waveforms in, waveforms out, and what lies between: what DDP wraps."""

    def __init__(self, model: CompactXcodec2, frozen: bool, bf16: bool) -> None:
        """``frozen``: the encoder."""
        super().__init__()
        self.model, self.frozen, self.bf16 = model, frozen, bf16

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, samples) to the same, float32, latents (batch, codes, dimensions) and codes
        (batch, codes, 1)."""
        device = waves.device.type
        # A frozen encoder gives the codes of inference: no gradients, full precision, held to the
        # range of speech (see _connect). An export in half precision changes 0.25 % of them.
        encoder_bf16 = self.bf16 and not self.frozen
        with (
            torch.autocast(device, torch.bfloat16, enabled=encoder_bf16),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen),
        ):
            latents = self.model.latents(waves)
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            quantized, codes = self.model.quantizer.quantize(latents)
            made = self.model.waves(quantized)
        return made.float(), latents, codes


class CodecTrainer(TrainingLoop):
    """Encoder, quantizer and decoder learn together."""

    what = "codec"
    recipe: CodecRecipe

    def __init__(self, run: Run, program: CodecProgram) -> None:
        super().__init__(run, program.recipe)
        recipe = self.recipe
        self.audio = TrainingAudio(program.samples, recipe, program.validation)
        self.codec = self._new_model().moved(run.device)
        self.spectral = SpectralLoss().to(run.device)
        data = [sample.id for sample in self.audio.train]
        size = facts_of(self.codec).codebook_size
        self.prepare(self.codec, {"recipe": recipe, "data": data}, size)
        self.frozen = recipe.freeze_encoder
        if recipe.adversarial and self.step > recipe.first_judged:
            self.frozen |= recipe.adversarial.freeze_encoder
        self._connect()

    def _new_model(self) -> CompactXcodec2:
        if self.recipe.base is not None:
            model = open_compact(self.recipe.base)
        else:
            model = build(self.recipe.architecture, self.recipe.seed)
            calibrate(model, self.audio.calibration())
        model.semantic_encoder.requires_grad_(False)
        return model

    def _connect(self) -> None:
        """What learns from here on, over all ranks."""
        if self.frozen:
            for module in self.codec.encoder_parts():
                module.requires_grad_(False).eval()
        bf16 = self.recipe.precision == "bf16"
        self.reconstruct = self.parallel(Reconstruction(self.codec, self.frozen, bf16))

    def begin_adversarial(self) -> None:
        """The encoder that is published is the averaged one: its codes are what the decoder hears
        from here on."""
        config = self.recipe.adversarial
        if config is None or not config.freeze_encoder or self.frozen:
            return
        self.codec.load_state_dict(self.average.state_dict())
        self.frozen = True
        self._connect()

    def generate(self, step: int) -> Generated:
        waves = self.audio.batch(step, self.run.rank, self.run.world_size).to(self.run.device)
        made, latents, codes = self.reconstruct(waves)
        loss, mel = self.spectral(made, waves)
        report = {"mel": float(mel)}
        if not self.frozen:
            spread = spread_loss(latents)
            loss = loss + self.recipe.spread_weight * spread
            report["spread"] = float(spread.detach())
        return Generated(made, waves, codes, loss, report)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Log-mel L1 of held-out clips and the entropy of their codes, in bits a code."""
        mels: list[Tensor] = []
        counts = torch.zeros_like(self.usage.counts)
        for sample in self.audio.validation[:VALIDATION_CLIPS]:
            waves = self.audio.whole(sample).to(self.run.device)
            quantized, codes = self.average.quantizer.quantize(self.average.latents(waves))
            mels.append(self.spectral(self.average.waves(quantized), waves)[1])
            counts += codes.flatten().long().bincount(minlength=len(counts))
        if not mels:
            return {}
        entropy = usage(counts.cpu().numpy())["entropy"]
        return {"val_mel": float(torch.stack(mels).mean()), "val_entropy": entropy}

    def export(self) -> CodecFacts:
        """Write the codec folder to ``result/`` (rank 0); returns its facts."""
        found = self.usage.figures(self.run.world_size)
        facts = facts_of(self.average).model_copy(
            update={name: found[name] for name in ("perplexity", "dead_codes")}
        )
        if self.run.is_main:
            folder: Path = self.run.result_dir
            same_codes = self.recipe.freeze_encoder
            save_compact(self.average, folder, self.recipe.export_dtype, same_codes)
            base = self.recipe.base and self.recipe.base / WEIGHTS_FILE
            write_recipe(self.recipe, folder, "base", base)
            self.copy_metrics()
        return facts


def main(argv: list[str] | None = None) -> None:
    program = load_config(CodecProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        trainer = CodecTrainer(run, program)
        trainer.train()
        facts = trainer.export()
        run.finish(facts.model_dump())


if __name__ == "__main__":
    main()
