"""Sample JSONL: the schema of the reference trainer, one JSON object a line.

``path`` is the file, or a folder with ``samples.jsonl``. Audio paths are relative to the file's
folder or absolute; an absolute path may lie anywhere, a relative one not outside the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.config import ConfigError
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry
from tts_assets.corpora.readers.files import inside, json_object, lines
from tts_assets.corpora.samples import Sample

SAMPLES_FILE = "samples.jsonl"
KEPT_FIELDS = (
    "emotion",
    "style",
    "voice_description",
    "sound_effect",
    "dnsmos_mos_ovr",
    "original_data",
)


def read_jsonl(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    path = root / SAMPLES_FILE if root.is_dir() else root
    for number, line in lines(path):
        yield _read_line(path.parent, config, f"{path.name}:{number}", line)


def _read_line(
    folder: Path, config: CorpusConfig, where: str, line: str | SetAside
) -> Entry | SetAside:
    sample = json_object(line, where)
    if isinstance(sample, SetAside):
        return sample
    wav_path = sample.get("wav_path")
    if not isinstance(wav_path, str) or not wav_path:
        return SetAside(where, "no wav_path", "every sample needs the path of its audio")
    fields = {name: sample[name] for name in KEPT_FIELDS if sample.get(name)}
    try:
        checked = Sample.parse({"id": "", "wav_path": "", "transcript": "", **fields}, where)
    except ConfigError as error:
        return SetAside(where, "a field of another type", str(error))
    return entry(
        config,
        inside(folder, wav_path, where, absolute=True),
        where,
        str(sample.get("transcript") or ""),
        speaker=str(sample.get("speaker_id") or ""),
        language=str(sample.get("language") or "").replace("unknown", ""),
        licence=str(checked.original_data.get("licence", "")),
        **fields,
    )
