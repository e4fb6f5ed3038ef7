"""Signed manifests in audio files."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.provenance.conftest import ANN
from tts_assets.core.audio import Clip, read_clip
from tts_assets.core.config import ConfigError
from tts_assets.provenance.__main__ import main
from tts_assets.provenance.manifest import (
    KEY_FILE,
    KEYS_VARIABLE,
    ROOT_FILE,
    Keys,
    Origin,
    Signature,
    keys_of_environment,
    make_keys,
    read_manifest,
)
from tts_assets.serving.audio_formats import encode

ORIGIN = Origin(
    model="serving/guide", content="ab" * 32, consents={"clips": ANN, "robot": "synthetic"}
)


@pytest.fixture
def clip(recordings: dict[str, tuple[str, Clip]]) -> Clip:
    return recordings["digits/1"][1]


@pytest.mark.parametrize("name", ["wav", "mp3", "flac"])
def test_a_signed_file_has_the_same_samples_and_says_who_signed(
    clip: Clip, keys: Keys, tmp_path: Path, name: str
) -> None:
    plain = encode(clip.wave, clip.rate, name, "the comment")  # type: ignore[arg-type]
    signed = Signature(ORIGIN, keys).add(plain, name)
    before, after = tmp_path / f"before.{name}", tmp_path / f"after.{name}"
    before.write_bytes(plain)
    after.write_bytes(signed)
    assert np.array_equal(read_clip(before).wave, read_clip(after).wave)
    with soundfile.SoundFile(after) as file:
        assert file.comment == "the comment"
    assert read_manifest(before) is None

    found = read_manifest(after)
    assert found is not None
    assert (found.signer, found.problems, found.trusted) == ("Museum of Tests", (), False)
    assert found.origin == ORIGIN
    by_root = read_manifest(after, keys.folder / ROOT_FILE)
    assert by_root is not None and by_root.trusted
    other = make_keys(tmp_path / "other", "Museum of Tests").folder / ROOT_FILE
    by_another = read_manifest(after, other)
    assert by_another is not None and not by_another.trusted

    changed = bytearray(signed)
    middle = len(plain) // 2 + (len(signed) - len(plain)) * (name != "wav")  # of the samples
    changed[middle] ^= 1
    after.write_bytes(changed)
    broken = read_manifest(after)
    assert broken is not None and "assertion.dataHash.mismatch" in broken.problems


def test_formats_without_a_place_stay_as_they_are(clip: Clip, keys: Keys, tmp_path: Path) -> None:
    ogg = encode(clip.wave, clip.rate, "opus", "")
    assert Signature(ORIGIN, keys).add(ogg, "opus") == ogg
    with pytest.raises(ConfigError, match="wav, mp3, flac only"):
        read_manifest(tmp_path / "a.ogg")


def test_only_the_owner_reads_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    assert main(["init", str(folder), "--organization", "Museum of Tests"]) == 0
    key = folder / KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"
    secret = key.read_text().splitlines()[1]
    assert secret not in capsys.readouterr().out + repr(Keys(folder))
    assert main(["init", str(folder), "--organization", "Other"]) == 2
    assert "already holds a signing key" in capsys.readouterr().err
    assert key.read_text().splitlines()[1] == secret

    monkeypatch.setenv(KEYS_VARIABLE, str(folder))
    assert keys_of_environment() == Keys(folder)
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys_of_environment()
    monkeypatch.setenv(KEYS_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="provenance init"):
        keys_of_environment()
    monkeypatch.delenv(KEYS_VARIABLE)
    assert keys_of_environment() is None
