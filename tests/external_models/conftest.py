"""The environment with coqui-tts, if there is one, and real clips as filtered samples."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tts_assets.core.artifacts import ArtifactStore, Build, SampleManifest

VARIABLE = "COQUI_PYTHON"
TINY_VITS: dict[str, Any] = {
    "hidden_channels": 32,
    "hidden_channels_ffn_text_encoder": 64,
    "num_layers_text_encoder": 1,
    "num_layers_posterior_encoder": 2,
    "num_layers_flow": 1,
    "upsample_initial_channel_decoder": 32,
    "periods_multi_period_discriminator": [2],
}
TINY_XTTS: dict[str, Any] = {
    "gpt_layers": 1,
    "gpt_n_model_channels": 64,
    "gpt_n_heads": 2,
    "gpt_max_audio_tokens": 120,
    "decoder_input_dim": 64,
    "min_conditioning_length": 11025,
    "max_conditioning_length": 22050,
}
TINY_TORTOISE: dict[str, Any] = {
    **{"ar_layers": 1, "ar_model_dim": 64, "ar_heads": 2},
    **{"diff_model_channels": 64, "diff_num_layers": 1, "diff_num_heads": 2},
    **{"diff_in_latent_channels": 64, "clvp_dim_text": 64, "clvp_dim_speech": 64},
    **{"clvp_dim_latent": 64, "clvp_text_enc_depth": 1, "clvp_text_heads": 2},
    **{"clvp_speech_enc_depth": 1, "clvp_speech_heads": 2},
}


@pytest.fixture(scope="session")
def coqui() -> Path:
    """The interpreter of ``make coqui``, or the one that ``COQUI_PYTHON`` names."""
    made = Path(__file__).resolve().parents[2] / ".venv-coqui" / "bin" / "python"
    named = Path(os.environ.get(VARIABLE, made))
    if not named.is_file():
        pytest.skip("no environment with coqui-tts: run make coqui")
    return named


@pytest.fixture
def kept(clips: Path, tmp_path: Path) -> Path:
    """``kept.jsonl`` of the clips in the format of the filters: absolute paths, and ids."""
    rows = [json.loads(line) for line in (clips / "samples.jsonl").read_text().splitlines()]
    lines = [
        json.dumps(row | {"wav_path": str(clips / row["wav_path"]), "id": row["wav_path"]}) + "\n"
        for row in rows
    ]
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(lines))
    return path


def publish_samples(store: ArtifactStore, kept: Path, corpus: str) -> SampleManifest:
    build = Build("filtered_samples", {}, {}, "1", partition=corpus)
    folder = store.work_folder(build) / "result"
    folder.mkdir()
    (folder / "kept.jsonl").write_text(kept.read_text())
    count = len(kept.read_text().splitlines())
    facts = {"corpus": corpus, "samples_in": count, "kept": count, "rejected": 0, "reasons": {}}
    handle = store.publish(SampleManifest, build, folder, facts | {"hours": 0.01, "speakers": 1})
    assert isinstance(handle, SampleManifest)
    return handle
