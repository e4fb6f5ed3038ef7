from __future__ import annotations

import numpy as np
import pytest
import torch

from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request, choose, completion_logprobs, generate
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat

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
