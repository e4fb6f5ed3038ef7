"""Real, tiny artifacts of the whole way to speech, for the tests of serving and RLHF.

An untrained codec of the project's architecture, arrays of real clips encoded with it, and an
untrained Llama over its codes, published in a store as the assets would.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from tests.support.codecs import saved
from tests.support.public_bases import published, random_base
from tts_assets.codec.backends import facts_of, save_codec
from tts_assets.codec.config import CodecArchitecture
from tts_assets.codec.model import Codec
from tts_assets.codec.xcodec2 import build as build_codec
from tts_assets.core.artifacts import (
    ArrayFacts,
    ArtifactStore,
    Build,
    Checkpoint,
    CheckpointFacts,
    CodeArrays,
    CodecCheckpoint,
    ServingModel,
)
from tts_assets.core.audio import read_wave
from tts_assets.corpora.config import VoiceConsent
from tts_assets.serving.config import ServingConfig
from tts_assets.serving.verify import Sources, convert
from tts_assets.speechlm.config import BaseModel, LlamaSize, SamplingConfig, VocabularyConfig
from tts_assets.speechlm.formats import SpeechFormat
from tts_assets.speechlm.model import build as build_lm

ARCHITECTURE = CodecArchitecture(
    hidden=32, layers=1, heads=1, intermediate=64, semantic_hidden=32, levels=(8, 8, 4)
)
LLAMA = LlamaSize(
    hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=1, max_positions=1024
)
SAMPLING = SamplingConfig(max_tokens=60, seed=3)


@dataclass(frozen=True)
class Speaking:
    """Published artifacts that belong together."""

    store: ArtifactStore
    codec: CodecCheckpoint
    arrays: CodeArrays
    checkpoint: Checkpoint
    serving: ServingModel
    clips: Path

    @property
    def sources(self) -> Sources:
        return Sources(self.checkpoint, self.codec, {"clips": self.arrays})


def result_folder(store: ArtifactStore, build: Build) -> Path:
    folder = store.work_folder(build) / "result"
    folder.mkdir(exist_ok=True)
    return folder


def publish_folder(store: ArtifactStore, source: Path) -> CodecCheckpoint:
    """Publish a codec folder."""
    build = Build("codec", {}, {"source": source.parent.name}, "1")
    folder = result_folder(store, build)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    handle = store.publish(CodecCheckpoint, build, folder, Codec.load(source).facts)
    assert isinstance(handle, CodecCheckpoint)
    return handle


def publish_codec(store: ArtifactStore, seed: int = 0) -> CodecCheckpoint:
    build = Build("codec", {}, {"seed": seed}, "1")
    model = build_codec(ARCHITECTURE, seed)
    folder = result_folder(store, build)
    save_codec(model, folder, "fp32")
    handle = store.publish(CodecCheckpoint, build, folder, facts_of(model))
    assert isinstance(handle, CodecCheckpoint)
    return handle


def publish_arrays(store: ArtifactStore, codec: CodecCheckpoint, clips: Path) -> CodeArrays:
    """All clips but the last three are training samples."""
    build = Build("code_arrays", {"codec": codec}, {}, "1", partition="clips")
    folder = result_folder(store, build)
    samples = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    model = Codec.load(codec.path)
    waves = [read_wave(clips / sample["wav_path"], model.input_rate) for sample in samples]
    codes = model.encode(waves)
    cut = len(samples) - 3
    for split, rows in (("train", slice(cut)), ("val", slice(cut, None))):
        own = codes[rows]
        np.save(folder / f"{split}_codes.npy", np.concatenate(own).astype(np.uint16))
        starts = np.cumsum([0, *(len(c) for c in own[:-1])]).astype(np.int64)
        np.save(folder / f"{split}_codes_index.npy", starts)
        lines = [json.dumps(s | {"id": s["wav_path"]}) + "\n" for s in samples[rows]]
        (folder / f"{split}_samples.jsonl").write_text("".join(lines))
    facts = ArrayFacts(
        corpus="clips",
        train_samples=cut,
        val_samples=3,
        train_codes=sum(map(len, codes[:cut])),
        val_codes=sum(map(len, codes[cut:])),
        hours=0.01,
        codec=codec.content,
        frame=codec.facts.frame,
        speakers=1,
        **codec.facts.model_dump(include={"sample_rate", "token_rate", "codebook_size"}),
    )
    handle = store.publish(CodeArrays, build, folder, facts)
    assert isinstance(handle, CodeArrays)
    return handle


def publish_checkpoint(
    store: ArtifactStore,
    codec: CodecCheckpoint,
    seed: int = 5,
    base: Path | None = None,
    llama: LlamaSize = LLAMA,
) -> Checkpoint:
    """A Llama of random weights, or the model in the folder ``base``."""
    build = Build("sft/tiny", {"codec": codec}, {"seed": seed, "base": base and base.name}, "1")
    folder = result_folder(store, build)
    facts = codec.facts
    start = BaseModel(hub=str(base)) if base else BaseModel(llama=llama)
    lm = build_lm(start, facts.codebook_size, VocabularyConfig(), seed, facts.frame)
    lm.save(folder, SAMPLING)
    made = CheckpointFacts(
        stage="sft",
        recipe="tiny",
        steps=0,
        tokens=0,
        train_loss=6.0,
        val_loss=6.0,
        parameters=lm.parameters,
        vocabulary=lm.vocabulary.digest,
        codec=codec.content,
        **facts.model_dump(include={"sample_rate", "token_rate", "codebook_size"}),
    )
    handle = store.publish(Checkpoint, build, folder, made)
    assert isinstance(handle, Checkpoint)
    return handle


def publish_trained(speaking: Speaking, run_dir: Path) -> Checkpoint:
    """The result of a training of ``speaking.codec``'s codes, as its asset publishes it."""
    facts = CheckpointFacts.from_json(run_dir / "result.json")
    build = Build(f"{facts.stage}/{facts.recipe}", {"codec": speaking.codec}, {}, "1")
    folder = speaking.store.work_folder(build) / "result"
    shutil.copytree(run_dir / "result", folder)
    handle = speaking.store.publish(Checkpoint, build, folder, facts)
    assert isinstance(handle, Checkpoint)
    return handle


