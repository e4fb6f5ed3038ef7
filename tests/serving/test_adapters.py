"""Adapters of one base as voices of one server."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.scripted_server import scripted_server
from tests.support.speaking import Speaking
from tts_assets.serving.async_engine import StreamingSynthesizer, adapter_arguments
from tts_assets.serving.config import SERVING_FILE, ServerConfig
from tts_assets.serving.served_model import SynthesisError
from tts_assets.serving.synthesis import SynthesisLine, Synthesizer
from tts_assets.serving.verify import greedy_sampling
from tts_assets.serving.voices import SETTINGS_FILE, WEIGHTS_FILE, open_adapters
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.model import adapt_lora, write_adapter
from tts_assets.sft.strategies import named_tensors
from tts_assets.speechlm.config import ADAPTER
from tts_assets.speechlm.model import SpeechLM

RECIPE = SftRecipe.model_validate(
    {"base": {"hub": "base"}, "corpora": {"clips": 1}, "steps": 1, "lora": {"rank": 4}}
)


@pytest.fixture(scope="module")
def adapted(speaking: Speaking, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The serving model of a recipe ``anna``: the base with a merged adapter, and the adapter."""
    folder = tmp_path_factory.mktemp("serving") / "anna"
    shutil.copytree(speaking.serving.path, folder, ignore=shutil.ignore_patterns("manifest.json"))
    card = json.loads((folder / SERVING_FILE).read_text())
    consents = {"tape": {"who": "Anna Example", "purpose": "tests"}}
    codec = str(speaking.codec.path)
    card |= {"recipe": "anna", "codec_path": codec, "consents": consents}
    (folder / SERVING_FILE).write_text(json.dumps(card))
    size = speaking.serving.facts.codebook_size
    lm = SpeechLM.load(folder, size)
    assert RECIPE.lora is not None
    tuner = adapt_lora(lm.model, RECIPE.lora, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    trained = {name: value.detach().clone() for name, value in named_tensors(lm.model).items()}
    write_adapter(folder / ADAPTER, SpeechLM.load(folder, size), RECIPE, trained)
    tuner.merge_and_unload()
    lm.save(folder)
    return folder


def test_adapters_are_voices(speaking: Speaking, adapted: Path, tmp_path: Path) -> None:
    (anna,) = open_adapters(speaking.serving.path, [adapted])
    assert (anna.name, anna.rank, anna.folder) == ("anna", 4, adapted / ADAPTER)
    half = anna.scaled(0.5, tmp_path / "half")
    before, after = (
        json.loads((one.folder / SETTINGS_FILE).read_text())["lora_alpha"] for one in (anna, half)
    )
    assert after == before / 2
    assert (half.folder / WEIGHTS_FILE).read_bytes() == (anna.folder / WEIGHTS_FILE).read_bytes()
    assert adapter_arguments([]) == {} and adapter_arguments([anna])["max_lora_rank"] == 8
    synthesizer = Synthesizer.open(speaking.serving.path)
    with scripted_server(synthesizer, adapters=[anna]) as server, server.http as client:
        listed = [voice["id"] for voice in client.get("/v1/voices").json()["data"]]
        assert listed[:2] == ["default", *sorted(synthesizer.card.voices)][:2] and "anna" in listed
        long = " ".join(["This is a sentence of several words."] * 9)
        for voice in ("anna", "default"):
            body = {"model": "tiny", "input": long, "voice": voice, "response_format": "wav"}
            assert client.post("/v1/audio/speech", json=body).status_code == 200
            names = set(server.engine.adapters)
            assert names == ({"anna"} if voice == "anna" else {""})
            server.engine.adapters.clear()
    german = replace(anna, card=anna.card.model_copy(update={"languages": ("de",)}))
    with scripted_server(synthesizer, adapters=[german]) as server, server.http as client:
        for voice, spoken in (("anna", "drei"), ("default", "three")):
            body = {"model": "tiny", "input": "3", "voice": voice, "response_format": "wav"}
            assert client.post("/v1/audio/speech", json=body).status_code == 200
            assert np.array_equal(server.engine.prompts[-1], synthesizer.prompts.inference(spoken))


def test_unfitting_adapters_are_refused(speaking: Speaking, adapted: Path, tmp_path: Path) -> None:
    base = speaking.serving.path
    with pytest.raises(SynthesisError, match="has no adapter: train it with lora"):
        open_adapters(base, [base])
    with pytest.raises(SynthesisError, match="there are two voices 'anna'"):
        open_adapters(base, [adapted, adapted])
    other = tmp_path / "other"
    shutil.copytree(base, other)
    lm = SpeechLM.load(other, speaking.serving.facts.codebook_size)
    weights = {name: value + 0.01 for name, value in lm.model.state_dict().items()}
    lm.model.load_state_dict(weights)
    lm.model.save_pretrained(other)
    with pytest.raises(SynthesisError, match="adapter of anna belongs to another base"):
        open_adapters(other, [adapted])


@pytest.mark.slow
def test_vllm_serves_adapters_beside_the_base(speaking: Speaking, adapted: Path) -> None:
    """The tokens are those of the merged model and of the base, in one engine."""
    lines = [SynthesisLine("one two", adapter="anna"), SynthesisLine("one two")] * 2
    sampling = greedy_sampling(20)
    expected = [
        Synthesizer.open(folder).synthesize([SynthesisLine("one two")], sampling)[0].codes
        for folder in (adapted, speaking.serving.path)
    ]
    assert not np.array_equal(expected[0], expected[1])

    async def serve() -> list[np.ndarray]:
        config = ServerConfig(adapters=str(adapted), max_model_len=256, concurrency=4)
        synthesizer = StreamingSynthesizer.open(speaking.serving.path, config, lambda: None)
        try:
            assert "Anna Example" in synthesizer.model.provenance
            made = [synthesizer.synthesize(line, sampling) for line in lines]
            return [speech.codes for speech in await asyncio.gather(*made)]
        finally:
            synthesizer.close()

    found = asyncio.run(serve())
    assert [codes.tolist() for codes in found] == [codes.tolist() for codes in expected] * 2
