"""Trains a decoder for a codec's codes: ``python -m tts_assets.codec.train_decoder run.json``.

It runs directly or under torchrun. Encoder and quantizer do not change, so existing codes and the
models that were trained on them stay valid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tts_assets.codec.backends import WEIGHTS_FILE, ScalarQuantized, write_recipe
from tts_assets.codec.config import DecoderProgram, DecoderRecipe
from tts_assets.codec.decoder import (
    OUTPUTS,
    CodecDecoder,
    MelLoss,
    ReferenceDiscriminators,
    copy_fitting_weights,
    decoder_config,
    level_loss,
    open_decoder,
    save_decoder,
)
from tts_assets.codec.model import Codec
from tts_assets.codec.training import Generated, GeneratorLoop
from tts_assets.codec.windows import TrainingAudio
from tts_assets.codec.xcodec2 import SAMPLE_RATE, initialize_decoder
from tts_assets.core.artifacts import DecoderFacts
from tts_assets.core.audio import resample
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config

VALIDATION_CLIPS = 16
MEL_WEIGHT, LOUDNESS_WEIGHT = 15.0, 1.0  # as in the reference trainer


def main(argv: list[str] | None = None) -> None:
    """Train the decoder of a ``run.json`` and publish it to ``result/``."""
    program = load_config(DecoderProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        trainer = decoder_trainer(run, program)
        trainer.train()
        run.finish(trainer.export(program).model_dump())


def decoder_trainer(run: Run, program: DecoderProgram) -> DecoderTrainer:
    """Data, codec, decoder and trainer of a program; resumes from the newest checkpoint."""
    recipe = program.recipe
    audio = TrainingAudio(program.samples, recipe, program.validation, recipe.sample_rate)
    note_low_rates(run, audio)
    codec = Codec.load(program.codec, str(run.device))
    decoder = initial_decoder(run, program, codec)
    return DecoderTrainer(run, recipe, audio, codec, decoder, program.codec_content)


def note_low_rates(run: Run, audio: TrainingAudio) -> None:
    """Log how many utterances were recorded below the decoder's rate.

    A decoder cannot learn frequencies that its training data does not have.
    """
    rates = audio.train["sample_rate"].to_numpy()
    low = rates[(rates > 0) & (rates < audio.rate)]
    if len(low):
        run.note(
            f"{len(low)} of {len(rates)} utterances were recorded below {audio.rate} Hz, "
            f"down to {low.min()}: they have no content at the highest frequencies"
        )


def initial_decoder(run: Run, program: DecoderProgram, codec: Codec) -> CodecDecoder:
    """The decoder before the first step: a trained one, or random weights.

    With ``start = "codec"`` the weights of the codec's own decoder that fit are copied over the
    random ones. Raises :class:`ConfigError` if token rate, sample rate or codec do not match.
    """
    recipe = program.recipe
    output = OUTPUTS[recipe.sample_rate]
    if not isinstance(codec.backend, ScalarQuantized):
        raise ConfigError(
            "[codec.decoder] is for codecs with one codebook, this one is a "
            f"{type(codec.backend.model).__name__}: remove the table"
        )
    if output.token_rate != codec.token_rate:
        raise ConfigError(
            f"the codec has {codec.token_rate:g} codes per second; decoders are built for "
            f"{output.token_rate}"
        )
    model = codec.backend.model
    if program.start is not None:
        decoder = open_decoder(program.start)
        if decoder.output.sample_rate != recipe.sample_rate:
            raise ConfigError(
                f"{program.start} decodes to {decoder.output.sample_rate} Hz: set "
                f"sample_rate to that, or start from another"
            )
        if decoder.config.quantization_dim != model.config.quantization_dim:
            raise ConfigError(f"{program.start} decodes the codes of another codec")
        return decoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        decoder = CodecDecoder(decoder_config(model.config), output)
        initialize_decoder(decoder)
    if recipe.start == "codec":
        new = copy_fitting_weights(model.acoustic_decoder, decoder)
        run.note(f"from the codec's own decoder; random are {', '.join(new) or 'none'}")
    return decoder


class Decoding(nn.Module):
    """Decodes frames; the module that DDP wraps."""

    def __init__(self, decoder: CodecDecoder, bf16: bool) -> None:
        super().__init__()
        self.decoder, self.bf16 = decoder, bf16

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (clips, codes, hidden) to float32 waveforms (clips, samples)."""
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.bf16):
            return self.decoder.waves(frames).float()


