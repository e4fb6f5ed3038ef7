from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from tests.support.speaking import SAMPLING, Speaking, publish_checkpoint, publish_codec
from tts_assets.arrays.arrays import CodeTable
from tts_assets.codec.backends import open_compact
from tts_assets.codec.decoder import OUTPUTS, decoder_config, save_decoder
from tts_assets.codec.decoder import CodecDecoder as DecoderNetwork
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    CodeArrays,
    CodecCheckpoint,
    CodecDecoder,
    ServingModel,
)
from tts_assets.serving.config import ServingConfig
from tts_assets.serving.served_model import SynthesisError, SynthesisLine, read_card
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.serving.verify import (
    TOLERANCE,
    ConversionError,
    compare_transformers,
    compare_vllm,
    convert,
    languages,
    pick_voices,
)

TEXTS = ("one two three four", "You entered an invalid number.")


def test_serving_model_refers_to_its_codec_and_vocabulary(speaking: Speaking) -> None:
    card = read_card(speaking.serving.path)
    assert (speaking.serving.path / card.codec_path).resolve() == speaking.codec.path.resolve()
    assert card.codec == speaking.codec.content
    assert card.vocabulary == speaking.checkpoint.facts.vocabulary
    assert card.sampling == SAMPLING
    generation = GenerationConfig.from_pretrained(speaking.serving.path)
    assert generation.max_new_tokens == SAMPLING.max_tokens


def test_model_card_names_lineage_and_licence(speaking: Speaking) -> None:
    card = (speaking.serving.path / "README.md").read_text()
    assert speaking.checkpoint.content[:12] in card
    assert speaking.arrays.content[:12] in card
    assert "CC-BY-SA-3.0" in card


def test_the_card_has_the_languages_of_the_training_speech(
    speaking: Speaking, tmp_path: Path
) -> None:
    assert read_card(speaking.serving.path).languages == ("en",)
    assert 'language: ["en"]' in (speaking.serving.path / "README.md").read_text()
    folder = shutil.copytree(speaking.arrays.path, tmp_path / "arrays")
    for path in folder.glob("*_samples.jsonl"):
        first, *rest = path.read_text().splitlines(keepends=True)
        french = "".join(rest).replace('"language": "en"', '"language": "fr"')
        path.write_text(first + french.replace('"language":"en"', '"language":"fr"'))
    assert languages({"clips": CodeArrays(folder, speaking.arrays.manifest)}) == ("fr", "en")


def test_voices_are_validation_clips_with_their_text_and_codes(speaking: Speaking) -> None:
    voices = read_card(speaking.serving.path).voices
    table = CodeTable.of_split(speaking.arrays.path, "val")
    known = {sample["id"]: (sample["transcript"], tuple(codes)) for sample, codes in table}
    assert len(voices) == 2
    assert all(known[voice.source] == (voice.text, voice.codes) for voice in voices.values())


def test_voices_keep_within_their_bounds(speaking: Speaking) -> None:
    wanted = ServingConfig(voices=9, voice_seconds=(0.0, 2.5))
    rate = speaking.arrays.facts.token_rate
    voices = pick_voices({"clips": speaking.arrays}, wanted)
    assert all(len(voice.codes) / rate <= 2.5 for voice in voices.values())


