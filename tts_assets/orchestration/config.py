"""What the project file says of running it: schedules, the budget, who is told of trouble."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tts_assets.core.config import Config

# Secrets are read from the environment alone; doctor says which are missing.
WEBHOOK_VARIABLE = "TTS_ALERT_WEBHOOK"
SLACK_VARIABLE = "SLACK_BOT_TOKEN"
SMTP_VARIABLE = "TTS_SMTP_PASSWORD"


def _owner(value: str) -> str:
    if not re.fullmatch(r"team:[\w.-]+|[^@\s]+@[^@\s]+\.[^@\s]+", value):
        raise ValueError(f"{value!r} owns nothing; write an address, or a team: 'team:speech'")
    return value


Owner = Annotated[str, AfterValidator(_owner)]


class Schedules(Config):
    """``[schedules]``: when what runs, as cron. Each is off until switched on in the UI.

    A report that is older than ``report_days`` shows as not fresh, and as failing at twice that.
    """

    timezone: str = Field("UTC", description="of the crons: 'Europe/Berlin'")
    refresh: str = Field("0 1 * * *", description="nightly_refresh: every corpus")
    retrain: str = Field("0 2 * * 6", description="weekly_retrain: every SFT recipe")
    evaluate: str = Field("0 2 * * 0", description="weekly_evaluate: all reports stay fresh")
    align: str = Field("0 2 1 * *", description="monthly_align: every RLHF recipe")
    report_days: float = Field(10.0, ge=1, description="a week, and three days to notice")


class Budget(Config):
    """``[budget]``: GPUs x hours of launched programs. A week begins on Monday, 0:00 UTC.

    Nothing is launched on GPUs when the week's are used up, by what has ended and what runs; what
    runs is not ended.
    """

    gpu_hours_a_week: float | None = Field(None, ge=0, description="unset: no limit")


class Slack(Config):
    """``[alerts.slack]``: failed runs go to a channel, by the token in ``SLACK_BOT_TOKEN``."""

    channel: str


class Email(Config):
    """``[alerts.email]``: failed runs go to addresses; the password is ``TTS_SMTP_PASSWORD``."""

    sender: str
    to: tuple[str, ...] = Field(min_length=1)
    host: str
    port: int | None = Field(None, gt=0, description="unset: that of the kind of connection")
    kind: Literal["SSL", "STARTTLS"] = "SSL"
    user: str | None = Field(None, description="unset: the sender")


class Alerts(Config):
    """``[alerts]``: who is told of failed and stuck runs, when the sensors are switched on.

    A webhook gets JSON by POST; its address is ``TTS_ALERT_WEBHOOK``, as addresses of this kind
    are secrets.
    """

    ui: str = Field("http://127.0.0.1:3000", description="for links to runs")
    stuck_minutes: float = Field(60.0, gt=0, description="without an event of a run")
    end_stuck_minutes: float | None = Field(  # what waits has an event every five minutes
        None, ge=10, description="without an event, and the run is ended; unset: never"
    )
    slack: Slack | None = None
    email: Email | None = None

    @model_validator(mode="after")
    def _told_before_it_ends(self) -> Self:
        if self.end_stuck_minutes is not None and self.end_stuck_minutes < self.stuck_minutes:
            raise ValueError(
                f"a run would end after {self.end_stuck_minutes:g} minutes, before anybody is told "
                f"of it after {self.stuck_minutes:g}; write a smaller stuck_minutes"
            )
        return self

    def variables(self) -> tuple[str, ...]:
        """The environment variables without which somebody named here is not told."""
        return (
            *((SLACK_VARIABLE,) if self.slack else ()),
            *((SMTP_VARIABLE,) if self.email else ()),
        )
