"""Where a codec comes from: what cannot be one is named before anything is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.codec.conftest import VENDORED
from tts_assets.codec.original import OriginalError, convert
from tts_assets.codec.sources import identify
from tts_assets.core.config import ConfigError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("examples/codecs/anouncer-16khz", "neither a folder nor a file"),
        ("anouncer", "neither a folder nor a file"),
        ("weights.pt", r"ends in one of .*\.ckpt"),
    ],
)
def test_a_checkpoint_that_is_none_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=message):
        identify(name, None, tmp_path)


def test_what_lies_here_has_no_revision() -> None:
    with pytest.raises(ConfigError, match=r"leave codec\.revision out"):
        identify(str(VENDORED), "0" * 40, Path())


def test_sizes_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "codec.ckpt").write_bytes(b"")
    with pytest.raises(OriginalError, match=r"no file .*sizes\.json"):
        convert(tmp_path / "codec.ckpt", tmp_path / "codec", tmp_path / "sizes.json")