def test_a_model_in_a_moved_storage_folder_synthesizes(speaking: Speaking, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(speaking.store.root, moved, symlinks=True)
    own = speaking.serving.path.relative_to(speaking.store.root)
    assert Synthesizer.open(moved / own).codec.codebook_size == 256


def publish_decoder(store: ArtifactStore, codec: CodecCheckpoint) -> CodecDecoder:
    """A decoder at 24 kHz with random weights."""
    build = Build("codec_decoder", {"codec": codec}, {}, "1")
    folder = store.work_folder(build) / "result"
    folder.mkdir(exist_ok=True)
    trained = open_compact(codec.path)
    decoder = DecoderNetwork(decoder_config(trained.config), OUTPUTS[24_000])
    save_decoder(decoder, folder)
    facts = codec.facts.model_dump(include={"token_rate", "codebook_size", "parameters"})
    facts |= {"codec": codec.content, "sample_rate": 24_000, "hop_length": 480}
    handle = store.publish(CodecDecoder, build, folder, facts)
    assert isinstance(handle, CodecDecoder)
    return handle


def test_a_separate_decoder_is_used_for_synthesis(
    speaking: Speaking, store: ArtifactStore, tmp_path: Path
) -> None:
    decoder = publish_decoder(store, speaking.codec)
    sources = dataclasses.replace(speaking.sources, decoder=decoder)
    target = tmp_path / "model"
    facts = convert(sources, ServingConfig(sampling=SAMPLING), target, target)
    assert facts.sample_rate == 24_000
    synthesizer = Synthesizer.open(target)
    assert (synthesizer.sample_rate, synthesizer.codec.hop_length) == (24_000, 480)
    speech = synthesizer.synthesize([SynthesisLine("one two", seed=1)])[0]
    assert len(speech.wave) == 480 * len(speech.codes)
    assert decoder.content[:12] in (target / "README.md").read_text()
    stranger = publish_decoder(store, publish_codec(store, seed=1))
    with pytest.raises(ConversionError, match="decoder is of codec"):
        dataclasses.replace(sources, decoder=stranger).check()


def test_another_codec_is_refused(speaking: Speaking, store: ArtifactStore) -> None:
    other = dataclasses.replace(speaking.sources, codec=publish_codec(store, seed=1))
    with pytest.raises(ConversionError, match="was trained on the 256 codes of codec"):
        other.check()


def test_serving_model_with_another_codec_in_place_is_refused(
    speaking: Speaking, store: ArtifactStore, tmp_path: Path
) -> None:
    folder = shutil.copytree(speaking.serving.path, tmp_path / "model")
    other = publish_codec(store, seed=1)
    card = read_card(folder).model_copy(update={"codec_path": other.path})
    (folder / "serving.json").write_text(card.to_json())
    with pytest.raises(SynthesisError, match="codes are valid for one codec only"):
        Synthesizer.open(folder)


def test_vocabulary_that_is_not_the_cards_is_refused(speaking: Speaking, tmp_path: Path) -> None:
    folder = shutil.copytree(speaking.serving.path, tmp_path / "model")
    card = read_card(folder).model_copy(
        update={"vocabulary": "0" * 64, "codec_path": speaking.codec.path}
    )
    (folder / "serving.json").write_text(card.to_json())
    with pytest.raises(SynthesisError, match="names 000000000000"):
        Synthesizer.open(folder)


def test_a_folder_without_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match="is not a serving model"):
        Synthesizer.open(tmp_path)


def test_transformers_gives_the_trainers_tokens(speaking: Speaking) -> None:
    agreement = compare_transformers(
        speaking.checkpoint.path, speaking.serving.path, 256, TEXTS, tokens=24
    )
    assert agreement.tokens == 48
    assert agreement.holds, agreement


def test_a_changed_weight_is_noticed(speaking: Speaking, tmp_path: Path) -> None:
    folder = shutil.copytree(speaking.serving.path, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name] + 0.05 * torch.randn_like(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    agreement = compare_transformers(speaking.checkpoint.path, folder, 256, TEXTS, tokens=24)
    assert agreement.largest_difference > TOLERANCE
    assert not agreement.holds


def test_another_models_checkpoint_is_noticed(speaking: Speaking, store: ArtifactStore) -> None:
    other = publish_checkpoint(store, speaking.codec, seed=6)
    assert not compare_transformers(other.path, speaking.serving.path, 256, TEXTS, tokens=8).holds


@pytest.mark.slow
def test_vllm_gives_the_trainers_tokens(speaking: Speaking) -> None:
    agreement = compare_vllm(speaking.checkpoint.path, speaking.serving.path, 256, TEXTS, tokens=24)
    assert agreement.tokens > 24
    assert agreement.holds, agreement


def test_reopened_handle_has_the_same_facts(speaking: Speaking) -> None:
    assert ServingModel.open(speaking.serving.path).facts == speaking.serving.facts
