"""What a model is, and that one which cannot be fetched is named, with the remedy; nothing here
reaches the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tts_assets.audio_models.whisper import knows_english_only, pinned_whisper
from tts_assets.codec.config import CodecReportConfig, identify
from tts_assets.codec.original import download
from tts_assets.core.config import Config, ConfigError, canonical_json
from tts_assets.core.hub import commit_of, identity, pinned
from tts_assets.corpora.config import FilterConfig
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.recipes import determined
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.sft.config import SftRecipe
from tts_assets.speakers.config import encoder_digest, resolve
from tts_assets.speechlm.config import TokenizerConfig, VocabularyConfig, identified
from tts_assets.speechlm.vocabulary import load_tokenizer

NAME = "nobody-of-that-name/no-model"
LARGE = "Systran/faster-whisper-large-v3"
OLD, NEW = "a" * 40, "b" * 40  # commits


def cached(cache: Path, name: str, main: str) -> Path:
    """The folder of a model in a cache of the hub, whose main branch is at the commit ``main``."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(main)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with two models, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (NAME, LARGE):
        cached(cache, name, OLD)
    return cache


def test_a_name_is_resolved_to_a_commit_once(cache: Path) -> None:
    assert pinned(NAME) == pinned(f"{NAME}@main") == pinned(f"{NAME}@{OLD}") == f"{NAME}@{OLD}"
    before = pinned(NAME)
    cached(cache, NAME, NEW)  # another download moved the branch
    assert pinned(before) == before, "what was pinned stays"
    assert pinned(NAME) == f"{NAME}@{NEW}"
    assert pinned_whisper("large-v3") == pinned_whisper(LARGE) == f"{LARGE}@{OLD}"
    assert pinned_whisper("") == ""
    assert knows_english_only(f"Systran/faster-whisper-base.en@{OLD}")
    assert identify(NAME, cache) == {"name": NAME, "revision": NEW}
    assert identify(f"{NAME}@main", cache) == {"name": NAME, "revision": NEW}
    with pytest.raises(ConfigError, match=f"{NAME}: it cannot be fetched"):
        commit_of(NAME, "another-branch")


def test_the_newest_commit_is_recorded_in_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([NEW, OLD])
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info",
        lambda *_, **__: type("Info", (), {"sha": next(answers)}),
    )
    assert pinned("new/model") == pinned("new/model") == f"new/model@{NEW}"
    assert (cache / "models--new--model" / "refs" / "main").read_text() == NEW


def test_a_speaker_encoder_of_the_hub_is_a_folder_of_its_cache(cache: Path) -> None:
    folder = cached(cache, NAME, OLD) / "snapshots" / OLD
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"{NAME} has no model.safetensors on the hub"):
        resolve(NAME, cache)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert resolve(NAME, cache) == resolve(f"{NAME}@{OLD}", cache) == folder
    assert encoder_digest(folder)
    with pytest.raises(ConfigError, match=f"{NAME}: it cannot be fetched"):
        resolve(f"{NAME}@{NEW}", cache)
    (cache / NAME).mkdir(parents=True)
    assert resolve(NAME, cache) == cache / NAME, "a folder comes first"


@pytest.mark.parametrize(
    "name",
    ["../models", "./encoder", "models/encoder.onnx", "models/encoder.pt", f"{NAME}@../../main"],
)
def test_a_path_that_does_not_exist_is_no_name_on_the_hub(name: str, cache: Path) -> None:
    with pytest.raises(ConfigError, match="is no speaker encoder: give a folder"):
        encoder_digest(resolve(name, cache))


LOAD = """
import sys, torch
from tts_assets.speechlm.config import BaseModel, VocabularyConfig
from tts_assets.speechlm.model import build
for name in sys.argv[1:]:
    lm = build(BaseModel(hub=name), 8, VocabularyConfig(), seed=1)
    print(float(lm.model.get_output_embeddings().weight[0, 0]))
"""


@pytest.mark.slow
def test_models_are_loaded_at_their_commit(tmp_path: Path) -> None:
    """Two commits of one model in a cache of the hub's layout; nothing reaches the network."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tts_assets.speechlm.vocabulary import byte_tokenizer

    folder = cached(tmp_path / "hub", NAME, NEW)
    tokenizer = byte_tokenizer(64)
    for commit, value in ((OLD, 1.5), (NEW, 2.5)):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "vocab_size": len(tokenizer)}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
        torch.nn.init.constant_(model.lm_head.weight, value)
        snapshot, blobs = folder / "snapshots" / commit, folder / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir(exist_ok=True)
        model.save_pretrained(tmp_path / commit)
        tokenizer.save_pretrained(tmp_path / commit)
        for file in (tmp_path / commit).iterdir():
            blob = blobs / f"{commit}-{file.name}"
            file.rename(blob)
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, f"{NAME}@{OLD}", NAME]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.5", "2.5"]


def test_the_identity_of_a_folder_is_its_files(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"weights")
    before = identity(str(here))
    assert before == identity(str(there)) and str(tmp_path) not in before
    (here / "model.bin").write_bytes(b"others!")
    assert identity(str(here)) != before
    assert identity("") == ""


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
    known: Callable[[str], object], tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    before = canonical_json(known(str(tmp_path)))
    assert str(tmp_path) not in before
    assert canonical_json(known(str(tmp_path))) == before
    (tmp_path / "model.bin").write_bytes(b"others!")
    assert canonical_json(known(str(tmp_path))) != before
    assert f'"{NAME}@{OLD}"' in canonical_json(known(NAME))
    cached(cache, NAME, NEW)
    assert f'"{NAME}@{NEW}"' in canonical_json(known(NAME))


def test_an_unavailable_model_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # a closed port
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # two minutes of the hub's retries
    for fetch in (
        lambda: commit_of(NAME),
        lambda: download(NAME, "0" * 40, tmp_path),
        lambda: load_tokenizer(NAME),
    ):
        with pytest.raises(ConfigError, match=f"{NAME}.*hf auth login.*name a folder"):
            fetch()


PUBLISHED = {  # as SNAC is published: no safetensors, and a config without a model type
    "config.json": b'{"vq_strides": [4, 2, 1]}',
    "pytorch_model.bin": b"weights",
    "modeling.py": b"raise SystemExit",
    "README.md": b"a card",
}


class Hub(BaseHTTPRequestHandler):
    """The answers of the hub for one repository."""

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        if "/tree/" in self.path:
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": "1" * 40}
                for name, data in PUBLISHED.items()
            ]
            data = json.dumps(rows).encode()
        else:
            data = PUBLISHED.get(self.path.rpartition("/")[2], b"{}")
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{len(data)}"')
        self.send_header("X-Repo-Commit", OLD)
        self.end_headers()
        return data


@pytest.mark.slow
def test_the_weights_of_snac_are_downloaded_without_code(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tts_assets.codec.original import download; "
        "download(*sys.argv[1:3], Path(sys.argv[3]))"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{hub.server_port}"
        proxies = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
        subprocess.run(
            [sys.executable, "-c", script, "someone/snac", OLD, str(tmp_path / "codec")],
            env=os.environ | proxies | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")},
            check=True,
        )
        hub.shutdown()
    found = {path.name: path.read_bytes() for path in (tmp_path / "codec").iterdir()}
    assert found == {name: PUBLISHED[name] for name in ("config.json", "pytorch_model.bin")}
