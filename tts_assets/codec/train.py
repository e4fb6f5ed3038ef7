"""Trains a codec: ``python -m tts_assets.codec.train run.json``, directly or under torchrun.

The training has two stages. The first uses spectral losses only. From ``adversarial.start`` on
discriminators are added, because spectral losses without a phase leave a hoarse sound. By default
the encoder is frozen in the second stage, so only the decoder learns from the discriminators.

The published weights are an exponential moving average. Validation uses the same average. If the
encoder is frozen in the second stage, that stage starts from the average, too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig

from tts_assets.audio_models.whisper import packaged_model
from tts_assets.codec.backends import (
    WEIGHTS_FILE,
    facts_of,
    is_compact,
    open_compact,
    save_codec,
    write_recipe,
)
from tts_assets.codec.config import (
    CodecArchitecture,
    CodecProgram,
    CodecRecipe,
    SemanticConfig,
)
from tts_assets.codec.decoder import copy_fitting_weights
from tts_assets.codec.losses import SpectralLoss, covariance_loss, usage
from tts_assets.codec.original import PublishedCodec
from tts_assets.codec.semantic import (
    ContentCodec,
    SemanticFeatures,
    SemanticHead,
    WhisperFeatures,
)
from tts_assets.codec.training import Generated, GeneratorLoop
from tts_assets.codec.windows import TrainingAudio
from tts_assets.codec.xcodec2 import (
    HOP,
    SAMPLE_RATE,
    CompactXcodec2,
    build,
    calibrate,
    centre_latents,
)
from tts_assets.core.artifacts import CodecFacts
from tts_assets.core.audio import resample
from tts_assets.core.program import Run, load_config

TrainableCodec = CompactXcodec2 | PublishedCodec
PERTURBATIONS = (0.71, 0.8, 0.9, 1.0, 1.0, 1.12, 1.25)  # speeds: 6 semitones down to 4 up
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
    codec = initial_codec(recipe, audio)
    if isinstance(codec, ContentCodec):
        return ContentTrainer(run, recipe, audio, codec, other_audio(program))
    return CodecTrainer(run, recipe, audio, codec)


def training_audio(program: CodecProgram) -> TrainingAudio:
    """The windows of the program's samples, those of the voice if the recipe has one."""
    recipe = program.recipe
    mine = {name: recipe.corpora[name] for name in recipe.voice or recipe.corpora}
    return audio_of(program, recipe.model_copy(update={"corpora": mine}))


