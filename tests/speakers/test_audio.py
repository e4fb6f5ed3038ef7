"""Preprocessing; with the public settings and weights embeddings equal Resemblyzer's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import resemblyzer
import soundfile

from tests.conftest import CLIPS, CORPUS
from tts_assets.core.audio import read_clip
from tts_assets.core.config import ConfigError
from tts_assets.corpora.segments.speech import measure
from tts_assets.speakers.audio import Mels, mels_of, preprocess
from tts_assets.speakers.config import RESEMBLYZER, AudioSettings, encoder_digest, resolve
from tts_assets.speakers.encoder import (
    NoSpeech,
    VoiceEncoder,
    main,
    preprocess_wav,
    wav_to_embedding,
)
from tts_assets.speakers.model import EncoderCard, open_encoder, save_encoder


@pytest.fixture(scope="module")
def public() -> VoiceEncoder:
    return VoiceEncoder.load(resolve(RESEMBLYZER, Path()))


def test_resemblyzers_embeddings_of_files(
    clips: Path, tmp_path: Path, public: VoiceEncoder
) -> None:
    """Short ones, long ones, at another rate and in stereo."""
    theirs = resemblyzer.VoiceEncoder("cpu", verbose=False)
    sources = [clips / f"audio/{key}.g722" for key in CLIPS]
    sources.append(CORPUS / "audio/demo-congrats.g722")
    largest = 0.0
    paths = []
    for number, source in enumerate(sources):
        clip = read_clip(source)
        path = tmp_path / f"{number}.wav"
        stereo = np.stack([clip.wave, 0.5 * clip.wave], axis=1)
        soundfile.write(path, stereo, 22_050 if number % 2 else clip.rate)
        expected = theirs.embed_utterance(resemblyzer.preprocess_wav(path))
        found = public.wav_to_embedding(path)
        assert found.shape == (256,) and found.dtype == np.float32
        largest = max(largest, float(np.abs(found - expected).max()))
        paths.append(path)
    assert largest < 1e-4
    together = public.wavs_to_embeddings(paths)
    alone = [public.wav_to_embedding(path) for path in paths]
    assert np.abs(together - np.stack(alone)).max() < 1e-5


def test_a_long_recording_is_the_mean_of_its_windows(tmp_path: Path, public: VoiceEncoder) -> None:
    clip = read_clip(CORPUS / "audio/demo-congrats.g722")
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(clip.wave, 1 + int(90 / clip.seconds)), clip.rate)
    voice = public.long_wav_to_embedding(path)
    assert float(voice @ public.wav_to_embedding(path)) > 0.999
    assert float(np.linalg.norm(voice)) == pytest.approx(1, abs=1e-6)


def test_silence_has_no_embedding(tmp_path: Path, public: VoiceEncoder) -> None:
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(32_000), 16_000)
    assert public.preprocess_wav(path).shape == (0,)
    for way in (public.wav_to_embedding, public.long_wav_to_embedding):
        with pytest.raises(NoSpeech, match=r"silence\.wav holds less than 0\.3 s"):
            way(path)


def test_silero_removes_noise_that_webrtc_detects_as_speech(clips: Path) -> None:
    clip = read_clip(clips / "audio/conf-invalid.g722")
    noise = 0.03 * np.random.default_rng(1).standard_normal(3 * clip.rate).astype(np.float32)
    noisy = np.concatenate([clip.wave, noise])
    webrtc, silero = (
        preprocess(noisy, clip.rate, AudioSettings(vad=vad))  # type: ignore[arg-type]
        for vad in ("webrtc", "silero")
    )
    alone = preprocess(clip.wave, clip.rate, AudioSettings(vad="silero"))
    assert 0.5 * len(clip.wave) < len(alone) <= len(clip.wave)
    assert len(silero) == pytest.approx(len(alone), abs=0.3 * clip.rate) and len(silero) < len(
        webrtc
    )
    assert preprocess(noise, clip.rate, AudioSettings(vad="silero")).shape == (0,)


def test_loudness_by_r128_is_stored_with_the_weights(
    clips: Path, tmp_path: Path, public: VoiceEncoder
) -> None:
    """Unlike the RMS it is that of the speech, however long the silence around it."""
    audio = AudioSettings(unit="lufs", vad="none")
    card = EncoderCard(architecture=public.card.architecture, audio=audio)
    save_encoder(public.model, card, tmp_path)
    settings = VoiceEncoder.load(tmp_path).card.audio
    clip = read_clip(clips / "audio/conf-invalid.g722")
    quiet = np.concatenate([clip.wave, np.zeros(2 * len(clip.wave), np.float32)])
    by_rms = settings.model_copy(update={"unit": "rms"})
    found = [measure(preprocess(quiet, clip.rate, a), 16_000) for a in (settings, by_rms)]
    assert found[0] is not None and found[0].integrated == pytest.approx(-27, abs=0.2)
    assert found[1] is not None and found[1].integrated > -27 + 3
    blip = clip.wave[: clip.rate // 5]  # too short for R128
    assert np.array_equal(*(preprocess(blip, clip.rate, a) for a in (settings, by_rms)))


def test_log_mels_of_the_paper(clips: Path) -> None:
    settings = AudioSettings()
    clip = read_clip(clips / "audio/conf-invalid.g722")
    quiet, loud = (preprocess(gain * clip.wave, clip.rate, settings) for gain in (0.05, 1.0))
    for speech in (quiet, loud):
        silent = preprocess(speech, 16_000, settings.model_copy(update={"vad": "none"}))
        level = 20 * np.log10(np.sqrt(np.mean(np.square(silent, dtype=np.float64))))
        assert level == pytest.approx(settings.loudness, abs=0.01)
    frames = mels_of(loud, Mels(settings))
    assert frames.shape == (len(loud) // 160 + 1, 40)
    assert np.exp(frames.numpy()).max() > 100 * np.exp(frames.numpy()).min()


def test_an_encoder_is_stored_with_its_preprocessing(tmp_path: Path, public: VoiceEncoder) -> None:
    card = public.card
    save_encoder(public.model, card, tmp_path)
    path = CORPUS / "audio/conf-invalid.g722"
    found = VoiceEncoder.load(tmp_path)
    assert found.card == public.card
    assert np.array_equal(found.wav_to_embedding(path), public.wav_to_embedding(path))
    before = encoder_digest(tmp_path)
    (tmp_path / "config.json").write_text(
        card.model_copy(update={"audio": AudioSettings()}).to_json()
    )
    assert encoder_digest(tmp_path) != before


def test_other_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent is no speaker encoder: give a folder with"):
        open_encoder(tmp_path / "absent")
    (tmp_path / "code.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ConfigError, match="no checkpoint of tensors only"):
        open_encoder(tmp_path / "code.pt")


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match="write n_fft = 512"):
        AudioSettings(n_fft=256)
    with pytest.raises(ValueError, match="would leave gaps"):
        AudioSettings(step_frames=200)


def test_paths_and_waves_at_module_level(clips: Path, public: VoiceEncoder) -> None:
    path = clips / "audio/demo-nomatch.g722"
    wave = read_clip(path).wave
    speech = preprocess_wav(str(path))
    assert speech.dtype == np.float32 and speech.ndim == 1
    assert np.array_equal(speech, preprocess_wav(path))
    assert np.array_equal(speech, preprocess_wav(wave))
    found = wav_to_embedding(str(path))
    assert found.shape == (256,) and np.linalg.norm(found) == pytest.approx(1)
    for source in (path, wave):
        assert np.array_equal(wav_to_embedding(source), found)
    assert np.array_equal(public.wav_to_embedding(str(path)), found)
    with pytest.raises(ValueError, match="mono wave"):
        preprocess_wav(np.zeros((2, 16_000), np.float32))
    with pytest.raises(NoSpeech, match="the wave holds less than"):
        wav_to_embedding(np.zeros(16_000, np.float32))


def test_a_trial_list_of_voxceleb(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``1 id10270/x.wav id10270/y.wav``: her clips against those of two other people."""
    hers = ("agent-incorrect", "agent-newlocation", "demo-nomatch")
    for number, key in enumerate(hers):
        path = tmp_path / f"id10270/{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, read_clip(clips / f"audio/{key}.g722").wave, 16_000)
    for speaker in ("carlo_flora", "ivrvoice_ru"):
        (tmp_path / speaker).mkdir()
        wave = read_clip(CORPUS.parents[1] / f"suites/prompts/{speaker}.g722").wave
        soundfile.write(tmp_path / speaker / "0.wav", wave, 16_000)
    soundfile.write(tmp_path / "id10270/silent.wav", np.zeros(16_000), 16_000)
    lines = [f"1 id10270/{a}.wav id10270/{b}.wav" for a, b in ((0, 1), (0, 2), (1, 2))]
    lines += [
        f"0 id10270/{n}.wav {s}/0.wav" for n in range(3) for s in ("carlo_flora", "ivrvoice_ru")
    ]
    lines += ["1 id10270/0.wav id10270/silent.wav", ""]
    (tmp_path / "veri_test.txt").write_text("\n".join(lines))
    command = ["resemblyzer", "--trials", str(tmp_path / "veri_test.txt"), "--root"]
    main([*command, str(tmp_path)])
    out = capsys.readouterr().out
    assert "EER 0.00%, minDCF(0.01) 0.0000, 10 trials" in out
    assert "1 trials left out: a recording has too little speech" in out
    with pytest.raises(ConfigError, match=r"6 of 6 files that do not exist.*id10270/0.wav.*--root"):
        main([*command, str(tmp_path / "id10270")])
    (tmp_path / "veri_test.txt").write_text("1 a.wav\n")
    with pytest.raises(ConfigError, match=r"veri_test.txt:1: write 1 a.wav b.wav"):
        main([*command, str(tmp_path)])
