"""Trains a decoder for a codec's codes: ``python -m tts_assets.codec.train_decoder run.json``, by
hand or under torchrun. Encoder and quantizer stay as they are, so codes and models stay valid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tts_assets.codec.config import DecoderProgram, DecoderRecipe
from tts_assets.codec.dataset import TrainingAudio
from tts_assets.codec.decoder import (
    OUTPUTS,
    CodecDecoder,
    decoder_config,
    open_decoder,
    save_decoder,
    take_over,
)
from tts_assets.codec.losses import MelLoss, loudness_loss
from tts_assets.codec.model import Codec
from tts_assets.codec.storage import WEIGHTS_FILE, write_recipe
from tts_assets.codec.training import Generated, TrainingLoop
from tts_assets.codec.xcodec2 import SAMPLE_RATE, initialize_decoder
from tts_assets.core.artifacts import DecoderFacts
from tts_assets.core.audio import resample
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config

VALIDATION_CLIPS = 16


class Decoding(nn.Module):
    """What DDP wraps: frames in, waveforms out in float32."""

    def __init__(self, decoder: CodecDecoder, bf16: bool) -> None:
        super().__init__()
        self.decoder, self.bf16 = decoder, bf16

    def forward(self, frames: Tensor) -> Tensor:
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.bf16):
            return self.decoder.waves(frames).float()


class DecoderTrainer(TrainingLoop):
    """The codec listens, the decoder learns to speak."""

    what = "decoder"
    recipe: DecoderRecipe

    def __init__(self, run: Run, program: DecoderProgram) -> None:
        super().__init__(run, program.recipe)
        recipe, self.program = self.recipe, program
        self.rate = recipe.sample_rate
        self.audio = TrainingAudio(program.samples, recipe, program.validation, self.rate)
        self._tell_narrow()
        self.codec = Codec.load(program.codec, str(run.device))
        self.decoder = self._new_decoder().to(run.device)
        self.mel = MelLoss(self.rate).to(run.device)
        identity = {
            "recipe": recipe,
            "codec": program.codec_content,
            "data": [sample.id for sample in self.audio.train],
        }
        self.prepare(self.decoder, identity, self.codec.codebook_size)
        self.decode = self.parallel(Decoding(self.decoder, recipe.precision == "bf16"))

    def _tell_narrow(self) -> None:
        """A decoder says what it was taught: of recordings at half its rate, the lower half."""
        train = self.audio.train
        narrow = [s.sample_rate for s in train if 0 < s.sample_rate < self.rate]
        if narrow:
            self.run.note(
                f"{len(narrow)} of {len(train)} utterances were recorded below {self.rate} Hz, "
                f"down to {min(narrow)}: they teach nothing of the highest frequencies"
            )

    def _new_decoder(self) -> CodecDecoder:
        output = OUTPUTS[self.rate]
        if output.token_rate != self.codec.token_rate:
            raise ConfigError(
                f"the codec has {self.codec.token_rate:g} codes a second; a decoder is built for "
                f"{output.token_rate}"
            )
        if self.program.start is not None:
            decoder = open_decoder(self.program.start)
            if decoder.output.sample_rate != self.rate:
                raise ConfigError(
                    f"{self.program.start} decodes to {decoder.output.sample_rate} Hz: set "
                    f"sample_rate to that, or start from another"
                )
            if decoder.config.quantization_dim != self.codec.backend.model.config.quantization_dim:
                raise ConfigError(f"{self.program.start} decodes the codes of another codec")
            return decoder
        trained = self.codec.backend.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            decoder = CodecDecoder(decoder_config(trained.config, self.recipe.size), output)
            initialize_decoder(decoder)
        if self.recipe.start == "codec":
            new = take_over(decoder, trained.acoustic_decoder)
            self.run.note(f"from the codec's own decoder, new are {', '.join(new) or 'none'}")
        return decoder

    def generate(self, step: int) -> Generated:
        targets = self.audio.batch(step, self.run.rank, self.run.world_size)
        codes = self.codes(targets)
        waves = self.decode(self.frames(codes))
        targets = targets[:, : waves.shape[1]].to(self.run.device)
        mel, loudness = self.mel(waves, targets), loudness_loss(waves, targets)
        loss = self.recipe.mel_weight * mel + self.recipe.loudness_weight * loudness
        report = {"mel": float(mel.detach()), "loudness": float(loudness.detach())}
        return Generated(waves, targets, codes.to(self.run.device), loss, report)

    def codes(self, targets: Tensor) -> Tensor:
        """Of clips of one length (clips, samples) at the decoder's rate, (clips, codes)."""
        heard = np.stack([resample(wave.numpy(), self.rate, SAMPLE_RATE) for wave in targets])
        lengths = torch.full((len(heard),), heard.shape[1])
        return self.codec.encode_batch(torch.from_numpy(heard), lengths)[0]

    def frames(self, codes: Tensor) -> Tensor:
        """The frozen quantizer's output, (clips, codes, hidden)."""
        with torch.no_grad():
            return self.codec.backend.dequantized(codes.to(self.run.device))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Multi-resolution mel L1 (log10) of held-out clips."""
        distances = []
        for sample in self.audio.validation[:VALIDATION_CLIPS]:
            target = self.audio.whole(sample)
            made = self.average.waves(self.frames(self.codes(target)))
            distances.append(self.mel(made, target[:, : made.shape[1]].to(made.device)))
        return {"val_mel": float(torch.stack(distances).mean())} if distances else {}

    def export(self) -> DecoderFacts:
        """Write the decoder's folder to ``result/`` (rank 0); returns its facts."""
        if self.run.is_main:
            save_decoder(self.average, self.run.result_dir, self.recipe.export_dtype)
            start = self.program.start and self.program.start / WEIGHTS_FILE
            write_recipe(self.recipe, self.run.result_dir, "start", start)
            self.copy_metrics()
        output = self.average.output
        return DecoderFacts(
            codec=self.program.codec_content,
            sample_rate=output.sample_rate,
            hop_length=output.code_samples,
            token_rate=self.codec.token_rate,
            codebook_size=self.codec.codebook_size,
            parameters=self.average.parameter_count,
        )


def main(argv: list[str] | None = None) -> None:
    program = load_config(DecoderProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        trainer = DecoderTrainer(run, program)
        trainer.train()
        facts = trainer.export()
        run.finish(facts.model_dump())


if __name__ == "__main__":
    main()
