"""Encodes one corpus into shards: ``python -m tts_assets.codec.shards run.json`` or torchrun.

A shard is a run of consecutive utterances of the sample list. It is written atomically when it is
complete. A restart, with any number of ranks, makes only the missing shards. The bytes of a shard
depend only on its utterances and the codec (see ``model.py``), not on batches, ranks, threads,
or on codes that were reused from earlier shards.

The ranks share only the folder: each rank makes its shards, and rank 0 waits until all exist. A
process group would fail a rank that waits longer than its timeout.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tts_assets.codec.config import ShardProgram
from tts_assets.codec.model import read_ahead
from tts_assets.codec.shard_files import (
    CODES,
    EFFORT_FILE,
    INDEX,
    SAMPLES,
    EarlierCodes,
    Effort,
    Shard,
    ShardCodes,
    ShardResult,
    audio_digest,
    split_into_shards,
)
from tts_assets.core.accounting import (
    SET_ASIDE_FILE,
    SetAside,
    raise_nothing_usable,
    read_set_aside,
    write_set_aside,
)
from tts_assets.core.artifacts import ShardFacts, atomic_write, code_dtype, sha256_file
from tts_assets.core.audio import Wave
from tts_assets.core.config import digest_of
from tts_assets.core.program import Run, load_config
from tts_assets.corpora.samples import AudioFolders, Sample

if TYPE_CHECKING:
    from tts_assets.codec.model import BatchEncoder, Codec

IDENTITY_FILE = "shards.json"
POLL_SECONDS = 0.2


class Encoding:
    """Makes the missing shards of one rank, one after the other."""

    def __init__(self, run: Run, program: ShardProgram, shards: list[Shard]) -> None:
        self.run, self.program, self.shards = run, program, shards
        lines = (line for shard in shards for line in shard.lines(program.samples))
        digests = (digest for line in lines if (digest := audio_digest(line)))
        self.earlier = EarlierCodes(program.reuse, program.codec_content, digests, run.note)
        self.audio = AudioFolders.of(program.samples)
        self.dtype = code_dtype(program.codec_facts.codebook_size)
        self.encoder: BatchEncoder | None = None
        self.total: Effort = Counter()

    def utterances(self) -> Iterator[Sample]:
        """Yield each utterance when it is done; end after a batch if a stop is requested."""
        for shard in self.shards:
            result = ShardResult(shard.samples(self.program.samples))
            yield from self._fill(result)
            if self.run.stop_requested:
                return
            result.write(self.run.checkpoint_dir / shard.name, self.dtype)
            self.total += result.effort
            rate = self.program.codec_facts.token_rate
            hours = {"hours_encoded": self.total["codes"] / rate / 3600}
            self.run.metrics(shard.number, figures(self.total, rate) | hours)

    def _fill(self, result: ShardResult) -> Iterator[Sample]:
        """Reuse the codes of earlier artifacts and encode the rest."""
        left = []
        for row, sample in enumerate(result.samples):
            codes = self._known(sample)
            if codes is None:
                left.append(row)
            else:
                result.codes[row] = codes
                result.effort["reused"] += 1
                yield sample
        if left:
            yield from self._encode(result, left)

    def _known(self, sample: Sample) -> ShardCodes | None:
        """Earlier codes of the same audio, if their number matches the duration within 0.1 s."""
        codes = self.earlier.get(sample.original_data.get("audio_sha256"))
        if codes is None:
            return None
        seconds = len(codes) / self.program.codec_facts.token_rate
        return codes if abs(seconds - sample.duration) < 0.1 else None

    def _encode(self, result: ShardResult, rows: list[int]) -> Iterator[Sample]:
        """Encode the utterances ``rows`` in batches of similar length, the longest first."""
        if self.encoder is None:
            self.encoder = open_encoder(self.run, self.program)
        encoder, samples = self.encoder, result.samples
        encoder.effort.clear()
        started = time.monotonic()
        rows = sorted(rows, key=lambda row: -samples[row].duration)
        waves = self._waves(encoder.codec, [samples[row] for row in rows])
        for batch in encoder.batches(zip(rows, waves, strict=True), self.program.batch_tokens):
            for row, codes in batch:
                if isinstance(codes, SetAside):
                    result.aside.append(codes)
                else:
                    result.codes[row] = codes.astype(self.dtype)
                yield samples[row]
            if self.run.stop_requested:
                return
        result.effort += encoder.effort
        result.effort["milliseconds"] = round(1000 * (time.monotonic() - started))

    def _waves(self, codec: Codec, samples: list[Sample]) -> Iterator[Wave | SetAside]:
        """The waveforms of the samples; clips that are too short for a code are set aside."""
        read = read_ahead(samples, self.audio, codec.input_rate, readers())
        for sample, wave in zip(samples, read, strict=True):
            if not isinstance(wave, SetAside) and not codec.codes(len(wave)):
                yield SetAside(sample.id, "too short for the codec", f"{len(wave)} samples")
            else:
                yield wave


def open_encoder(run: Run, program: ShardProgram) -> BatchEncoder:
    """The codec on this rank's device.

    Its imports are here because they take ten seconds, and a run that reuses all codes needs no
    codec.
    """
    import torch

    from tts_assets.codec.model import BatchEncoder, Codec

    # TF32 keeps ten bits of the inputs: nearly every clip of a batch would have to be repeated.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    codec = Codec.load(program.codec, str(run.device))
    if codec.masking_problem:
        run.note(f"clips are encoded one by one: {codec.masking_problem}")
    return BatchEncoder(codec)


def readers() -> int:
    """The number of threads that decode audio: the cores divided by the ranks of this node."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def figures(effort: Effort, token_rate: float) -> dict[str, float]:
    """Facts of an effort: counts, fractions, and seconds of audio per second of one rank."""
    seconds = effort["milliseconds"] / 1000
    return {
        "encoded": effort["encoded"],
        "reused_codes": effort["reused"],
        "encoded_again": round(effort["again"] / max(1, effort["encoded"]), 6),
        "padding": round(1 - effort["codes"] / max(1, effort["padded"]), 6),
        "audio_seconds_per_second": round(effort["codes"] / token_rate / max(seconds, 1e-3), 3),
    }


