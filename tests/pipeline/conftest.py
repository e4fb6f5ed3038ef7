"""A minimal profile of the whole graph on a dozen real clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tts_assets.settings import Settings, load_settings

TEXTS = ("one two", "three four")
SUITE = (("digits", "four three two"), ("unseen", "nobody is here"))


def minimal(corpus: Path, folder: Path) -> dict[str, Any]:
    """Overrides that make every stage small: 2 SFT steps, 1 GRPO step, 2 texts to synthesize."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    rows = [{"id": f"{category}-1", "category": category, "text": text} for category, text in SUITE]
    (folder / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampling = {"min_tokens": 5, "max_tokens": 40}
    llama = {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 2, "kv_heads": 2}
    return {
        "project": {"storage": str(folder / "storage")},
        "corpora": {"asterisk_en": {"path": str(corpus)}},
        "validation": {"fraction": 0.3},
        "codec": {"shard_samples": 5},
        "serving": {"sampling": sampling, "check_vllm": False},
        "sft": {"announcer": {"base": {"hub": None, "llama": llama}, "steps": 2, "eval_every": 1}},
        "rlhf": {
            "announcer_grpo": {
                "steps": 1,
                "prompts_per_step": 2,
                "generations": 2,
                "sampling": sampling,
                "prompts": {"texts": str(folder / "texts.txt")},
            }
        },
        "evaluation": {"suite": str(folder / "suite.jsonl"), "reference_clips": 2},
    }


@pytest.fixture
def corpus(clips: Path, tmp_path: Path) -> Path:
    """A copy of the clips that a test may change."""
    copy = tmp_path / "corpus"
    shutil.copytree(clips, copy)
    return copy


@pytest.fixture
def settings(corpus: Path, tmp_path: Path) -> Settings:
    return load_settings(environment={}, overrides=minimal(corpus, tmp_path / "work"))