def publish_serving(
    store: ArtifactStore,
    sources: Sources,
    config: ServingConfig,
    consents: Mapping[str, VoiceConsent] | None = None,
) -> ServingModel:
    inputs = {"checkpoint": sources.checkpoint, "codec": sources.codec, "arrays": sources.arrays}
    build = Build("serving/tiny", inputs, config, "1")
    folder = result_folder(store, build)
    final = store.folder(build.asset) / build.fingerprint
    facts = convert(sources, config, folder, final, consents=consents)
    handle = store.publish(ServingModel, build, folder, facts)
    assert isinstance(handle, ServingModel)
    return handle


def make_end_likely(base: Path, end: int) -> None:
    """Scale the logits of the end token. Among thousands of codes it is hardly ever drawn."""
    path = base / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][end] *= 60
    save_file(weights, path, {"format": "pt"})


def with_format(speaking: Speaking, form: SpeechFormat, folder: Path) -> Speaking:
    """The artifacts with a random base of a public model's format instead.

    All have the codec of ``speaking``, but a format of frames has a random SNAC.
    """
    if form.frame:
        codec = publish_folder(speaking.store, saved("snac", folder / "snac", size=form.frame[0]))
        arrays = publish_arrays(speaking.store, codec, speaking.clips)
        speaking = replace(speaking, codec=codec, arrays=arrays)
    tokenizer = published(form, speaking.codec.facts.codebook_size)
    random_base(folder / form.name, tokenizer, len(tokenizer))
    if form.frame:
        make_end_likely(folder / form.name, tokenizer.convert_tokens_to_ids(form.end))
    checkpoint = publish_checkpoint(speaking.store, speaking.codec, base=folder / form.name)
    sources = Sources(checkpoint, speaking.codec, {"clips": speaking.arrays})
    serving = publish_serving(speaking.store, sources, ServingConfig(sampling=SAMPLING))
    return replace(speaking, checkpoint=checkpoint, serving=serving)


def publish_all(
    store: ArtifactStore,
    clips: Path,
    codec_folder: Path | None = None,
    llama: LlamaSize = LLAMA,
) -> Speaking:
    """With the project's codec, or that of a folder."""
    codec = publish_codec(store) if codec_folder is None else publish_folder(store, codec_folder)
    arrays = publish_arrays(store, codec, clips)
    checkpoint = publish_checkpoint(store, codec, llama=llama)
    sources = Sources(checkpoint, codec, {"clips": arrays})
    serving = publish_serving(store, sources, ServingConfig(sampling=SAMPLING))
    return Speaking(store, codec, arrays, checkpoint, serving, clips)
