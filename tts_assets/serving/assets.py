"""Serving models as Dagster sees them: ``serving/<recipe>`` for SFT and RLHF checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.core.artifacts import ArtifactError, Build, ServingFacts, ServingModel
from tts_assets.core.compute import Shape
from tts_assets.corpora.config import TextConfig, VoiceConsent, check_consents
from tts_assets.orchestration.launchpad import Machines
from tts_assets.orchestration.partitions import code_arrays_of
from tts_assets.serving.config import ServingConfig, VerifyProgram

CODE_VERSION = "4"
Consents = Callable[[str], Mapping[str, VoiceConsent | None]]
Definitions = list[AssetsDefinition | AssetChecksDefinition]


def build_assets(
    config: ServingConfig,
    sft: Mapping[str, Sequence[str]],
    rlhf: Mapping[str, Sequence[str]],
    shape: Shape,
    text: TextConfig,
    consents: Consents,
    decoder: bool = False,
) -> Definitions:
    """``sft`` and ``rlhf``: recipes, and the corpora from whose arrays voices are taken; ``shape``:
    of the program that compares; ``text``: how the corpora's texts were normalized; ``consents``:
    of all corpora that a recipe's voice is from, asked when it is published; ``decoder``: there is
    a ``codec_decoder``."""
    definitions: Definitions = []
    for stage, recipes in (("sft", sft), ("rlhf", rlhf)):
        for name, corpora in recipes.items():
            model = serving_asset(name, stage, corpora, config, shape, text, consents, decoder)
            definitions += [model, *checks(model, config)]
    return definitions


def serving_asset(
    name: str,
    stage: str,
    corpora: Sequence[str],
    serving: ServingConfig,
    shape: Shape,
    text: TextConfig,
    consents: Consents,
    decoder: bool,
) -> AssetsDefinition:
    """The asset ``serving/<name>`` of the checkpoint ``<stage>/<name>``. It speaks with the codec's
    own decoder, or with ``codec_decoder`` where that is configured."""

    @asset(
        key=["serving", name],
        group_name="serving",
        ins={
            "checkpoint": AssetIn(key=AssetKey([stage, name])),
            "codec": AssetIn(key="codec"),
            **({"decoder": AssetIn(key="codec_decoder")} if decoder else {}),
            "arrays": code_arrays_of(corpora),
        },
        code_version=CODE_VERSION,
        kinds={"huggingface"},
        description=f"The checkpoint {stage}/{name}, ready to speak: with codec, voices and card.",
    )
    def serving_model(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        **inputs: Any,
    ) -> Output[ServingModel]:
        agreed = check_consents(consents(name), f"serving/{name} is not published", date.today())
        what = {"serving": serving, "text": text, "consents": agreed}
        build = Build(f"serving/{name}", inputs, what, CODE_VERSION)
        final = store.store.folder(build.asset) / build.fingerprint

        def run(work: Path) -> ServingFacts:
            from tts_assets.serving.convert import Sources, convert

            sources = Sources(**inputs)
            facts = convert(sources, serving, work / "result", final, text, agreed)
            program = VerifyProgram(
                run_dir=work / "verify",
                checkpoint=sources.checkpoint.path,
                serving_model=work / "result",
                codebook_size=facts.codebook_size,
                texts=serving.check_texts,
                tokens=serving.check_tokens,
                vllm=serving.check_vllm,
            )
            machines = config.of(shape).one_process()
            found = launcher.run(context, Program("tts_assets.serving.verify", program, machines))
            return ServingFacts.parse(facts.model_dump() | {"agreements": found.facts}, str(work))

        return store.materialize(context, ServingModel, build, run, describe=describe)

    return serving_model


def checks(model: AssetsDefinition, config: ServingConfig) -> list[AssetChecksDefinition]:
    """Blocking: the folder gives the trainer's tokens in transformers (and vLLM, if wanted)."""
    engines = ("transformers", "vllm") if config.check_vllm else ("transformers",)
    return [agreement_check(model, engine) for engine in engines]


def agreement_check(model: AssetsDefinition, engine: str) -> AssetChecksDefinition:
    """The folder agreed with its checkpoint when it was made, and its bytes are still those."""

    @asset_check(
        asset=model,
        name=f"{engine}_agrees",
        blocking=True,
        description=f"Tokens and log-probs in {engine} as the trainer's.",
    )
    def check(serving_model: ServingModel) -> AssetCheckResult:
        agreement = serving_model.facts.agreements[engine]
        try:
            serving_model.verify()
        except ArtifactError as error:
            return AssetCheckResult(passed=False, description=str(error))
        return AssetCheckResult(
            passed=agreement.holds,
            metadata={
                "tokens_compared": agreement.tokens,
                "tokens_different": agreement.different,
                "largest_logprob_difference": agreement.largest_difference,
                "prompts_equal": agreement.prompts_equal,
            },
        )

    return check


def describe(model: ServingModel) -> dict[str, Any]:
    """The model card, and how to hear the model."""
    command = f'python -m tts_assets.serving.synthesize --model {model.path} --text "…" --out a.wav'
    card = (model.path / "README.md").read_text().split("---\n", 2)[2]
    return {"model_card": MetadataValue.md(card), "speak": command}