def check_identity(program: ShardProgram, folder: Path) -> None:
    """Raise ValueError if the folder has shards of other samples, another codec or another size."""
    identity = digest_of(
        {
            "samples": sha256_file(program.samples),
            "codec": program.codec_content,
            "shard_samples": program.shard_samples,
        }
    )
    path = folder / IDENTITY_FILE
    if not path.is_file():
        with atomic_write(path) as work:
            work.write_text(identity)
    elif path.read_text() != identity:
        raise ValueError(
            f"{folder} holds shards of other samples or of another codec; give the run another "
            "folder, or delete it"
        )


def wait_for(shards: list[Shard], run: Run) -> None:
    """Wait for the shards of the other ranks; torchrun ends this rank if one of them fails."""
    for shard in shards:
        while not (run.checkpoint_dir / shard.name).is_dir():
            if run.stop_requested:
                run.stopped()
            time.sleep(POLL_SECONDS)


def collect(program: ShardProgram, shards: list[Shard], folder: Path, result: Path) -> ShardFacts:
    """Copy all shards to ``result`` under their published names; return their facts."""
    aside: list[SetAside] = []
    effort: Effort = Counter()
    speakers: set[str] = set()
    codes = samples = 0
    for shard in shards:
        for name in (CODES, INDEX, SAMPLES):
            shutil.copyfile(folder / shard.name / name, result / f"{shard.name}.{name}")
        with (folder / shard.name / SAMPLES).open("rb") as lines:
            speakers |= {json.loads(line)["speaker_id"] for line in lines}
        aside += read_set_aside(folder / shard.name / SET_ASIDE_FILE)
        effort += Counter(json.loads((folder / shard.name / EFFORT_FILE).read_text()))
        codes += len(np.load(folder / shard.name / CODES, mmap_mode="r"))
        samples += len(np.load(folder / shard.name / INDEX, mmap_mode="r"))
    if not samples:
        for shard in shards:  # when the audio is back, a new attempt reads it
            shutil.rmtree(folder / shard.name)
        total = sum(shard.count for shard in shards)
        what = f"corpus {program.corpus!r}: none of {total} samples can be encoded"
        raise_nothing_usable(what, aside)
    write_set_aside(result / SET_ASIDE_FILE, aside)
    facts = program.codec_facts
    return ShardFacts(
        corpus=program.corpus,
        shards=len(shards),
        samples_in=sum(shard.count for shard in shards),
        samples=samples,
        set_aside=len(aside),
        codes=codes,
        hours=round(codes / facts.token_rate / 3600, 6),
        speakers=len(speakers),
        codec=program.codec_content,
        sample_rate=facts.sample_rate,
        token_rate=facts.token_rate,
        codebook_size=facts.codebook_size,
        frame=facts.frame,
        **figures(effort, facts.token_rate),
    )


def run_shards(run: Run, program: ShardProgram) -> None:
    """Make the missing shards of this rank; rank 0 then collects all shards."""
    folder = run.checkpoint_dir
    check_identity(program, folder)
    shards = split_into_shards(program.samples, program.shard_samples)
    mine = shards[run.rank :: run.world_size]
    missing = [shard for shard in mine if not (folder / shard.name).is_dir()]
    total = sum(shard.count for shard in mine)
    start = total - sum(shard.count for shard in missing)
    utterances = Encoding(run, program, missing).utterances()
    what = f"utterances of rank 0 of {run.world_size}"
    for _ in run.progress(utterances, what, total=total, start=start):
        pass
    if run.stop_requested:
        run.stopped()
    if run.is_main:
        wait_for(shards, run)
        run.finish(collect(program, shards, folder, run.result_dir).model_dump())


def main(argv: list[str] | None = None) -> None:
    """Encode the corpus of a ``run.json``."""
    program = load_config(ShardProgram, argv)
    with Run(program.run_dir) as run:
        run_shards(run, program)


if __name__ == "__main__":
    main()
