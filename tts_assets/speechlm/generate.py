"""Batched sampling of speech tokens from a transformers model.

It is optimized for many short sequences of a small model, where the overhead of a step matters:
keys and values are written in place, finished rows leave the batch, only the speech rows of the
output matrix are multiplied, and random numbers are drawn before the first step.

The tokens of a request depend on its prompt, its seed and the sampling parameters, not on the other
requests of the batch: each request has its own random stream, and a token is drawn by inverting the
cumulative distribution at the next number of that stream. (Other requests can only change the
rounding of float sums.)

With a codec of several codebooks only codes of the position that comes next in the frame can be
drawn, and the end only between frames (``codec/shard_files.py``).

Shapes: B rows of the batch, A allowed tokens (the codebook, then ``<|speech_end|>``), L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.model import SpeechLM, output_table
from tts_assets.speechlm.ops import SEGMENTS, token_logprobs
from tts_assets.speechlm.vocabulary import SpeechVocabulary

COMPACT_BELOW = 0.8  # drop finished rows when a fifth is finished; the copy costs about a step
CACHE_BLOCK = 256  # tokens by which the key/value buffers grow


@dataclass(frozen=True)
class Request:
    """A prompt (token ids), the seed of its random stream, and the adapter of an engine of many."""

    prompt: NDArray[np.int64]
    seed: int
    adapter: str = ""


@dataclass(frozen=True)
class Completion:
    """The completion of a prompt.

    ``codes`` are codec codes, in whole frames. ``ended`` is whether the model drew
    ``<|speech_end|>`` before ``max_tokens``. ``token_ids`` are all codes as token ids, with the end
    token if it was drawn. ``logprobs``, one for each token id, are over the allowed tokens, before
    temperature, penalties and filters.
    """

    codes: NDArray[np.int64]
    ended: bool
    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]


def allowed_ids(vocabulary: SpeechVocabulary) -> NDArray[np.int64]:
    """The token ids that may be drawn, shape (A,): index a < codebook_size is code a."""
    return np.append(vocabulary.code_to_id, vocabulary.speech_end)


def allowed_at(vocabulary: SpeechVocabulary) -> NDArray[np.bool_]:
    """Which of :func:`allowed_ids` may be drawn at each position of a frame, (positions, A)."""
    frame = vocabulary.frame
    codes = frame.positions(np.arange(vocabulary.codebook_size)) == np.arange(len(frame))[:, None]
    return np.column_stack([codes, np.arange(len(frame)) == 0])


@torch.inference_mode()
def generate(
    lm: SpeechLM,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Complete every request. The results are in the order of ``requests``.

    ``progress`` is called with the number of requests that a batch completed. Raises ValueError if
    a prompt leaves no room for ``sampling.max_tokens``.
    """
    _check_lengths(lm, requests, sampling)
    was_training = lm.model.training
    lm.model.eval()
    # Prompts of like length share a batch: less padding.
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    results: list[Completion | None] = [None] * len(requests)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = _Batch(lm, [requests[i] for i in rows], sampling)
        for row, completion in zip(rows, batch.run(), strict=True):
            results[row] = completion
        if progress is not None:
            progress(len(rows))
    lm.model.train(was_training)
    return [completion for completion in results if completion is not None]


@torch.inference_mode()
def stream(lm: SpeechLM, request: Request, sampling: SamplingConfig) -> Generator[int]:
    """The token ids of one completion while they are drawn, the same as of :func:`generate`."""
    _check_lengths(lm, [request], sampling)
    lm.model.eval()
    batch = _Batch(lm, [request], sampling)
    for drawn in batch.steps():
        yield int(batch.space.ids[drawn[0]])


