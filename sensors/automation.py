"""What follows ``raw_corpus`` by itself: every data asset, by ``conditions.py``."""

from dagster import AssetSelection, AutomationConditionSensorDefinition, DefaultSensorStatus


def build_data_sensor() -> AutomationConditionSensorDefinition:
    """On by default: it starts nothing of itself, but finishes what somebody, or the sensor
    ``changed_corpora``, began with a corpus. On a fresh checkout it has nothing to do."""
    return AutomationConditionSensorDefinition(
        "data_automation",
        target=AssetSelection.groups("corpora", "codec", "arrays"),
        default_status=DefaultSensorStatus.RUNNING,
        description="Materializes data assets whose inputs have other content than before.",
    )
