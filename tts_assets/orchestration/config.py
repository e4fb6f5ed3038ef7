"""Configuration of operations: owners, schedules, the GPU budget, and alerts."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tts_assets.core.config import Config

# Secrets are read from the environment only; tts_assets.doctor reports missing ones.
WEBHOOK_VARIABLE = "TTS_ALERT_WEBHOOK"
SLACK_VARIABLE = "SLACK_BOT_TOKEN"
SMTP_VARIABLE = "TTS_SMTP_PASSWORD"


def _owner(value: str) -> str:
    if not re.fullmatch(r"team:[\w.-]+|[^@\s]+@[^@\s]+\.[^@\s]+", value):
        raise ValueError(f"{value!r} is no valid owner; write an address, or a team: 'team:speech'")
    return value


Owner = Annotated[str, AfterValidator(_owner)]


class Schedules(Config):
    """``[schedules]``: cron expressions. Schedules are off until switched on in the UI.

    The freshness of a report is a warning after ``report_days``, and a failure after twice that.
    """

    timezone: str = Field("UTC", description="time zone of the cron expressions: 'Europe/Berlin'")
    refresh: str = Field("0 1 * * *", description="nightly_refresh: all corpora")
    retrain: str = Field("0 2 * * 6", description="weekly_retrain: all SFT recipes")
    evaluate: str = Field("0 2 * * 0", description="weekly_evaluate: all reports")
    align: str = Field("0 2 1 * *", description="monthly_align: all RLHF recipes")
    prune: str = Field("0 4 * * 0", description="weekly_prune: deletes old versions")
    report_days: float = Field(10.0, ge=1, description="a week, plus three days to react")


class Budget(Config):
    """``[budget]``: GPU-hours of launched programs per week. A week begins on Monday, 0:00 UTC.

    Finished and running programs count. When the hours are used up, no program is launched on GPUs;
    running programs are not ended.
    """

    gpu_hours_a_week: float | None = Field(None, ge=0, description="unset: no limit")


class Slack(Config):
    """``[alerts.slack]``: posts failed runs to a channel, with the token in ``SLACK_BOT_TOKEN``."""

    channel: str


class Email(Config):
    """``[alerts.email]``: mails failed runs. The password is in ``TTS_SMTP_PASSWORD``."""

    sender: str
    to: tuple[str, ...] = Field(min_length=1)
    host: str
    port: int | None = Field(None, gt=0, description="unset: the default of the kind")
    kind: Literal["SSL", "STARTTLS"] = "SSL"
    user: str | None = Field(None, description="unset: the sender")


class Alerts(Config):
    """``[alerts]``: recipients of alerts about failed and stuck runs. The sensors must be on.

    The address of a webhook is a secret, and is read from ``TTS_ALERT_WEBHOOK``. It gets JSON by
    POST.
    """

    ui: str = Field("http://127.0.0.1:3000", description="address of the UI, for links to runs")
    stuck_minutes: float = Field(
        60.0, gt=0, description="time without an event until a run is reported"
    )
    end_stuck_minutes: float | None = Field(  # code that waits logs an event every five minutes
        None, ge=10, description="time without an event until a run is ended; unset: never"
    )
    slack: Slack | None = None
    email: Email | None = None

    @model_validator(mode="after")
    def _check_minutes(self) -> Self:
        if self.end_stuck_minutes is not None and self.end_stuck_minutes < self.stuck_minutes:
            raise ValueError(
                f"a run would end after {self.end_stuck_minutes:g} minutes, before it is reported "
                f"after {self.stuck_minutes:g}; write a smaller stuck_minutes"
            )
        return self

    def variables(self) -> tuple[str, ...]:
        """The environment variables with the secrets of the configured channels."""
        return (
            *((SLACK_VARIABLE,) if self.slack else ()),
            *((SMTP_VARIABLE,) if self.email else ()),
        )