def completion_logprobs(
    lm: SpeechLM,
    prompts: Sequence[NDArray[np.int64]],
    completions: Sequence[NDArray[np.int64]],
    temperature: float = 1.0,
) -> list[Tensor]:
    """Log-probabilities of given completions (token ids) over the allowed tokens.

    They are computed in one packed, differentiable forward pass. Returns one float32 tensor of the
    length of each completion.
    """
    device = lm.model.device
    pairs = [np.concatenate(pair) for pair in zip(prompts, completions, strict=True)]
    lengths = [len(pair) for pair in pairs]
    ids = torch.from_numpy(np.concatenate(pairs)).to(device)
    positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
    previous = lm.model.config._attn_implementation
    lm.model.set_attn_implementation(SEGMENTS)
    output = lm.model.base_model(
        input_ids=ids[None], position_ids=positions[None], segments=lengths, use_cache=False
    )
    lm.model.set_attn_implementation(previous)
    starts = np.cumsum([0, *lengths[:-1]])
    # The hidden state before a token predicts it.
    where = [
        np.arange(s + len(p) - 1, s + n - 1)
        for s, p, n in zip(starts, prompts, lengths, strict=True)
    ]
    index = torch.from_numpy(np.concatenate(where)).to(device)
    hidden = output.last_hidden_state[0][index]
    space = AllowedTokens(lm.vocabulary, device)
    head = output_table(lm.model)[space.ids]
    drawn, step = space.index_of(ids[index + 1]), np.concatenate([np.arange(len(w)) for w in where])
    values = hidden.new_zeros(len(drawn), dtype=torch.float32)
    for position, allowed in enumerate(space.at):
        rows = torch.from_numpy(np.flatnonzero(step % len(space.at) == position)).to(device)
        own = token_logprobs(
            hidden[rows], head[allowed], space.within(drawn[rows], allowed), temperature
        )
        values = values.index_add(0, rows, own)
    return list(values.split([len(w) for w in where]))


def _check_lengths(lm: SpeechLM, requests: Sequence[Request], sampling: SamplingConfig) -> None:
    room = lm.model.config.max_position_embeddings - sampling.max_tokens
    for number, request in enumerate(requests):
        if len(request.prompt) > room:
            raise ValueError(
                f"request {number}: its prompt has {len(request.prompt)} tokens, but "
                f"max_tokens {sampling.max_tokens} leaves room for {room} of the model's "
                f"{lm.model.config.max_position_embeddings} positions; lower max_tokens"
            )


class AllowedTokens:
    """Token ids <-> indices 0..A-1 of the allowed tokens."""

    def __init__(self, vocabulary: SpeechVocabulary, device: torch.device) -> None:
        self.vocabulary = vocabulary
        self.device = device
        self.ids = torch.from_numpy(allowed_ids(vocabulary)).to(device)
        self.at = torch.from_numpy(allowed_at(vocabulary)).to(device)

    def columns(self) -> list[slice | Tensor]:
        """The indices that may be drawn at each position of a frame, the end last."""
        if len(self.at) == 1:
            return [slice(None)]
        bounds = self.vocabulary.frame.bounds.tolist()
        first = self.at[0].nonzero()[:, 0]
        return [first, *(slice(*pair) for pair in pairwise(bounds[1:]))]

    def index_of(self, token_ids: Tensor) -> Tensor:
        """Indices of allowed token ids; -1 for others."""
        table = torch.full((self.vocabulary.size,), -1, device=self.device)
        table[self.ids] = torch.arange(len(self.ids), device=self.device)
        return table[token_ids]

    @staticmethod
    def within(index: Tensor, allowed: Tensor) -> Tensor:
        """Indices of allowed tokens to indices of those ``allowed`` (A,) only; -1 for others."""
        return torch.where(allowed, allowed.cumsum(0) - 1, -1)[index]


