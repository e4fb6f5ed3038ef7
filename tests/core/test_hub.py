"""What a model is, and that one which cannot be fetched is named, with the remedy; nothing here
reaches the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tts_assets.codec.config import CodecReportConfig
from tts_assets.codec.sources import download, newest_revision
from tts_assets.core.config import Config, ConfigError, canonical_json
from tts_assets.core.hub import identity
from tts_assets.corpora.config import FilterConfig
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.recipes import determined
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.sft.config import SftRecipe
from tts_assets.speechlm.config import TokenizerConfig, VocabularyConfig, identified
from tts_assets.speechlm.vocabulary import load_tokenizer

NAME = "nobody-of-that-name/no-model"


def test_the_identity_of_a_folder_is_its_files_and_of_a_name_the_name(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"weights")
    before = identity(str(here))
    assert before == identity(str(there)) and str(tmp_path) not in before
    (here / "model.bin").write_bytes(b"others!")
    assert identity(str(here)) != before
    assert [identity(name) for name in (NAME, "large-v3", "")] == [NAME, "large-v3", ""]


def of_sft(model: str) -> Config:
    values = {"base": {"hub": model}, "corpora": {"a": 1.0}, "steps": 1}
    return SftRecipe.parse(values, "test").identified()


def of_rlhf(model: str) -> Config:
    prompts = {"texts": "prompts.txt"}
    rewards = [{"kind": "wer", "model": model}]
    values = {"base": "a", "prompts": prompts, "rewards": rewards, "steps": 1}
    return RlhfRecipe.parse(values, "test").identified()


def of_report(model: str) -> dict[str, Any]:
    config = EvaluationConfig(suite=Path("suite.jsonl"), whisper=model, metrics=("words",))
    return determined(config, None, Path())[1]


@pytest.mark.parametrize(
    "known",
    [
        of_sft,
        of_rlhf,
        of_report,
        lambda model: identified(TokenizerConfig(hub=model, vocabulary=VocabularyConfig())),
        lambda model: FilterConfig(whisper=model).identified(),
        lambda model: CodecReportConfig(corpora=("a",), whisper=model).identified(),
    ],
)
def test_fingerprints_change_with_files_of_the_same_folder(
    known: Callable[[str], object], tmp_path: Path
) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    before = canonical_json(known(str(tmp_path)))
    assert str(tmp_path) not in before
    assert canonical_json(known(str(tmp_path))) == before
    (tmp_path / "model.bin").write_bytes(b"others!")
    assert canonical_json(known(str(tmp_path))) != before
    assert NAME in canonical_json(known(NAME))


def test_an_unavailable_model_is_an_error_with_a_remedy(
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
