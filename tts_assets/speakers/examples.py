"""What a published encoder shows of itself: clips, their embeddings, and a script that compares.

The clips are test speakers' (their licences stand beside), stored as 16 kHz FLAC. Whoever has the
folder runs ``python FOLDER/check.py`` and knows that it gives what it gave here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from tts_assets.artifacts import written_aside
from tts_assets.audio import read_wave
from tts_assets.speakers.encoder import VoiceEncoder
from tts_assets.speakers.people import Recording

EXAMPLES_FILE = "examples.json"
SPEAKERS = 2  # two clips each
LONGEST_SECONDS = 10.0
CHECK = '''"""Does this encoder still give the embeddings that it was published with?

    python check.py    # needs the package tts_assets
"""

import json
from pathlib import Path

import numpy as np

from tts_assets.speakers.encoder import VoiceEncoder

folder = Path(__file__).resolve().parent
encoder = VoiceEncoder.load(folder)
examples = json.loads((folder / "examples.json").read_text())
largest = 0.0
for example in examples:
    voice = encoder.wav_to_embedding(folder / example["file"])
    assert voice.shape == (encoder.card.architecture.embedding,) and voice.dtype == np.float32
    largest = max(largest, float(np.abs(voice - np.array(example["embedding"])).max()))
print(f"{len(examples)} examples, largest difference {largest:.1e}")
assert largest < 1e-4, "another library or machine rounds differently, or the weights changed"
'''


def write_examples(folder: Path, tested: Sequence[Recording]) -> None:
    """``examples/*.flac``, ``examples.json`` and ``check.py`` beside an encoder's files."""
    encoder = VoiceEncoder.load(folder)
    rate = encoder.card.audio.sample_rate
    (folder / "examples").mkdir(exist_ok=True)
    examples = []
    for number, recording in enumerate(chosen(tested)):
        name = f"examples/{number}.flac"
        wave = read_wave(recording.path, rate)
        soundfile.write(folder / name, np.clip(wave, -1, 1), rate, subtype="PCM_16")
        examples.append(
            {
                "file": name,
                "speaker": recording.speaker,
                "licence": recording.licence,
                "embedding": encoder.wav_to_embedding(folder / name).tolist(),
            }
        )
    with written_aside(folder / EXAMPLES_FILE) as aside:
        aside.write_text(json.dumps(examples, indent=1) + "\n")
    (folder / "check.py").write_text(CHECK)


def chosen(tested: Sequence[Recording]) -> list[Recording]:
    """The two longest clips of at most ten seconds of the first two speakers by name."""
    names = sorted({recording.speaker for recording in tested})[:SPEAKERS]
    found = []
    for name in names:
        mine = [r for r in tested if r.speaker == name and r.seconds <= LONGEST_SECONDS]
        found += sorted(mine, key=lambda r: (-r.seconds, r.id))[:2]
    return found
