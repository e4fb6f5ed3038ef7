"""What a shard is: a part of the sample list, and on disk a folder that appears whole."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tts_assets.accounting import SET_ASIDE_FILE, SetAside, write_set_aside
from tts_assets.artifacts import written_aside
from tts_assets.codec.reuse import ShardCodes
from tts_assets.corpora.samples import Sample, write_samples

CODES, INDEX, SAMPLES = "codes.npy", "index.npy", "samples.jsonl"
EFFORT_FILE = "effort.json"

Effort = Counter[str]
"""What shards took: clips ``encoded``, of them ``again`` alone, and ``reused``; ``codes`` and
``padded`` codes of batches; ``milliseconds`` that encoding took its rank."""


@dataclass(frozen=True)
class Shard:
    """``count`` consecutive utterances of a sample list, from its byte ``offset`` on."""

    number: int
    offset: int
    count: int

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}"

    def lines(self, samples: Path) -> list[bytes]:
        with samples.open("rb") as stream:
            stream.seek(self.offset)
            return list(itertools.islice(stream, self.count))

    def samples(self, samples: Path) -> list[Sample]:
        where = f"{samples}, {self.name}"
        return [Sample.parse(json.loads(line), where) for line in self.lines(samples)]


def split_into_shards(samples: Path, size: int) -> list[Shard]:
    """Runs of ``size`` lines of a sample list; the last may be shorter."""
    shards: list[Shard] = []
    offset = 0
    with samples.open("rb") as stream:
        while lines := list(itertools.islice(stream, size)):
            shards.append(Shard(len(shards), offset, len(lines)))
            offset += sum(map(len, lines))
    return shards


@dataclass
class ShardResult:
    """What a shard will hold: codes by the position of their utterance."""

    samples: list[Sample]
    codes: dict[int, ShardCodes] = field(default_factory=dict)
    aside: list[SetAside] = field(default_factory=list)
    effort: Effort = field(default_factory=Counter)

    def write(self, target: Path, dtype: str) -> None:
        """The folder, by one rename: codes (one after another), the offset of each utterance
        (int64), the samples, who was set aside, and what it took."""
        rows = sorted(self.codes)
        codes = [self.codes[row] for row in rows]
        starts = np.cumsum([0, *map(len, codes)], dtype=np.int64)[: len(rows)]
        with written_aside(target) as work:
            work.mkdir()
            np.save(work / CODES, np.concatenate([np.array([], dtype), *codes]))
            np.save(work / INDEX, starts)
            write_samples(work / SAMPLES, [self.samples[row] for row in rows])
            write_set_aside(work / SET_ASIDE_FILE, self.aside)
            (work / EFFORT_FILE).write_text(json.dumps(self.effort, sort_keys=True))
