"""Checks of the inputs and the machine of a training, and its program from its inputs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from tts_assets.core.artifacts import (
    ArtifactError,
    ArtifactStore,
    Checkpoint,
    CodeArrays,
    CodecCheckpoint,
    Texts,
    TokenArrays,
    verify,
)
from tts_assets.core.compute import visible_devices
from tts_assets.core.config import ConfigError
from tts_assets.sft.config import DEEPSPEED, SftProgram, SftRecipe
from tts_assets.speechlm.config import TOKENS_VERSION


def sft_program(
    name: str,
    recipe: SftRecipe,
    run_dir: Path,
    arrays: Mapping[str, CodeArrays],
    codec: CodecCheckpoint,
    base: Checkpoint | None,
    tokens: Mapping[str, TokenArrays],
    texts: Mapping[str, Texts],
) -> SftProgram:
    """The configuration of the program. Raises :class:`ArtifactError` if inputs do not fit."""
    for corpus, handle in arrays.items():
        if handle.facts.codec != codec.content:
            raise ArtifactError(
                f"code_arrays[{corpus}] were made with codec {handle.facts.codec[:12]}, but the "
                f"codec is now {codec.content[:12]}: materialize code_arrays[{corpus}] again"
            )
    if base is not None and base.facts.codec != codec.content:
        raise ArtifactError(
            f"{base.asset} was trained on codec {base.facts.codec[:12]}, but the codec is now "
            f"{codec.content[:12]}: materialize {base.asset} again"
        )
    if recipe.pretraining is not None:
        check_streams(tokens, arrays)
    return SftProgram(
        run_dir=run_dir,
        name=name,
        recipe=recipe,
        arrays={corpus: handle.path for corpus, handle in arrays.items()},
        tokens={corpus: handle.path for corpus, handle in tokens.items()},
        texts={text: handle.path for text, handle in texts.items()},
        base_checkpoint=base.path if base is not None else None,
        codec=codec.content,
        codec_folder=codec.path,
        sample_rate=codec.facts.sample_rate,
        token_rate=codec.facts.token_rate,
        codebook_size=codec.facts.codebook_size,
        frame=codec.facts.frame,
    )


def find_tokens(store: ArtifactStore, arrays: Mapping[str, CodeArrays]) -> dict[str, TokenArrays]:
    """The current ``token_arrays`` by corpus, where this code made them from these arrays."""
    found = {}
    for corpus, handle in arrays.items():
        link = store.folder("token_arrays", corpus) / "current"
        if link.exists():
            tokens = TokenArrays.open(link.resolve())
            if made_from(tokens, handle):
                verify(store, tokens)
                found[corpus] = tokens
    return found


def made_from(tokens: TokenArrays, arrays: CodeArrays) -> bool:
    """Whether this code made ``tokens`` from these arrays."""
    manifest = tokens.manifest
    made = manifest.inputs["code_arrays"].content, manifest.code_version
    return made == (arrays.content, TOKENS_VERSION)


def check_streams(tokens: Mapping[str, TokenArrays], arrays: Mapping[str, CodeArrays]) -> None:
    """Raise :class:`ArtifactError` unless ``tokens`` have the streams of these arrays."""
    from tts_assets.speechlm.tokens import CODES  # takes half a second to import

    for corpus, handle in tokens.items():
        if not made_from(handle, arrays[corpus]):
            raise ArtifactError(
                f"token_arrays[{corpus}] were made from other code_arrays than the current, or by "
                f"older code: materialize token_arrays[{corpus}] again"
            )
        if not any(name.endswith(f"{CODES}.npy") for name in handle.manifest.files):
            raise ArtifactError(
                f"token_arrays[{corpus}] have no streams for pretraining: "
                f"materialize token_arrays[{corpus}] again"
            )


def check_lora(recipe: SftRecipe) -> None:
    """Call :func:`tts_assets.sft.model.check_lora`, which takes seconds to import."""
    if recipe.lora is not None:
        from tts_assets.sft.model import check_lora

        check_lora(recipe)


class MachineError(ConfigError):
    """This machine cannot run the recipe. The message says what to change."""


def check_machine(recipe: SftRecipe, processes: int) -> None:
    """Raise :class:`MachineError` if this node cannot run ``processes`` ranks of the recipe."""
    gpus = len(visible_devices())
    if 0 < gpus < processes:
        raise MachineError(
            f"{processes} processes need a GPU each, and this machine shows {gpus}: set "
            f"compute.processes to at most {gpus}"
        )
    if recipe.strategy in DEEPSPEED and find_spec("deepspeed") is None:
        raise MachineError(
            f"strategy = {recipe.strategy!r} needs the package deepspeed, which is not installed: "
            "install it, or write strategy = 'fsdp', which shards as much"
        )
    four_bit = recipe.lora is not None and recipe.lora.four_bit
    if (four_bit or recipe.optimizer.name == "adamw_8bit") and find_spec("bitsandbytes") is None:
        raise MachineError(
            "lora.four_bit and adamw_8bit need bitsandbytes: pip install 'tts-assets[qlora]'"
        )
    if not recipe.compile:
        return
    if gpus and find_spec("triton") is None:
        raise MachineError("compile = true needs the package triton on GPUs; install it")
    compiler = os.environ.get("CXX", "g++")
    if not gpus and shutil.which(compiler) is None:
        raise MachineError(
            f"compile = true needs a C++ compiler, and {compiler} is not found: install one, or "
            "write compile = false"
        )
