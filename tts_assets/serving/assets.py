"""Dagster assets of serving models: ``serving/<recipe>`` for SFT, RLHF and DPO checkpoints."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from dagster import AssetChecksDefinition, AssetIn, AssetKey, AssetsDefinition

from resources.launcher import Program
from tts_assets.core import artifacts
from tts_assets.core.artifacts import ArtifactStore, ServingFacts, ServingModel
from tts_assets.core.compute import Shape
from tts_assets.core.metadata import CheckResult
from tts_assets.corpora.config import TextConfig, VoiceConsent
from tts_assets.orchestration.checks import artifact_check
from tts_assets.orchestration.dependencies import code_arrays_of
from tts_assets.orchestration.program_asset import Machines, Plan, Request, artifact_asset
from tts_assets.provenance import check_use, corpora_behind
from tts_assets.serving.config import ServingConfig, describe

CODE_VERSION = "5"
Definitions = list[AssetsDefinition | AssetChecksDefinition]
Consents = Callable[[str, Collection[str]], Mapping[str, VoiceConsent | None]]


def build_assets(
    config: ServingConfig,
    stages: Mapping[str, Mapping[str, Sequence[str]]],
    shape: Shape,
    text: TextConfig,
    consents: Consents,
    decoder: bool = False,
) -> Definitions:
    """Serving models of all recipes, with their checks.

    ``stages`` have, by recipe of each stage, the corpora whose validation clips become voices.
    ``shape`` is that of the comparison program. ``text`` is the normalization of the corpora's
    texts. ``consents(recipe, used)`` returns the consents of all corpora of a recipe, and of those
    that its model was made from. ``decoder``: the asset ``codec_decoder`` exists.
    """
    engines = ("transformers", "vllm") if config.check_vllm else ("transformers",)

    def serving_model(name: str, stage: str, corpora: Sequence[str]) -> AssetsDefinition:
        def plan(
            request: Request,
            checkpoint: artifacts.Checkpoint,
            codec: artifacts.CodecCheckpoint,
            arrays: Mapping[str, artifacts.CodeArrays],
            decoder: artifacts.CodecDecoder | None = None,
        ) -> Plan[ServingModel]:
            found = consents(name, corpora_behind(request.store, checkpoint, codec, decoder))
            valid = check_use(found, f"serving/{name} is not published", request.store)

            def make(work: Path) -> ServingFacts:
                from tts_assets.serving.verify import Sources, convert

                sources = Sources(checkpoint, codec, arrays, decoder)
                # The card refers to the codec by a relative path: only the depth matters here.
                final = request.store.folder(f"serving/{name}") / "fingerprint"
                result = work / "result"
                facts = convert(sources, config, result, final, text, valid)
                program = config.verification(
                    work / "verify", checkpoint.path, result, facts.codebook_size
                )
                machines = request.shape(shape).one_process()
                found = request.launch(Program("tts_assets.serving.verify", program, machines))
                return ServingFacts.parse(facts.model_dump() | {"agreements": found}, str(work))

            known = {"serving": config, "text": text, "consents": valid}
            return Plan(known, make, describe=describe)

        return artifact_asset(
            ["serving", name],
            plan,
            options=Machines,
            ins={
                "checkpoint": AssetIn(key=AssetKey([stage, name])),
                "codec": "codec",
                "arrays": code_arrays_of(corpora),
                **({"decoder": "codec_decoder"} if decoder else {}),
            },
            code_version=CODE_VERSION,
            group_name="serving",
            kinds={"serving", "huggingface"},
            description=f"Serving model of {stage}/{name}: weights, codec, voices and model card.",
        )

    definitions: Definitions = []
    for stage, recipes in stages.items():
        for name, corpora in recipes.items():
            model = serving_model(name, stage, corpora)
            definitions += [model, *(agreement_check(model, engine) for engine in engines)]
    return definitions


def agreement_check(model: AssetsDefinition, engine: str) -> AssetChecksDefinition:
    """Blocking check: ``engine`` agrees with the checkpoint, and the files are unchanged."""

    def agrees(_: ArtifactStore, made: ServingModel) -> CheckResult:
        made.verify()
        agreement = made.facts.agreements[engine]
        metadata = {
            "tokens_compared": agreement.tokens,
            "tokens_different": agreement.different,
            "largest_logprob_difference": agreement.largest_difference,
            "prompts_equal": agreement.prompts_equal,
        }
        return CheckResult(agreement.holds, metadata)

    about = f"Tokens and log-probabilities in {engine} equal those of the checkpoint."
    return artifact_check(model, f"{engine}_agrees", about, agrees)
