from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.speechlm.conftest import TINY
from tts_assets.speechlm.config import BaseModel, SamplingConfig, VocabularyConfig
from tts_assets.speechlm.generate import Request, choose, completion_logprobs, generate
from tts_assets.speechlm.model import SpeechLM, build
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.vocabulary import VocabularyError, saved_vocabulary

SAMPLING = SamplingConfig(temperature=1.2, top_k=40, top_p=0.9, min_tokens=3, max_tokens=60)


@pytest.fixture
def requests_of_all_lengths(tiny: SpeechLM) -> list[Request]:
    prompts = PromptFormat(tiny.tokenizer, tiny.vocabulary)
    texts = ["one", "three seven one nine", "please hold the line while I try", "x"] * 4
    made = [Request(prompts.inference(text), seed) for seed, text in enumerate(texts)]
    voiced = prompts.inference("two", prompt_text="one", prompt_codes=[5, 6, 7])
    return [*made, Request(voiced, 99)]


def ending_soon(tiny: SpeechLM) -> SpeechLM:
    """A copy whose end token is likely, so that rows finish at different steps."""
    model = type(tiny.model)(tiny.model.config)
    model.load_state_dict(tiny.model.state_dict())
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[torch.from_numpy(tiny.vocabulary.code_to_id)] *= 0.5
        head[tiny.vocabulary.speech_end] *= 8
    return SpeechLM(model, tiny.tokenizer, tiny.vocabulary)


def test_other_requests_of_a_batch_change_nothing(
    tiny: SpeechLM, requests_of_all_lengths: list[Request]
) -> None:
    lm = ending_soon(tiny)
    together = generate(lm, requests_of_all_lengths, SAMPLING)
    assert len({len(c.codes) for c in together}) > 3  # rows left the batch at several steps
    assert any(c.ended for c in together) and any(not c.ended for c in together)
    for request, expected in zip(requests_of_all_lengths, together, strict=True):
        alone = generate(lm, [request], SAMPLING)[0]
        assert np.array_equal(alone.token_ids, expected.token_ids)
    in_fours = generate(lm, requests_of_all_lengths, SAMPLING, batch_size=4)
    for a, b in zip(in_fours, together, strict=True):
        assert np.array_equal(a.token_ids, b.token_ids)


def test_completions_are_speech_tokens_and_one_end(
    tiny: SpeechLM, requests_of_all_lengths: list[Request]
) -> None:
    lm = ending_soon(tiny)
    with torch.no_grad():  # text tokens are far likelier than speech
        lm.model.get_output_embeddings().weight[:200] += 1.0
    for completion in generate(lm, requests_of_all_lengths, SAMPLING):
        assert SAMPLING.min_tokens <= len(completion.codes) <= SAMPLING.max_tokens
        speech = completion.token_ids[: len(completion.codes)]
        assert np.array_equal(lm.vocabulary.codes(speech), completion.codes)
        tail = completion.token_ids[len(completion.codes) :].tolist()
        assert tail == ([lm.vocabulary.speech_end] if completion.ended else [])


def test_greedy_decoding_is_that_of_transformers(
    tiny: SpeechLM, requests_of_all_lengths: list[Request]
) -> None:
    sampling = SamplingConfig(temperature=0, repetition_penalty=1.0, min_tokens=0, max_tokens=20)
    allowed = {*tiny.vocabulary.code_to_id.tolist(), tiny.vocabulary.speech_end}
    for request, ours in zip(
        requests_of_all_lengths[-3:],
        generate(tiny, requests_of_all_lengths[-3:], sampling),
        strict=True,
    ):
        prompt = torch.from_numpy(request.prompt)[None]
        theirs = tiny.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=20,
            prefix_allowed_tokens_fn=lambda *_: sorted(allowed),
        )
        assert ours.token_ids.tolist() == theirs[0, prompt.shape[1] :].tolist()


def test_logprobs_are_those_of_a_forward_pass(
    tiny: SpeechLM, requests_of_all_lengths: list[Request]
) -> None:
    completions = generate(tiny, requests_of_all_lengths, SAMPLING)
    forced = completion_logprobs(
        tiny,
        [request.prompt for request in requests_of_all_lengths],
        [completion.token_ids for completion in completions],
    )
    for values, completion in zip(forced, completions, strict=True):
        assert np.allclose(values.detach().numpy(), completion.logprobs, atol=1e-4)
    assert forced[0].requires_grad


