"""Encodes one corpus into shards: ``python -m tts_assets.codec.shards run.json`` or torchrun.

A shard is a run of consecutive utterances of the sample list. It appears whole, by one rename,
when it is done; a restart makes only those that are missing. Its bytes follow from its
utterances and the codec alone: one thread and one clip at a time, so that neither the number of
ranks nor a batch changes how sums are rounded.
"""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tts_assets.accounting import SET_ASIDE_FILE, SetAside, read_set_aside, write_set_aside
from tts_assets.artifacts import ShardFacts, code_dtype, sha256_file, written_aside
from tts_assets.codec.config import ShardProgram
from tts_assets.codec.model import Codec, Codes
from tts_assets.config import digest_of
from tts_assets.corpora.audio import BrokenAudio, read_wave
from tts_assets.corpora.samples import Sample, read_samples, write_samples
from tts_assets.program import Run, load_config

CODES, INDEX, SAMPLES = "codes.npy", "index.npy", "samples.jsonl"
IDENTITY_FILE = "shards.json"


@dataclass(frozen=True)
class Shard:
    """Utterances ``number * shard_samples`` and following of the list."""

    number: int
    samples: list[Sample]

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}"


def split_into_shards(samples: list[Sample], size: int) -> list[Shard]:
    """Consecutive runs of ``size`` utterances; the last may be shorter."""
    return [
        Shard(number, samples[start : start + size])
        for number, start in enumerate(range(0, len(samples), size))
    ]


def encode_shard(shard: Shard, codec: Codec, folder: Path) -> None:
    """Write one shard's folder aside and rename it: codes (one after another), the
    offset of each utterance (int64), the samples, and who was set aside."""
    kept: list[Sample] = []
    codes: list[Codes] = []
    aside: list[SetAside] = []
    for sample in shard.samples:
        try:
            wave = read_wave(Path(sample.wav_path), codec.input_rate)
        except BrokenAudio as error:
            aside.append(SetAside(sample.id, error.reason, error.detail or str(error.path)))
            continue
        codes += codec.encode([wave])
        kept.append(sample)
    lengths = [len(clip) for clip in codes]
    index = np.array([0, *itertools.accumulate(lengths)][:-1] if lengths else [], dtype=np.int64)
    joined = np.concatenate(codes) if codes else np.array([], dtype=np.int64)
    with written_aside(folder / shard.name) as work:
        work.mkdir()
        np.save(work / CODES, joined.astype(code_dtype(codec.facts.codebook_size)))
        np.save(work / INDEX, index)
        write_samples(work / SAMPLES, kept)
        write_set_aside(work / SET_ASIDE_FILE, aside)


def check_identity(program: ShardProgram, folder: Path) -> None:
    """Refuse a run folder whose shards are of other samples, another codec or another size."""
    identity = digest_of(
        {
            "samples": sha256_file(program.samples),
            "codec": program.codec_content,
            "shard_samples": program.shard_samples,
        }
    )
    path = folder / IDENTITY_FILE
    if not path.is_file():
        with written_aside(path) as work:
            work.write_text(identity)
    elif path.read_text() != identity:
        raise ValueError(
            f"{folder} holds shards of other samples or of another codec; give the run another "
            "folder, or delete it"
        )


def collect(program: ShardProgram, shards: list[Shard], folder: Path, result: Path) -> ShardFacts:
    """Copy all shards to ``result`` under their published names and count what they hold."""
    aside: list[SetAside] = []
    codes = samples = 0
    for shard in shards:
        for name in (CODES, INDEX, SAMPLES):
            shutil.copyfile(folder / shard.name / name, result / f"{shard.name}.{name}")
        aside += read_set_aside(folder / shard.name / SET_ASIDE_FILE)
        codes += len(np.load(folder / shard.name / CODES, mmap_mode="r"))
        samples += len(np.load(folder / shard.name / INDEX, mmap_mode="r"))
    write_set_aside(result / SET_ASIDE_FILE, aside)
    facts = Codec.load(program.codec).facts
    left_out = {record.what for record in aside}
    speakers = {s.speaker_id for shard in shards for s in shard.samples if s.id not in left_out}
    return ShardFacts(
        corpus=program.corpus,
        shards=len(shards),
        samples_in=sum(len(shard.samples) for shard in shards),
        samples=samples,
        set_aside=len(aside),
        codes=codes,
        hours=round(codes / facts.token_rate / 3600, 6),
        speakers=len(speakers),
        codec=program.codec_content,
        sample_rate=facts.sample_rate,
        token_rate=facts.token_rate,
        codebook_size=facts.codebook_size,
    )


def run_shards(run: Run, program: ShardProgram) -> None:
    """This rank's share of the missing shards; then rank 0 collects all."""
    folder = run.checkpoint_dir
    if run.is_main:
        check_identity(program, folder)
    samples = list(read_samples(program.samples))
    shards = split_into_shards(samples, program.shard_samples)
    mine = shards[run.rank :: run.world_size]
    missing = [shard for shard in mine if not (folder / shard.name).is_dir()]
    codec = Codec.load(program.codec, str(run.device))
    done = len(mine) - len(missing)
    for shard in run.progress(missing, "codec shards", total=len(mine), start=done):
        encode_shard(shard, codec, folder)
        if run.stop_requested:
            break
    if run.should_stop():  # also waits for the other ranks
        run.stopped()
    if run.is_main:
        run.finish(collect(program, shards, folder, run.result_dir).model_dump())


def main(argv: list[str] | None = None) -> None:
    program = load_config(ShardProgram, argv)
    torch.set_num_threads(1)
    with Run(program.run_dir) as run:
        run.init_distributed()
        run_shards(run, program)


if __name__ == "__main__":
    main()
