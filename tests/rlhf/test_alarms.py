"""Each alarm is raised by what it is for, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from tts_assets.rlhf.alarms import (
    AlarmConfig,
    CollapseMonitor,
    alarms,
    first_alarms,
    repeated_share,
)

STEPS = 20
# A run that goes well: words get clearer, all else stays within its noise.
HEALTHY = {
    "wer": (0.5, 0.2),
    "entropy": (3.0, 2.0),
    "kl": (0.0, 0.05),
    "repetition": (0.02, 0.03),
    "rewards/dnsmos/mean": (0.50, 0.52),
    "rewards/similarity/mean": (0.90, 0.89),
    "characters_per_second": (12.0, 13.0),
    "seconds": (3.0, 2.7),
}


def series(**changes: tuple[float, float]) -> list[dict[str, float]]:
    """20 steps in which each metric goes in a straight line from one value to another."""
    named = HEALTHY | {key.replace("__", "/"): ends for key, ends in changes.items()}
    lines = {key: np.linspace(*ends, STEPS) for key, ends in named.items()}
    noise = np.random.default_rng(1).normal(1, 0.02, (STEPS, len(lines)))
    return [
        {"step": step + 1.0}
        | {key: float(line[step] * noise[step, n]) for n, (key, line) in enumerate(lines.items())}
        for step in range(STEPS)
    ]


def names(records: list[dict[str, float]], config: AlarmConfig | None = None) -> list[str]:
    return [alarm.name for alarm in alarms(records, config or AlarmConfig())]


def test_a_healthy_run_is_quiet_all_the_way() -> None:
    assert first_alarms(series(), AlarmConfig()) == {}


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        ({"entropy": (3.0, 0.3)}, "entropy"),
        ({"repetition": (0.02, 0.8)}, "repetition"),
        ({"rewards__dnsmos__mean": (0.5, 0.3)}, "hacking_dnsmos"),
        ({"rewards__similarity__mean": (0.9, 0.7)}, "hacking_similarity"),
        ({"characters_per_second": (12.0, 24.0)}, "hacking_rate"),
        ({"characters_per_second": (12.0, 5.0)}, "hacking_rate"),
        ({"seconds": (3.0, 0.6)}, "length"),
        ({"seconds": (3.0, 9.0)}, "length"),
        ({"kl": (0.0, 2.0)}, "kl"),
    ],
)
def test_each_collapse_raises_its_alarm(change: dict[str, tuple[float, float]], alarm: str) -> None:
    assert names(series(**change)) == [alarm]


def test_worse_sound_without_better_words_is_no_hacking() -> None:
    assert not names(series(wer=(0.3, 0.5), rewards__dnsmos__mean=(0.5, 0.3)))


def test_what_is_not_measured_raises_nothing() -> None:
    unmeasured = [{"step": one["step"], "wer": one["wer"]} for one in series()]
    assert not names(unmeasured)


def test_a_run_is_not_judged_before_there_are_two_windows() -> None:
    falling = series(entropy=(3.0, 0.01))
    short = falling[:4] + falling[-5:]
    assert not names(short)
    assert names(short, AlarmConfig(window=2)) == ["entropy"]


def test_an_alarm_can_be_turned_off() -> None:
    assert not names(series(kl=(0.0, 2.0)), AlarmConfig(kl=0))


def test_the_first_of_each_alarm_is_told_once_and_all_are_metrics() -> None:
    told: list[str] = []
    records = series(kl=(0.0, 2.0))
    bell = CollapseMonitor(AlarmConfig(), [], told.append)
    raised = [bell.see(int(one["step"]), one) for one in records]
    first = first_alarms(records, AlarmConfig())["kl"][0]
    assert [step for step, one in enumerate(raised, 1) if one] == list(range(first, STEPS + 1))
    assert raised[-1] == {"alarm/kl": 1.0}
    assert len(told) == 1
    assert f"kl after update {first}" in told[0]
    again = CollapseMonitor(
        AlarmConfig(), [one | raised[n] for n, one in enumerate(records)], told.append
    )
    again.see(STEPS + 1, records[-1])
    assert len(told) == 1


def test_repeated_codes_are_counted() -> None:
    random = np.random.default_rng(0).integers(0, 4096, 200)
    assert repeated_share(random) == 0
    assert repeated_share(np.tile(random[:10], 20)) > 0.9
    assert repeated_share(random[:3]) == 0
