"""Who follows inputs by itself: data assets, by ``conditions.py``, and, once switched on, training.

A data asset names its condition where it is defined; what costs GPUs gets it here, all the same.
"""

from dagster import (
    AssetKey,
    AssetSelection,
    AssetSpec,
    AutomationConditionSensorDefinition,
    DefaultSensorStatus,
)

from tts_assets.orchestration.conditions import follow_training, make_once

DATA_GROUPS = ("corpora", "codec", "arrays")
TRAINING_GROUPS = (
    *("texts", "sft", "serving", "rlhf", "families", "evaluation", "promotion"),
    *("speakers", "codec_report"),
)
# With another encoder no similarity can be compared with an earlier one: a person decides that.
BY_HAND = (AssetKey("speaker_encoder"),)


def build_data_sensor() -> AutomationConditionSensorDefinition:
    """On by default: it starts nothing of itself, but finishes what somebody, or the sensor
    ``changed_corpora``, began with a corpus. On a fresh checkout it has nothing to do."""
    return AutomationConditionSensorDefinition(
        "data_automation",
        target=AssetSelection.groups(*DATA_GROUPS),
        default_status=DefaultSensorStatus.RUNNING,
        description="Materializes data assets whose inputs have other content than before.",
    )


def build_training_sensor() -> AutomationConditionSensorDefinition:
    """Off by default: GPUs cost money. Switched on, it trains what depends on a corpus that
    changed, and what follows from that."""
    return AutomationConditionSensorDefinition(
        "gpu_automation",
        target=AssetSelection.groups(*TRAINING_GROUPS),
        default_status=DefaultSensorStatus.STOPPED,
        description="Trains, converts, reports and promotes again where inputs have other content.",
    )


def with_training_condition(spec: AssetSpec) -> AssetSpec:
    """``spec`` with the condition by which ``gpu_automation`` asks for it: what has no inputs is
    made once, the rest follows them."""
    if spec.group_name not in TRAINING_GROUPS or spec.automation_condition is not None:
        return spec
    if not list(spec.deps):
        return spec.replace_attributes(automation_condition=make_once())
    if spec.key in BY_HAND:
        return spec
    return spec.replace_attributes(automation_condition=follow_training())