class DecoderTrainer(GeneratorLoop):
    """Trains a decoder on the codes that a frozen codec computes of each window."""

    what = "decoder"
    recipe: DecoderRecipe
    discriminator_class = ReferenceDiscriminators

    def __init__(
        self,
        run: Run,
        recipe: DecoderRecipe,
        audio: TrainingAudio,
        codec: Codec,
        decoder: CodecDecoder,
        codec_content: str,
    ) -> None:
        super().__init__(run, recipe, audio)
        self.codec = codec
        self.decoder = decoder.to(run.device)
        self.mel = MelLoss(audio.rate).to(run.device)
        identity = {
            "recipe": recipe,
            "codec": codec_content,
            "data": audio.train["id"].to_list(),
        }
        self.prepare(self.decoder, identity, codec.codebook_size)
        self.decode = self.parallel(Decoding(self.decoder, recipe.precision == "bf16"))

    def generate(self, step: int) -> Generated:
        """Encode and decode this rank's windows; the losses are mel and loudness."""
        targets = self.windows_of(step)
        codes = self.codes(targets)
        waves = self.decode(self.frames(codes))
        targets = targets[:, : waves.shape[1]].to(self.run.device)
        mel, loudness = self.mel(waves, targets), level_loss(waves, targets)
        loss = MEL_WEIGHT * mel + LOUDNESS_WEIGHT * loudness
        report = {"mel": float(mel.detach()), "loudness": float(loudness.detach())}
        return Generated(waves, targets, codes.to(self.run.device), loss, report)

    def codes(self, targets: Tensor) -> Tensor:
        """Codes (clips, codes) of clips (clips, samples) of one length at the decoder's rate."""
        at_rate = np.stack([resample(w.numpy(), self.audio.rate, SAMPLE_RATE) for w in targets])
        lengths = torch.full((len(at_rate),), at_rate.shape[1])
        return self.codec.encode_batch(torch.from_numpy(at_rate), lengths)[0]

    def frames(self, codes: Tensor) -> Tensor:
        """The output of the frozen quantizer for codes, (clips, codes, hidden)."""
        with torch.no_grad():
            return self.codec.backend.dequantized(codes.to(self.run.device))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Multi-resolution mel L1 (log10) of held-out clips."""
        distances = []
        for target in self.audio.held_out(VALIDATION_CLIPS):
            made = self.average.waves(self.frames(self.codes(target)))
            distances.append(self.mel(made, target[:, : made.shape[1]].to(made.device)))
        return {"val_mel": float(torch.stack(distances).mean())} if distances else {}

    def export(self, program: DecoderProgram) -> DecoderFacts:
        """Write the decoder's folder to ``result/`` (rank 0); return its facts."""
        if self.run.is_main:
            save_decoder(self.average, self.run.result_dir, self.recipe.export_dtype)
            start = program.start and program.start / WEIGHTS_FILE
            write_recipe(self.recipe, self.run.result_dir, "start", start)
            self.copy_metrics()
        output = self.average.output
        return DecoderFacts(
            codec=program.codec_content,
            sample_rate=output.sample_rate,
            hop_length=output.code_samples,
            token_rate=self.codec.token_rate,
            codebook_size=self.codec.codebook_size,
            parameters=self.average.parameter_count,
        )


if __name__ == "__main__":
    main()
