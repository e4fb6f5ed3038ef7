"""Automation: assets that are materialized again when the content of their inputs changes.

Data assets have their condition in their definition. Assets that need GPUs get a common condition
here, which the sensor ``gpu_automation`` evaluates once it is switched on.
"""

from dagster import (
    AssetKey,
    AssetSelection,
    AssetSpec,
    AutomationConditionSensorDefinition,
    DefaultSensorStatus,
)

from tts_assets.orchestration.dependencies import follow_training, make_once

DATA_GROUPS = ("corpora", "codec", "arrays")
TRAINING_GROUPS = (
    *("texts", "sft", "serving", "rlhf", "preferences", "external_models", "suites", "comparisons"),
    *("promotion", "speakers", "codec_report"),
)
# First parts of keys: further suites of a recipe are in a group of their own.
TRAINING_KEYS = ("report", "spoken")
# Similarities of different encoders are not comparable, so a person starts this training.
BY_HAND = (AssetKey("speaker_encoder"),)


def build_data_sensor() -> AutomationConditionSensorDefinition:
    """The sensor of data assets, on by default.

    It only continues what a person or the sensor ``changed_corpora`` started: it materializes
    assets downstream of a changed one.
    """
    return AutomationConditionSensorDefinition(
        "data_automation",
        target=AssetSelection.groups(*DATA_GROUPS),
        default_status=DefaultSensorStatus.RUNNING,
        description="Materializes data assets when the content of their inputs changes.",
    )


def build_training_sensor() -> AutomationConditionSensorDefinition:
    """The sensor of assets that need GPUs, off by default because of their cost."""
    return AutomationConditionSensorDefinition(
        "gpu_automation",
        target=training_assets(),
        default_status=DefaultSensorStatus.STOPPED,
        description="Trains, converts, evaluates and promotes when the content of inputs changes.",
    )


def training_assets() -> AssetSelection:
    """The assets of ``gpu_automation``."""
    return AssetSelection.groups(*TRAINING_GROUPS) | AssetSelection.key_prefixes(*TRAINING_KEYS)


def with_training_condition(spec: AssetSpec) -> AssetSpec:
    """``spec`` with the condition that ``gpu_automation`` evaluates.

    An asset without inputs is materialized once, others when inputs change.
    """
    follows = spec.group_name in TRAINING_GROUPS or spec.key.path[0] in TRAINING_KEYS
    if not follows or spec.automation_condition is not None:
        return spec
    if not list(spec.deps):
        return spec.replace_attributes(automation_condition=make_once())
    if spec.key in BY_HAND:
        return spec
    return spec.replace_attributes(automation_condition=follow_training())
