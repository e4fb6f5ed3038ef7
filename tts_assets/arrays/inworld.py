"""``[arrays]``: arrays in the layout of the reference trainer (inworld-ai/tts), written and read.

The program ``python -m tts_assets.arrays.inworld run.json`` exports a ``code_arrays`` artifact. The
layout:

    {split}_codes.npy        int32, no header: ``np.memmap(path, dtype=np.int32)``
    {split}_codes_index.npy  a true .npy, int64: where each sample's codes start
    {split}_samples.jsonl    line i is sample i

Audio files are named as in all published samples (``corpora/samples.py``). A split without
samples has empty files, which the reference trainer cannot map: it needs validation samples.

An import keeps the split of the samples. It checks the codes against the codebook, the index
against the codes, and that each index entry has a valid sample. The codec that made the codes
cannot be checked, so the configuration has to name it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tts_assets.arrays.arrays import REMEDY, SPLITS, ArrayError, CodeTable, NpyWriter, Split
from tts_assets.codec.shard_files import Frame
from tts_assets.core.artifacts import (
    ArrayFacts,
    ArtifactError,
    CodeArrays,
    CodecCheckpoint,
    code_dtype,
    sha256_file,
)
from tts_assets.core.config import Config, ConfigError
from tts_assets.core.program import ProgramConfig, Run, load_config
from tts_assets.corpora.config import VoiceConsent
from tts_assets.corpora.samples import Sample

DIGEST_DIGITS = 12  # the digits of a content digest that identify a codec
PIECE = 1 << 20  # codes read at once
NAMES = tuple(
    f"{split}_{name}"
    for split in SPLITS
    for name in ("codes.npy", "codes_index.npy", "samples.jsonl")
)
OTHER_REMEDY = "merge their shards again, or name another folder"


class ImportedArrays(Config):
    """``[arrays.imported.<corpus>]``: a folder that the merger of the reference trainer wrote.

    ``codec`` identifies the codec that made the codes: the ``checkpoint`` of ``[codec]``, or the
    content digest of the codec (at least 12 digits). It is required because codes of different
    codecs cannot be distinguished. ``licence`` applies to samples without a licence.
    """

    path: Path
    codec: str = Field(min_length=1)
    licence: str = "unknown"
    consent: VoiceConsent | None = None


class ArraysConfig(Config):
    """``[arrays]``: an additional output, and imported arrays.

    ``export`` adds the asset ``inworld_arrays``: the same data in the layout of the reference
    trainer.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"pretraining": False}
    replaced_keys: ClassVar[Mapping[str, str]] = {
        "pretraining": "token_arrays have the streams of pretraining if a recipe of [sft] has the "
        "table pretraining; delete the key"
    }

    export: Literal["inworld"] | None = None
    imported: dict[str, ImportedArrays] = Field(default_factory=dict)


class ExportProgram(ProgramConfig):
    """``tts_assets.arrays.inworld``: exports the folder of a ``code_arrays`` artifact."""

    arrays: Path


def export_inworld(arrays: CodeArrays, target: Path) -> ArrayFacts:
    """Write the six files to the folder ``target``. Returns the facts of the arrays."""
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        with (target / f"{split}_codes.npy").open("wb") as stream:
            for start in range(0, len(table.codes), PIECE):
                table.codes[start : start + PIECE].astype(np.int32).tofile(stream)
        for name in (f"{split}_codes_index.npy", f"{split}_samples.jsonl"):
            shutil.copyfile(arrays.path / name, target / name)
    facts: ArrayFacts = arrays.facts
    return facts


def file_digests(source: Path) -> dict[str, str]:
    """The SHA-256 of the six files by name. Raises :class:`ArrayError` if one is missing."""
    missing = [name for name in NAMES if not (source / name).is_file()]
    if missing:
        raise ArrayError(
            f"{source} lacks {', '.join(missing)}: it must be a folder that the reference "
            "trainer's merger wrote (of shards such as train_codes_0.npy, run the merger first)"
        )
    return {name: sha256_file(source / name) for name in NAMES}


def check_codec(corpus: str, named: str, codec: CodecCheckpoint, codec_name: str | None) -> None:
    """Raise :class:`ArtifactError` unless ``named`` is this codec's name or content digest."""
    by_digest = len(named) >= DIGEST_DIGITS and codec.content.startswith(named)
    names = {codec_name, (codec_name or "").partition("@")[0]}  # with its revision, and without
    if named not in names and not by_digest:
        ours = [codec.content[:DIGEST_DIGITS], *([codec_name] if codec_name else [])]
        raise ArtifactError(
            f"arrays.imported.{corpus} were made with codec {named!r}, but [codec] is now "
            f"{' or '.join(ours)}: another codec cannot decode these codes. Use that codec, or if "
            f"it is the same one, write codec = {ours[-1]!r}"
        )


