"""LoRA adapters, and the merged model that is published."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.sft.conftest import CODEBOOK, program, speaking_folder
from tests.sft.test_train import assert_bit_equal, losses, stop_after, train, weights
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run
from tts_assets.core.training import saved
from tts_assets.sft.checkpoint import CheckpointError
from tts_assets.sft.config import SftProgram
from tts_assets.sft.inputs import MachineError, check_machine
from tts_assets.sft.train import SftTrainer, build_trainer
from tts_assets.speechlm.config import ADAPTER_CARD, AdapterCard
from tts_assets.speechlm.model import SpeechLM, weights_digest
from tts_assets.speechlm.vocabulary import byte_tokenizer

EIGHT_BIT = {"name": "adamw_8bit"}
LORA = {"rank": 4, "alpha": 16, "dropout": 0.1}
CHANGES = {"lora": LORA, "save_every": 3, "optimizer": {"lr": 1e-2, "warmup_share": 0.0}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def whole_run(arrays: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> SftProgram:
    config = program(
        tmp_path_factory.mktemp("lora"), arrays, base={"hub": str(base)}, **CHANGES, export="best"
    )
    train(config)
    return config


@pytest.fixture
def text_base(tmp_path: Path) -> Path:
    """A text model without a speech vocabulary."""
    folder = tmp_path / "text"
    tokenizer = byte_tokenizer(2048)
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **size, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_the_published_model_is_the_adapted_one(arrays: Path, base: Path, tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        trainer = build_trainer(run, program(tmp_path, arrays, base={"hub": str(base)}, **CHANGES))
        for step in range(3):
            trainer.train_step(step)
        ids = torch.arange(200)[None]
        trainer.lm.model.set_attn_implementation("sdpa")
        trainer.lm.model.eval()
        adapted = trainer.lm.model(ids).logits.detach()
        trainer.finish()
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "result")
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert torch.allclose(published(ids).logits, adapted, atol=1e-5)
    assert not torch.allclose(plain(ids).logits, adapted, atol=1e-2)
    before, after = load_file(base / "model.safetensors"), weights(tmp_path)
    assert {name: value.shape for name, value in before.items()} == {
        name: value.shape for name, value in after.items()
    }
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= same
    changed = {name.split(".")[-2] for name in before.keys() - same}
    assert changed == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert SpeechLM.load(tmp_path / "result", CODEBOOK).parameters == trainer.parameters


def test_checkpoints_have_the_trained_parameters(whole_run: SftProgram) -> None:
    newest = saved(whole_run.run_dir / "checkpoints")[-1]
    best = next((whole_run.run_dir / "checkpoints").glob("best-*.safetensors"))
    for path in (next(newest.glob("*.safetensors")), best):
        with safe_open(path, "pt") as tensors:
            names = list(tensors.keys())
        assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    curve = losses(whole_run.run_dir)
    assert np.mean(curve[-2:]) < curve[0] - 0.1


def test_a_resumed_run_has_bit_equal_weights(whole_run: SftProgram, tmp_path: Path) -> None:
    config = whole_run.model_copy(update={"run_dir": tmp_path})
    stop_after(4, config)
    train(config)
    assert_bit_equal(tmp_path, whole_run)


def test_adapters_do_not_resume_with_another_base(arrays: Path, base: Path, tmp_path: Path) -> None:
    """Another model in the same folder has the same name."""
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    config = program(tmp_path / "run", arrays, base={"hub": str(folder)}, **CHANGES)
    stop_after(4, config)
    values = load_file(folder / "model.safetensors")
    changed = {name: value + 0.01 for name, value in values.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="belongs to another recipe or other data"):
        train(config)


def test_the_adapter_is_published_for_peft(arrays: Path, base: Path, tmp_path: Path) -> None:
    """peft's model of base and adapter computes what the merged model does."""
    from peft import PeftModel

    changes = {**CHANGES, "lora": {**LORA, "adapter": True}, "steps": 3}
    config = program(tmp_path, arrays, base={"hub": str(base)}, **changes)
    train(config)
    result = tmp_path / "result"
    ids = torch.arange(200)[None]
    merged = AutoModelForCausalLM.from_pretrained(result)(ids).logits
    plain = AutoModelForCausalLM.from_pretrained(base)
    without = plain(ids).logits
    adapted = PeftModel.from_pretrained(plain, result / "adapter")(ids).logits
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(without, merged, atol=1e-2)
    card = AdapterCard.from_json(result / "adapter" / ADAPTER_CARD)
    lm = SpeechLM.load(base, CODEBOOK)
    assert card.base == weights_digest(lm.model)
    assert card.vocabulary == lm.vocabulary.digest


needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs tts-assets[qlora]"
)