def other_audio(program: CodecProgram) -> TrainingAudio | None:
    """The windows of the other voices, half as many seconds; None if there is no other voice."""
    recipe = program.recipe
    others = {name: recipe.corpora[name] for name in set(recipe.corpora) - set(recipe.voice)}
    if not recipe.voice or not others:
        return None
    seconds = max(recipe.batch_seconds // 2, max(recipe.window_seconds))
    return audio_of(
        program, recipe.model_copy(update={"corpora": others, "batch_seconds": seconds})
    )


def audio_of(program: CodecProgram, recipe: CodecRecipe) -> TrainingAudio:
    """The windows of the corpora of ``recipe``."""
    return TrainingAudio(
        program.samples, recipe, program.validation, speeds=recipe.speeds, gains=recipe.gains
    )


def initial_codec(recipe: CodecRecipe, audio: TrainingAudio) -> TrainableCodec:
    """The codec before the first step: the base, or random weights calibrated to the audio.

    With ``voice`` it is a content codec (see :func:`content_codec`).

    Raises ValueError for a base that is neither a codec of this project nor an X-Codec-2.
    """
    codec = None if recipe.base is None else opened_base(recipe.base)
    if recipe.voice and not isinstance(codec, ContentCodec):
        content = content_codec(recipe, codec)
        content.calibrate(audio.calibration())
        return content
    if codec is not None:
        return codec
    if recipe.architecture.semantic_model is not None:
        model = PublishedCodec.build(recipe.architecture, recipe.seed)
        with torch.no_grad():
            centre_latents(model.model.quantizer.project_in, model.latents(audio.calibration()))
        return model
    compact = build(recipe.architecture, recipe.seed)
    calibrate(compact, audio.calibration())
    compact.semantic_encoder.requires_grad_(False)
    return compact


def content_codec(recipe: CodecRecipe, base: TrainableCodec | None) -> ContentCodec:
    """A new content codec, whose decoder starts with all weights of the base's that fit.

    Raises ValueError for a base that is no compact codec.
    """
    size = recipe.architecture
    if base is not None:
        if not isinstance(base, CompactXcodec2):
            raise ValueError(
                f"codec.train.voice: the decoder of {recipe.base} is not that of a compact codec: "
                "leave base out, or leave voice out"
            )
        size = CodecArchitecture(
            hidden=base.config.hidden_size,
            layers=base.config.num_hidden_layers,
            heads=base.config.num_attention_heads,
            intermediate=base.config.intermediate_size,
            levels=base.config.quantization_levels,
        )
    codec = ContentCodec.build(size, packaged_model(), recipe.seed)
    if base is not None:
        copy_fitting_weights(base.acoustic_decoder, codec.acoustic_decoder)
    return codec


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
        features = WhisperFeatures.load(packaged_model())
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


class OwnFeatures(SemanticFeatures):
    """The features of the semantic encoder of an X-Codec-2."""

    def __init__(self, codec: PublishedCodec) -> None:
        super().__init__(codec.config.semantic_model_config.hidden_size)
        # A method, not a submodule: the trainer moves and saves the codec.
        self.features_of = codec.semantic_features

    def raw(self, waves: Tensor) -> Tensor:
        """See :meth:`SemanticFeatures.raw`."""
        return self.features_of(waves)


class Reconstruction(nn.Module):
    """Encodes, quantizes and decodes waveforms; the module that DDP wraps."""

    def __init__(
        self, model: TrainableCodec, frozen: bool, bf16: bool, head: SemanticHead | None = None
    ) -> None:
        """``frozen``: the encoder gets no gradients; ``head`` predicts semantic features."""
        super().__init__()
        self.model, self.frozen, self.bf16, self.head = model, frozen, bf16, head

    def forward(
        self, waves: Tensor, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Waveforms (batch, samples) to reconstructions, latents, codes and semantic features.

        ``features``: the input of a content codec instead of those of the waveforms.
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
            if features is not None and isinstance(self.model, ContentCodec):
                latents = self.model.joined(features, waves)
            else:
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
        data = self.utterances()
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

    def utterances(self) -> list[str]:
        """The ids of the training utterances."""
        found: list[str] = self.audio.train["id"].to_list()
        return found

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

    def inputs(self, step: int) -> tuple[Tensor, Tensor | None, int]:
        """This rank's windows of ``step`` (windows, samples), features that the encoder takes
        instead of theirs, and how many windows, the first ones, are reconstructed."""
        waves = self.windows_of(step).to(self.run.device)
        return waves, None, len(waves)

    def generate(self, step: int) -> Generated:
        """Reconstruct this rank's windows; the losses are spectral, semantic and of covariance.

        The metric of the covariance loss is called ``spread`` in ``metrics.jsonl``. It is for the
        encoder of a compact codec, unless that is frozen.
        """
        waves, features, count = self.inputs(step)
        made, latents, codes, predicted = self.reconstruct(waves, features)
        loss, mel = self.spectral(made[:count], waves[:count])
        report = {"mel": float(mel)}
        if self.semantic is not None:
            loss = loss + self._semantic_losses(waves, made, predicted, report)
        if not self.frozen and isinstance(self.codec, CompactXcodec2):
            covariance = covariance_loss(latents)
            loss = loss + self.recipe.covariance_weight * covariance
            report["spread"] = float(covariance.detach())
        unpaired = made[count:] if count < len(made) else None
        return Generated(made[:count], waves[:count], codes, loss, report, unpaired)

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


class ContentTrainer(CodecTrainer):
    """Trains a content codec: its decoder speaks in one voice, whoever speaks in the input.

    There is no recording of what others say in this voice. So only the voice itself is
    reconstructed. What others say must have Whisper's features again when it is decoded
    (``semantic.audio_weight``), and must sound to the discriminators like recordings of the voice.
    The encoder's input of the voice is played faster or slower, which shifts pitch and formants,
    and its features are interpolated to the original length: by these the codes cannot tell who
    speaks.
    """

    codec: ContentCodec

    def __init__(
        self,
        run: Run,
        recipe: CodecRecipe,
        audio: TrainingAudio,
        codec: ContentCodec,
        others: TrainingAudio | None,
    ) -> None:
        self.others = others
        super().__init__(run, recipe, audio, codec)
        self.other_windows = None if others is None else self.loader_of(others)

    def utterances(self) -> list[str]:
        """Those of the voice, then those of others."""
        others = self.others.train["id"].to_list() if self.others is not None else []
        return [*super().utterances(), *others]

    def inputs(self, step: int) -> tuple[Tensor, Tensor, int]:
        """Windows of the voice with perturbed features, then those of others."""
        waves = self.windows_of(step)
        speed = PERTURBATIONS[int(torch.randint(len(PERTURBATIONS), ()))]
        device, count = self.run.device, len(waves)
        features = perturbed_features(self.codec, waves, speed, device)
        if self.other_windows is None:
            return waves.to(device), features, count
        spoken = self.other_windows.at(step).to(device)
        features = torch.cat([features, self.codec.features(spoken)])
        return torch.cat([waves.to(device), spoken]), features, count


def perturbed_features(
    codec: ContentCodec, waves: Tensor, speed: float, device: torch.device
) -> Tensor:
    """Features (batch, codes, size) of waveforms (batch, samples) played at ``speed``."""
    if speed == 1.0:
        return codec.features(waves.to(device))
    played = [resample(wave, round(speed * SAMPLE_RATE), SAMPLE_RATE) for wave in waves.numpy()]
    length = -(-len(played[0]) // HOP) * HOP
    batch = torch.from_numpy(np.stack([np.pad(wave, (0, length - len(wave))) for wave in played]))
    found = codec.features(batch.to(device)).transpose(1, 2)
    codes = waves.shape[1] // HOP
    return F.interpolate(found, size=codes, mode="linear", align_corners=False).transpose(1, 2)


if __name__ == "__main__":
    main()
