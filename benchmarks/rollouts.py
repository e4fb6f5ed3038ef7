"""Compares three engines for the rollouts of a GRPO step: same model, prompts and sampling.

    python benchmarks/rollouts.py --model storage/serving/announcer/all/current

A serving model, such as ``make demo`` builds, generates 64 completions (8 prompts, 8 generations)
with

* ``generate`` of transformers: one batch, padded on the left, speech tokens only;
* this project's batched sampling (``speechlm/generate.py``), which rollouts use without an engine;
* vLLM as the trainer uses it: over HTTP, with new weights before each rollout. The time includes
  the transfer of the weights, which is also printed separately.

Each engine has a warm-up and then ``--repeats`` rounds in turn; each round has other texts and
seeds. Tokens a second are the sampled tokens (with end tokens, without padding) divided by the
seconds of the call.

The demo's model is so small that Python takes most of the time. ``--layers 40`` measures a model of
100 M parameters with the same probabilities: it adds layers whose output matrices are zero, and
widens the others with zeros.

All engines compute in float32 with as many threads as there are cores. The machine should be idle
otherwise. On two cores, three repeats take 2 minutes, and 20 minutes for the larger model.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, set_seed

from tts_assets.core.processes import LOOPBACK, free_port
from tts_assets.rlhf.config import EngineProgram, VllmRollouts
from tts_assets.rlhf.engine import hosted
from tts_assets.rlhf.engine_client import EngineClient, FileSender
from tts_assets.rlhf.prompts import read_texts
from tts_assets.rlhf.trainer import prompt_order
from tts_assets.serving.config import SERVING_FILE
from tts_assets.serving.served_model import SynthesisLine, read_card
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request, allowed_ids, generate
from tts_assets.speechlm.model import SpeechLM

TEXTS = Path(__file__).resolve().parents[1] / "examples" / "texts" / "announcer_rlhf.txt"
PROMPTS, GENERATIONS = 8, 8
INTERMEDIATE = 4096  # of the enlarged model
# As in the demo: the model's own distribution.
SAMPLING = SamplingConfig(
    temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, min_tokens=10, max_tokens=320
)
Rollout = Callable[[Sequence[Request]], int]  # returns the number of sampled tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a serving model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, help="enlarge the model to this number of layers")
    options = parser.parse_args()
    if options.layers:
        with tempfile.TemporaryDirectory() as folder:
            enlarged = Path(folder) / "model"
            enlarge(options.model.resolve(), enlarged, options.layers)
            measure(enlarged, options.repeats)
    else:
        measure(options.model, options.repeats)


def enlarge(model: Path, target: Path, layers: int) -> None:
    """Writes a larger serving model with the same probabilities, up to rounding."""
    shutil.copytree(model, target, symlinks=True)
    card = read_card(model)
    codec = os.path.relpath((model / card.codec_path).resolve(), target)
    card = card.model_copy(update={"codec_path": Path(codec)})
    (target / SERVING_FILE).write_text(card.to_json())
    small = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = copy.deepcopy(small.config)
    config.num_hidden_layers, config.intermediate_size = layers, INTERMEDIATE
    large = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = large.state_dict()
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    for name, weight in small.state_dict().items():
        weights[name][tuple(slice(size) for size in weight.shape)] = weight
    large.save_pretrained(target)


def measure(model: Path, repeats: int) -> None:
    """Starts vLLM and compares the engines."""
    synthesizer = Synthesizer.open(model)
    assert isinstance(synthesizer.engine, TransformersEngine)
    lm = synthesizer.engine.lm
    with tempfile.TemporaryDirectory() as folder:
        config = VllmRollouts(dtype="float32", max_sequences=PROMPTS * GENERATIONS)
        program = EngineProgram(run_dir=Path(folder), serving_model=model, engine=config)
        with hosted(program, LOOPBACK, free_port(), lambda line: None) as server:

            def check() -> None:
                server.check()

            server.wait_until_healthy()
            client = EngineClient(server.url, program, check, print)
            compare(synthesizer, lm, client, repeats)


def compare(synthesizer: Synthesizer, lm: SpeechLM, client: EngineClient, repeats: int) -> None:
    """Measures each engine and prints a Markdown table."""
    pushes: list[float] = []

    def vllm(requests: Sequence[Request]) -> int:
        sender = FileSender(lm.model, client.config, client.folder)
        found = client.complete(requests, SAMPLING, lm.vocabulary, sender)
        pushes.append(client.push_seconds)
        return sum(len(completion.token_ids) for completion in found)

    def batched(requests: Sequence[Request]) -> int:
        return sum(len(c.token_ids) for c in generate(lm, requests, SAMPLING))

    def plain(requests: Sequence[Request]) -> int:
        return transformers_generate(lm, requests)

    engines: dict[str, Rollout] = {
        "transformers' generate": plain,
        "batched sampling": batched,
        "vLLM, with weight transfer": vllm,
    }
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    sampled: dict[str, int] = dict.fromkeys(engines, 0)
    for repeat in range(repeats + 1):
        requests = requests_of(synthesizer, repeat)
        for name, rollout in engines.items():
            started = time.perf_counter()
            tokens = rollout(requests)
            if repeat:  # the first is the warm-up
                speeds[name].append(tokens / (time.perf_counter() - started))
                sampled[name] += tokens
    print("| engine | tokens | tokens/s | slowest | fastest | ratio |\n|---|---|---|---|---|---|")
    reference = statistics.median(speeds["transformers' generate"])
    for name, values in speeds.items():
        median = statistics.median(values)
        print(
            f"| {name} | {sampled[name]} | {median:.0f} | {min(values):.0f} | {max(values):.0f} "
            f"| {median / reference:.2f} |"
        )
    print(f"\nweight transfer: {statistics.median(pushes[1:]):.3f} s; {lm.parameters:,} parameters")


def requests_of(synthesizer: Synthesizer, repeat: int) -> list[Request]:
    """Returns the requests of a step, with texts in the order of training."""
    texts = read_texts(TEXTS)
    order = prompt_order(len(texts), PROMPTS * (repeat + 1), seed=777)[-PROMPTS:]
    return [
        synthesizer.request(SynthesisLine(text, seed=1000 * repeat + number), 0)
        for number, text in enumerate(texts[i] for i in order for _ in range(GENERATIONS))
    ]


@torch.inference_mode()
def transformers_generate(lm: SpeechLM, requests: Sequence[Request]) -> int:
    """Samples all completions with one call of ``generate``. Returns the number of tokens."""
    width = max(len(request.prompt) for request in requests)
    pad = lm.tokenizer.pad_token_id
    ids = torch.full((len(requests), width), pad)
    for row, request in enumerate(requests):
        ids[row, width - len(request.prompt) :] = torch.from_numpy(request.prompt)
    speech = allowed_ids(lm.vocabulary)
    suppressed = np.setdiff1d(np.arange(lm.vocabulary.size), speech)
    set_seed(requests[0].seed)
    answer = lm.model.generate(
        input_ids=ids,
        attention_mask=torch.arange(width) >= width - lengths(requests)[:, None],
        do_sample=True,
        temperature=SAMPLING.temperature,
        top_k=SAMPLING.top_k,
        top_p=SAMPLING.top_p,
        min_new_tokens=SAMPLING.min_tokens,
        max_new_tokens=SAMPLING.max_tokens,
        suppress_tokens=suppressed.tolist(),
        eos_token_id=lm.vocabulary.speech_end,
        pad_token_id=pad,
    )
    assert isinstance(answer, torch.Tensor)
    return int((answer[:, width:] != pad).sum())


def lengths(requests: Sequence[Request]) -> torch.Tensor:
    """Returns the length of each prompt, shape (B,)."""
    return torch.tensor([len(request.prompt) for request in requests])


if __name__ == "__main__":
    main()