def test_a_seed_gives_other_tokens_than_another(tiny: SpeechLM) -> None:
    prompt = PromptFormat(tiny.tokenizer, tiny.vocabulary).inference("hello")
    a, b, c = generate(tiny, [Request(prompt, 1), Request(prompt, 1), Request(prompt, 2)], SAMPLING)
    assert np.array_equal(a.codes, b.codes)
    assert not np.array_equal(a.codes, c.codes)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(40_000, 4)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(1))
    plain = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)
    counts = torch.bincount(choose(logits, uniform, plain), minlength=4) / 40_000
    assert torch.allclose(counts, logits[0].softmax(0), atol=0.01)
    two = choose(logits, uniform, SamplingConfig(temperature=1.0, top_k=2))
    assert set(two.tolist()) == {1, 2}
    nucleus = choose(logits, uniform, SamplingConfig(temperature=1.0, top_k=0, top_p=0.8))
    assert set(nucleus.tolist()) == {1, 2}  # 0.64, then 0.24 reaches 0.8
    assert set(choose(logits, uniform, SamplingConfig(temperature=0)).tolist()) == {2}


def test_a_prompt_without_room_is_refused(tiny: SpeechLM) -> None:
    with pytest.raises(ValueError, match="leaves room for 48"):
        generate(
            tiny,
            [Request(np.zeros(60, dtype=np.int64), 1)],
            SamplingConfig(max_tokens=2000),
        )


FRAME = (5, 3, 4)  # codes at each position of a frame


@pytest.fixture(scope="module")
def framed() -> SpeechLM:
    """A model over the codes of several codebooks, whose end token is likely."""
    return ending_soon(build(BaseModel(llama=TINY), sum(FRAME), VocabularyConfig(), 5, FRAME))


def framed_requests(lm: SpeechLM) -> list[Request]:
    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    made = [Request(prompts.inference("one two"[: 2 + seed % 5]), seed) for seed in range(12)]
    voiced = prompts.inference("two", prompt_text="one", prompt_codes=[4, 5, 8, 0, 7, 11])
    return [*made, Request(voiced, 99)]


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_only_codes_of_the_next_position_of_a_frame_are_drawn(
    framed: SpeechLM, temperature: float
) -> None:
    sampling = SamplingConfig(
        temperature=temperature, top_k=0, repetition_penalty=1.3, min_tokens=4, max_tokens=20
    )
    completions = generate(framed, framed_requests(framed), sampling)
    for completion in completions:
        drawn = completion.token_ids[: len(completion.token_ids) - completion.ended]
        codes = framed.vocabulary.codes(drawn)
        assert framed.vocabulary.frame.first_misplaced(codes) is None
        assert len(completion.codes) == len(codes) - len(codes) % 3
        assert len(codes) % 3 == 0 and len(codes) >= 4 if completion.ended else len(codes) == 20
    assert temperature == 0 or any(one.ended for one in completions)


def test_logprobs_are_over_the_codes_of_the_next_position(framed: SpeechLM) -> None:
    requests = framed_requests(framed)
    sampling = SamplingConfig(temperature=1.0, top_k=0, repetition_penalty=1.0, max_tokens=20)
    completions = generate(framed, requests, sampling)
    forced = completion_logprobs(
        framed, [one.prompt for one in requests], [one.token_ids for one in completions]
    )
    for request, completion, values in zip(requests, completions, forced, strict=True):
        assert np.allclose(values.detach().numpy(), completion.logprobs, atol=1e-4)
        ids = torch.from_numpy(np.concatenate([request.prompt, completion.token_ids]))
        logits = framed.model(ids[None]).logits[0, len(request.prompt) - 1 : -1].detach()
        bounds = framed.vocabulary.frame.bounds
        for step, (row, token) in enumerate(zip(logits, completion.token_ids, strict=True)):
            allowed = framed.vocabulary.code_to_id[bounds[step % 3] : bounds[step % 3 + 1]].tolist()
            allowed += [framed.vocabulary.speech_end] if step % 3 == 0 else []
            expected = row[token] - row[allowed].logsumexp(0)
            assert abs(float(expected) - completion.logprobs[step]) < 1e-4


def test_the_frames_of_a_vocabulary_are_saved_with_it(framed: SpeechLM, tmp_path: Path) -> None:
    framed.save(tmp_path)
    again = SpeechLM.load(tmp_path, sum(FRAME))
    assert again.vocabulary == framed.vocabulary == saved_vocabulary(tmp_path)
    assert again.vocabulary.frame.sizes == FRAME
    hub = BaseModel(hub=str(tmp_path))
    assert build(hub, 12, VocabularyConfig(), 5, FRAME).vocabulary.digest == again.vocabulary.digest
    with pytest.raises(VocabularyError, match=r"frames of \(5, 3, 4\) codes, the codec of \(12,\)"):
        build(hub, 12, VocabularyConfig(), 5)
    plain = build(BaseModel(llama=TINY), 12, VocabularyConfig(), 5).vocabulary
    assert plain.speech_ids == again.vocabulary.speech_ids
    assert plain.digest != again.vocabulary.digest