class _GrowingLayer(DynamicLayer):
    """Keys and values of one layer in one buffer, (2, B, KV, capacity, D), written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = torch.empty(0)
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[2]
        if self.length == 0 or end > self.buffer.shape[3]:
            self._grow(key_states, end + CACHE_BLOCK)
        self.buffer[0, :, :, self.length : end] = key_states
        self.buffer[1, :, :, self.length : end] = value_states
        self.length = end
        return self.buffer[0, :, :, :end], self.buffer[1, :, :, :end]

    def _grow(self, like: Tensor, capacity: int) -> None:
        rows, heads, _, features = like.shape
        grown = like.new_empty(2, rows, heads, capacity, features)
        if self.length:
            grown[:, :, :, : self.length] = self.buffer[:, :, :, : self.length]
        self.buffer = grown

    def batch_select_indices(self, indices: Tensor) -> None:
        self.buffer = self.buffer[:, indices]

    def get_seq_length(self) -> int:
        return self.length


class Draws:
    """The drawn tokens of a batch of requests, and what the next ones depend on.

    It is independent of the engine that computes the logits. ``rows`` maps the B live rows to the
    requests; ``done`` (B,) are those that drew the end.
    """

    def __init__(
        self, space: AllowedTokens, requests: Sequence[Request], sampling: SamplingConfig
    ) -> None:
        self.space, self.sampling = space, sampling
        device = space.device
        self.end = len(space.ids) - 1
        self.columns = space.columns()
        every = torch.arange(self.end + 1, device=device)
        self.drawable = [every[columns] for columns in self.columns]
        count, limit = len(requests), sampling.max_tokens
        self.rows = torch.arange(count, device=device)
        self.done = torch.zeros(count, dtype=torch.bool, device=device)
        self.tokens = torch.full((count, limit), -1, device=device)
        self.logprobs = torch.zeros(count, limit, device=device)
        self.random = torch.stack([_random_stream(r.seed, limit) for r in requests]).to(device)
        self.seen = self._prompt_codes(requests)
        self.counts = torch.zeros(count, self.end + 1, device=device)  # of drawn tokens

    def _prompt_codes(self, requests: Sequence[Request]) -> Tensor:
        """The codes in the prompt of each row, bool (B, A), for the repetition penalty."""
        seen = torch.zeros(len(requests), self.end + 1, dtype=torch.bool)
        for row, request in enumerate(requests):
            seen[row, torch.from_numpy(self.space.vocabulary.codes(request.prompt))] = True
        return seen.to(self.space.device)

    def draw(self, logits: Tensor, step: int) -> Tensor:
        """Draw the next token of every live row (B,), and record it with its log-probability.

        ``logits`` has shape (B, a), of the a tokens that may be drawn in ``step``.
        """
        position = step % len(self.columns)
        columns = self.columns[position]
        model_logits = logits
        if self.sampling.repetition_penalty != 1.0:
            logits = penalize(logits, self.seen[:, columns], self.sampling.repetition_penalty)
        if self.sampling.frequency_penalty:
            logits = logits - self.sampling.frequency_penalty * self.counts[:, columns]
        if step < self.sampling.min_tokens and position == 0:
            last = torch.tensor([logits.shape[1] - 1], device=self.space.device)
            logits = logits.index_fill(1, last, -torch.inf)
        column = choose(logits, self.random[self.rows, step], self.sampling)
        picked = model_logits.gather(1, column[:, None])[:, 0]
        drawn = self.drawable[position][column]
        self.logprobs[self.rows, step] = picked - model_logits.logsumexp(dim=1)
        self.seen.scatter_(1, drawn[:, None], True)
        self.counts.scatter_add_(1, drawn[:, None], torch.ones_like(drawn[:, None]).float())
        self.tokens[self.rows, step] = torch.where(self.done, -1, drawn)
        self.done = self.done | (drawn == self.end)
        return drawn

    def keep(self, keep: Tensor) -> None:
        """Only the rows ``keep`` stay in the batch."""
        self.rows, self.done = self.rows[keep], self.done[keep]
        self.seen, self.counts = self.seen[keep], self.counts[keep]

    def completions(self) -> list[Completion]:
        """The completion of every request, in their order."""
        vocabulary = self.space.vocabulary
        ids = allowed_ids(vocabulary)
        results = []
        for tokens, logprobs in zip(
            self.tokens.cpu().numpy(), self.logprobs.cpu().numpy(), strict=True
        ):
            drawn = tokens[tokens >= 0]
            results.append(
                Completion(
                    codes=vocabulary.frame.whole(drawn[drawn < self.end]),
                    ended=bool(len(drawn)) and bool(drawn[-1] == self.end),
                    token_ids=ids[drawn],
                    logprobs=logprobs[: len(drawn)],
                )
            )
        return results


class _Batch:
    """One batch of a transformers model from prompts to completions."""

    def __init__(self, lm: SpeechLM, requests: list[Request], sampling: SamplingConfig) -> None:
        self.lm, self.requests, self.sampling = lm, requests, sampling
        self.device = lm.model.device
        self.space = AllowedTokens(lm.vocabulary, self.device)
        self.draws = Draws(self.space, requests, sampling)
        head = output_table(lm.model)[self.space.ids]  # the rows that can be drawn, (A, H)
        self.heads = [head[columns] for columns in self.draws.columns]
        self.cache = Cache(
            layers=[_GrowingLayer() for _ in range(lm.model.config.num_hidden_layers)]
        )

    def run(self) -> list[Completion]:
        """Draw all tokens and return the completions."""
        for _ in self.steps():
            pass
        return self.draws.completions()

    def steps(self) -> Iterator[Tensor]:
        """Draw all tokens. Yields the indices drawn for the live rows in each step, (B,)."""
        logits = self._prefill()
        for step in range(self.sampling.max_tokens):
            drawn = self.draws.draw(logits, step)
            yield drawn
            done = self.draws.done
            finished = int(done.sum())
            if finished == len(done) or step + 1 == self.sampling.max_tokens:
                break
            if len(done) - finished < COMPACT_BELOW * len(done):
                keep = (~done).nonzero()[:, 0]
                drawn = drawn[keep]
                self._keep(keep)
            logits = self._forward(self.space.ids[drawn][:, None], step + 1)

    def _prefill(self) -> Tensor:
        """Run the prompts, padded on the left, through the model: logits of the first step."""
        lengths = [len(request.prompt) for request in self.requests]
        width = max(lengths)
        ids = torch.full((len(lengths), width), self.lm.tokenizer.pad_token_id)
        for row, request in enumerate(self.requests):
            ids[row, width - lengths[row] :] = torch.from_numpy(request.prompt)
        pads = width - torch.tensor(lengths)
        self.visible = (torch.arange(width) >= pads[:, None]).to(self.device)
        self.next_position = torch.tensor(lengths, device=self.device)
        positions = (torch.arange(width) - pads[:, None]).clamp_min(0)
        itself = torch.eye(width, dtype=torch.bool, device=self.device)
        # A padding token attends to itself: a row of the mask without any token would give NaN.
        mask = torch.ones_like(itself).tril() & (self.visible[:, None, :] | itself)
        return self._model(ids.to(self.device), positions.to(self.device), mask[:, None], 0)

    def _forward(self, ids: Tensor, step: int) -> Tensor:
        """One token a row: logits of ``step``."""
        self.visible = F.pad(self.visible, (0, 1), value=True)
        positions = self.next_position[:, None]
        self.next_position = self.next_position + 1
        return self._model(ids, positions, self.visible[:, None, None, :], step)

    def _model(self, ids: Tensor, positions: Tensor, mask: Tensor, step: int) -> Tensor:
        """Logits (B, a) of the a tokens that may be drawn in ``step``."""
        output = self.lm.model.base_model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        return (output.last_hidden_state[:, -1] @ self.heads[step % len(self.heads)].T).float()

    def _keep(self, keep: Tensor) -> None:
        """Only the rows ``keep`` stay in the batch."""
        self.draws.keep(keep)
        self.visible, self.next_position = self.visible[keep], self.next_position[keep]
        self.cache.batch_select_indices(keep)


def _random_stream(seed: int, length: int) -> Tensor:
    """``length`` numbers in [0, 1) that depend on ``seed`` alone."""
    return torch.rand(length, generator=torch.Generator().manual_seed(seed))


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits (B, A) of ``seen`` tokens: repetition penalty (Keskar et al. 2019, CTRL)."""
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def choose(logits: Tensor, uniform: Tensor, sampling: SamplingConfig) -> Tensor:
    """Draw one index a row: logits (B, A), uniform random numbers (B,) -> (B,).

    The filters are applied in the order of transformers and vLLM: temperature, top-k, top-p.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        logits, order = logits.topk(sampling.top_k, dim=1)
    elif sampling.top_p < 1:
        logits, order = logits.sort(dim=1, descending=True)
    else:
        order = None
    weights = logits.softmax(dim=1)
    if sampling.top_p < 1:
        # The first token that reaches top_p is in the nucleus (Holtzman et al. 2020).
        weights = torch.where(weights.cumsum(1) - weights < sampling.top_p, weights, 0.0)
    cumulative = weights.cumsum(dim=1)
    target = uniform[:, None] * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, target, right=True).clamp_max(logits.shape[1] - 1)
    return picked[:, 0] if order is None else order.gather(1, picked)[:, 0]