@needs_bitsandbytes
def test_a_base_in_four_bits_is_trained_resumed_and_published(arrays: Path, tmp_path: Path) -> None:
    """The published model computes what was trained: rounded matrices with merged adapters."""
    base = speaking_folder(tmp_path / "base", intermediate=128)  # CPUs: multiples of 64
    lora = {"rank": 4, "alpha": 16, "four_bit": True}
    changes = {**CHANGES, "lora": lora, "base": {"hub": str(base)}}
    changes["optimizer"] = {"lr": 1e-2, "warmup_share": 0.0, "name": "adamw_8bit"}
    whole, parts = (program(tmp_path / name, arrays, **changes) for name in ("whole", "parts"))
    with Run(whole.run_dir) as run:
        trainer = build_trainer(run, whole)
        trainer.train()
        ids = torch.arange(200)[None]
        trainer.lm.model.set_attn_implementation("sdpa")
        trainer.lm.model.eval()
        adapted = trainer.lm.model(ids).logits.detach()
        trainer.finish()
    published = AutoModelForCausalLM.from_pretrained(whole.run_dir / "result")
    assert torch.allclose(published(ids).logits, adapted, atol=1e-5)
    matrix = "model.layers.0.self_attn.q_proj"
    assert trainer.lm.model.get_submodule(f"{matrix}.base_layer").weight.dtype == torch.uint8
    newest = saved(whole.run_dir / "checkpoints")[-1]
    with safe_open(next(newest.glob("*.safetensors")), "pt") as tensors:
        names = list(tensors.keys())
        large = [name for name in names if name.startswith("optimizer.state1") and "gate" in name]
        assert not any(".base_layer." in name for name in names)
        assert tensors.get_tensor(large[0]).dtype == torch.float32  # below 4,096 values
    stop_after(4, parts)
    train(parts)
    assert_bit_equal(parts.run_dir, whole)


@needs_bitsandbytes
def test_large_tensors_have_moments_of_eight_bits(arrays: Path, base: Path, tmp_path: Path) -> None:
    changes = {"base": {"hub": str(base)}, "steps": 4, "save_every": 2}
    changes["optimizer"] = {"lr": 1e-2, "name": "adamw_8bit"}
    whole, parts = (program(tmp_path / name, arrays, **changes) for name in ("whole", "parts"))
    train(whole)
    newest = saved(whole.run_dir / "checkpoints")[-1]
    with safe_open(next(newest.glob("*.safetensors")), "pt") as tensors:
        matrix = "model.layers.0.mlp.gate_proj.weight"
        assert tensors.get_tensor(f"optimizer.state1.{matrix}").dtype == torch.uint8
    stop_after(2, parts)
    train(parts)
    assert_bit_equal(parts.run_dir, whole)
    curve = losses(whole.run_dir)
    assert curve[-1] < curve[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"adapter": True, "four_bit": True}}, "leave out lora.embeddings and lora.four"),
        ({"lora": {"adapter": True, "embeddings": True}}, "leave out lora.embeddings"),
        ({"lora": {"four_bit": True}, "strategy": "fsdp"}, "neither sharded nor compil"),
        ({"optimizer": {"name": "adamw_8bit"}, "compile": True}, "write strategy = 'ddp'"),
    ],
)
def test_impossible_combinations_are_refused(
    arrays: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        program(tmp_path, arrays, base={"hub": "a"}, **changes)


@pytest.mark.parametrize("changes", [{"lora": {"four_bit": True}}, {"optimizer": EIGHT_BIT}])
def test_a_missing_bitsandbytes_is_named(
    arrays: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tts_assets.sft.inputs.find_spec", lambda name: None)
    recipe = program(tmp_path, arrays, base={"hub": "a"}, **changes).recipe
    with pytest.raises(MachineError, match=r"pip install 'tts-assets\[qlora\]'"):
        check_machine(recipe, 1)


def test_only_the_targets_get_adapters(arrays: Path, base: Path, tmp_path: Path) -> None:
    def trainer(*targets: str) -> SftTrainer:
        config = {"base": {"hub": str(base)}, "lora": {"rank": 4, "targets": targets}}
        with Run(tmp_path) as run:
            return build_trainer(run, program(tmp_path, arrays, **config))

    parameters = trainer("q_proj", "v_proj").lm.model.named_parameters()
    adapted = {name.split(".")[-4] for name, p in parameters if p.requires_grad}
    assert adapted == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match=r"\['lm_head', 'query'\] are no matrices.*'q_proj'"):
        trainer("query", "lm_head")


def test_a_base_without_speech_tokens_needs_trained_embeddings(
    arrays: Path, text_base: Path, tmp_path: Path
) -> None:
    plain = program(tmp_path / "run", arrays, base={"hub": str(text_base)}, lora=LORA)
    with (
        pytest.raises(ConfigError, match=r"has no speech vocabulary.*lora.embeddings = true"),
        Run(plain.run_dir) as run,
    ):
        build_trainer(run, plain)
    config = program(
        tmp_path / "run",
        arrays,
        base={"hub": str(text_base)},
        **CHANGES | {"lora": LORA | {"embeddings": True}},
    )
    with Run(config.run_dir) as run:
        start = build_trainer(run, config).lm.model.get_input_embeddings().weight.detach().clone()
    train(config)
    newest = saved(config.run_dir / "checkpoints")[-1]
    with safe_open(next(newest.glob("*.safetensors")), "pt") as tensors:
        whole = {name for name in tensors.keys() if "lora" not in name}  # noqa: SIM118
    kinds = ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")
    assert whole == {f"{kind}.model.embed_tokens.weight" for kind in kinds}
    lm = SpeechLM.load(config.run_dir / "result", CODEBOOK)
    speech = torch.from_numpy(lm.vocabulary.code_to_id)
    moved = (lm.model.get_input_embeddings().weight - start)[speech].abs().amax(dim=1)
    assert float(moved.detach().min()) > 0
