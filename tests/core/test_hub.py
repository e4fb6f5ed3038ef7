"""Models that cannot be fetched are named, with the remedy; nothing here reaches the network."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tts_assets.codec.sources import download, newest_revision
from tts_assets.config import ConfigError
from tts_assets.speechlm.tokenizer import load_tokenizer

NAME = "nobody-of-that-name/no-model"


def test_a_model_out_of_reach_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # two minutes of the hub's retries
    for fetch in (
        lambda: newest_revision(NAME),
        lambda: download(NAME, "0" * 40, tmp_path),
        lambda: load_tokenizer(NAME),
    ):
        with pytest.raises(ConfigError, match=f"{NAME}.*hf auth login.*name a folder"):
            fetch()
