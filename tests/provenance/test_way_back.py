"""From a synthesized file back to its sources, and from a corpus to the refusal of its models."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from tests.support.speaking import Speaking
from tts_assets.core.artifacts.store import withdrawals
from tts_assets.corpora.config import ConsentError
from tts_assets.promotion import history
from tts_assets.provenance import artifacts, check_model, made_from, withdraw
from tts_assets.provenance.__main__ import main
from tts_assets.provenance.manifest import KEYS_VARIABLE, ROOT_FILE, Keys
from tts_assets.serving import server, synthesize
from tts_assets.serving.config import ServerConfig
from tts_assets.serving.requests import ApiError, SpeechRequest, check_request
from tts_assets.serving.served_model import read_card

CORPUS = """{{ path = "{path}", reader = "jsonl", language = "en",
    consent = {{ who = "Ann Ü", purpose = "tests", until = {until} }} }}"""
RECIPE = """{ base = { llama = { hidden_size = 64, intermediate_size = 96, layers = 1, heads = 2,
    kv_heads = 1, max_positions = 2048 } }, corpora = { clips = 1.0 }, steps = 1 }"""


def spoken(model: Path, out: Path) -> list[str]:
    return ["--model", str(model), "--text", "one", "--out", str(out), "--max-tokens", "12"]


def test_show_prints_the_way_back_to_the_corpus(
    speaking: Speaking,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, str(keys.folder))
    with history.locked(speaking.store, "voice"):
        promoted = history.switch(speaking.store, "voice", speaking.serving, "tiny", "by hand", "")
    out = tmp_path / "a.wav"
    synthesize.main(spoken(promoted.path, out))
    capsys.readouterr()
    root, storage = keys.folder / ROOT_FILE, str(speaking.store.root)
    assert main(["show", str(out), "--root", str(root), "--storage", storage]) == 0
    shown = capsys.readouterr().out
    assert "valid: the file is as it was signed" in shown
    assert f"synthetic speech by serving/tiny {speaking.serving.content[:12]}" in shown
    assert "trained on clips: Ann Ü: tests, until 2999-01-01 (contract 7)" in shown
    for made in (speaking.serving, speaking.checkpoint, speaking.arrays, speaking.codec):
        assert re.search(rf"{made.content[:12]} \({re.escape(str(made.path))}\)", shown)

    assert main(["show", str(out), "--root", str(keys.folder / "signing.key")]) in (1, 2)
    out.write_bytes(out.read_bytes().replace(b"serving/tiny", b"serving/TINY"))
    assert main(["show", str(out)]) == 1
    assert "INVALID, do not rely on it" in capsys.readouterr().out


def test_a_withdrawn_consent_ends_the_use_of_a_model(
    speaking: Speaking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a clip's corpus to the refusal: by the command, the server and promotion."""
    model, store = speaking.serving.path, speaking.store
    request = SpeechRequest(input="one", model="tiny")
    check_request(request, read_card(model), ServerConfig(), model)
    affected = {one.asset for one in made_from(artifacts(store), "clips")}
    assert affected == {"code_arrays", "serving/tiny"}

    withdraw(store, "clips", "a letter", date(2026, 11, 30))
    assert withdrawals(store.root) == {"clips": date(2026, 11, 30)}
    with pytest.raises(SystemExit):
        synthesize.main(spoken(model, tmp_path / "a.wav"))
    refused = "consent for corpora.clips was withdrawn on 2026-11-30"
    with pytest.raises(ConsentError, match=refused):  # whatever the card says: by its inputs
        check_model(model, {}, "tiny may not be used")
    assert refused in capsys.readouterr().err
    assert server.main(["--model", str(model)]) == server.INVALID
    with pytest.raises(ApiError, match=refused) as denied:  # a server that was already running
        check_request(request, read_card(model), ServerConfig(), model)
    assert denied.value.status == 403
    with (
        history.locked(store, "voice"),
        pytest.raises(ConsentError, match=f"tiny is not promoted: the {refused}"),
    ):
        history.switch(store, "voice", speaking.serving, "tiny", "by hand", "")


def test_the_commands_list_what_depends_on_a_corpus(
    speaking: Speaking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def corpus(until: str) -> str:
        text = CORPUS.format(path=speaking.clips, until=until)
        return text.replace("\n", " ")

    monkeypatch.setenv("TTS__PROJECT__STORAGE", str(speaking.store.root))
    monkeypatch.setenv("TTS__SFT__TINY", RECIPE.replace("\n", " "))
    monkeypatch.setenv("TTS__CORPORA__CLIPS", corpus("2999-01-01"))
    assert main(["consents"]) == 0
    assert "clips: Ann Ü: tests, until 2999-01-01\n" in capsys.readouterr().out
    monkeypatch.setenv("TTS__CORPORA__CLIPS", corpus("2001-01-01"))
    assert main(["consents"]) == 1
    shown = capsys.readouterr().out
    assert "clips: ENDED: Ann Ü" in shown
    assert f"serving/tiny {speaking.serving.content[:12]}" in shown
    monkeypatch.setenv("TTS__CORPORA__CLIPS", corpus("2999-01-01"))
    assert main(["withdraw", "clips", "--because", "a letter"]) == 0
    shown = capsys.readouterr().out
    assert "code_arrays[clips]" in shown and "and 1 earlier versions" in shown
    assert "tiny: no other corpus is left; add one, or remove the recipes" in shown
    assert main(["withdraw", "clips"]) == 2
    assert "already withdrawn" in capsys.readouterr().err
    assert main(["consents", "clips"]) == 1
    assert f"clips: WITHDRAWN on {date.today()}" in capsys.readouterr().out
    assert main(["consents", "nothing"]) == 2