def import_inworld(
    corpus: str, source: Path, licence: str, codec: CodecCheckpoint, target: Path
) -> ArrayFacts:
    """Write the arrays of ``source`` to the folder ``target`` in the format of this project.

    Raises :class:`ArrayError`, which names the file and the sample of a problem.
    """
    counts: dict[str, int] = {}
    speakers: set[str] = set()
    try:
        for split in SPLITS:
            table = CodeTable.of_split(source, split, raw=True)
            check_range(table, codec.facts.codebook_size, source / f"{split}_codes.npy")
            check_frames(table, codec.facts.frame, source / f"{split}_codes.npy")
            write_codes(table, split, codec.facts.codebook_size, target)
            with (target / f"{split}_samples.jsonl").open("w", encoding="utf-8") as lines:
                for sample in samples_of(table, corpus, licence):
                    speakers.add(sample.speaker_id)
                    lines.write(sample.to_line())
            counts |= {f"{split}_samples": len(table), f"{split}_codes": len(table.codes)}
    except ArrayError as error:
        raise ArrayError(str(error).replace(REMEDY, OTHER_REMEDY)) from None
    codes = counts["train_codes"] + counts["val_codes"]
    if not codes:
        samples = counts["train_samples"] + counts["val_samples"]
        raise ArrayError(f"{source} has {samples} samples and no codes: name a folder with speech")
    facts = codec.facts
    return ArrayFacts(
        corpus=corpus,
        hours=round(codes / facts.token_rate / 3600, 6),
        codec=codec.content,
        sample_rate=facts.sample_rate,
        token_rate=facts.token_rate,
        codebook_size=facts.codebook_size,
        frame=facts.frame,
        speakers=len(speakers),
        membership="imported",
        **counts,
    )


def check_range(table: CodeTable, codebook_size: int, path: Path) -> None:
    """Raise :class:`ArrayError` at the first code that is not in the codebook."""
    for start in range(0, len(table.codes), PIECE):
        piece = table.codes[start : start + PIECE]
        bad = np.flatnonzero((piece < 0) | (piece >= codebook_size))
        if len(bad):
            place = start + int(bad[0])
            row = int(np.searchsorted(table.bounds, place, side="right")) - 1
            raise ArrayError(
                f"{path}: sample {row} has code {table.codes[place]}, but the codebook has "
                f"{codebook_size}; the arrays are of another codec, or damaged"
            )


def check_frames(table: CodeTable, sizes: tuple[int, ...], path: Path) -> None:
    """Raise :class:`ArrayError` at the first sample that is no whole frames of a codec.

    ``sizes``: the number of codes at each position of a frame; empty for one codebook.
    """
    frame = Frame(sizes)
    row = first_broken(table, frame) if sizes else None
    if row is not None:
        raise ArrayError(
            f"{path}: sample {row}: {frame.problem(table[row])}; the arrays are of another codec, "
            "or damaged"
        )


def first_broken(table: CodeTable, frame: Frame) -> int | None:
    """The first sample that is no whole frames; None if all are."""
    cut = np.flatnonzero(np.diff(table.bounds) % len(frame))
    if len(cut):
        return int(cut[0])
    step = PIECE - PIECE % len(frame)
    for start in range(0, len(table.codes), step):
        first = frame.first_misplaced(table.codes[start : start + step])
        if first is not None:
            return int(np.searchsorted(table.bounds, start + first, side="right")) - 1
    return None


def write_codes(table: CodeTable, split: Split, codebook_size: int, target: Path) -> None:
    """Write codes and index of a split in the integer type of the codebook."""
    dtype = code_dtype(codebook_size)
    codes = NpyWriter(target / f"{split}_codes.npy", dtype)
    for start in range(0, len(table.codes), PIECE):
        codes.add(table.codes[start : start + PIECE].astype(dtype))
    codes.close()
    np.save(target / f"{split}_codes_index.npy", table.bounds[:-1])


def samples_of(table: CodeTable, corpus: str, licence: str) -> Iterator[Sample]:
    """The samples in the schema of this project. Unknown fields go to ``original_data``.

    Raises :class:`ArrayError` at a line that does not fit the schema.
    """
    for row in range(len(table)):
        found = table.sample(row)
        known = {
            name: value
            for name, value in found.items()
            if name in Sample.model_fields and value is not None
        }
        original: dict[str, Any] = {"licence": licence}
        original |= {
            name: value for name, value in found.items() if name not in Sample.model_fields
        }
        original |= known.get("original_data") or {}
        defaults = {"dataset_name": corpus}
        where = f"{table.samples_path}:{row + 1}"
        try:
            yield Sample.parse(defaults | known | {"original_data": original}, where)
        except ConfigError as error:
            raise ArrayError(f"{error}; correct the line") from None


def main(argv: list[str] | None = None) -> None:
    """Export the arrays of the program file."""
    program = load_config(ExportProgram, argv)
    with Run(program.run_dir) as run:
        facts = export_inworld(CodeArrays.open(program.arrays), run.result_dir)
        run.finish(facts.model_dump())


if __name__ == "__main__":
    main()
