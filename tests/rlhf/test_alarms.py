"""Each kind of collapse raises its own alarm and no other."""

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
# A healthy run: the WER falls, all other metrics stay within their noise.
HEALTHY = {
    "wer": (0.5, 0.2),
    "entropy": (3.0, 2.0),
    "kl": (0.0, 0.05),
    "frac_reward_zero_std": (0.1, 0.6),
    "repetition": (0.02, 0.03),
    "rewards/dnsmos/mean": (0.50, 0.52),
    "rewards/similarity/mean": (0.90, 0.89),
    "characters_per_second": (12.0, 13.0),
    "seconds": (3.0, 2.7),
}


def series(**changes: tuple[float, float]) -> list[dict[str, float]]:
    """Returns 20 records in which each metric changes linearly, with noise."""
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


def test_a_healthy_run_raises_no_alarm() -> None:
    assert first_alarms(series(), AlarmConfig()) == {}


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        ({"frac_reward_zero_std": (1.0, 1.0)}, "equal_rewards"),
        ({"entropy": (3.0, 0.3)}, "entropy"),
        ({"repetition": (0.02, 0.8)}, "repetition"),
        ({"rewards__dnsmos__mean": (0.5, 0.3)}, "hacking_dnsmos"),
        ({"rewards__similarity__mean": (0.9, 0.7)}, "hacking_similarity"),
        ({"characters_per_second": (12.0, 24.0)}, "hacking_rate"),
        ({"characters_per_second": (12.0, 5.0)}, "hacking_rate"),
        ({"seconds": (3.0, 0.6)}, "length"),
        ({"seconds": (3.0, 9.0)}, "length"),
        ({"kl": (0.0, 2.0)}, "kl"),
        ({"chosen_change": (0.0, -0.3)}, "chosen"),
    ],
)
def test_each_collapse_raises_its_alarm(change: dict[str, tuple[float, float]], alarm: str) -> None:
    assert names(series(**change)) == [alarm]


def test_worse_sound_with_a_higher_wer_is_not_reward_hacking() -> None:
    assert not names(series(wer=(0.3, 0.5), rewards__dnsmos__mean=(0.5, 0.3)))


def test_missing_metrics_raise_no_alarm() -> None:
    unmeasured = [{"step": one["step"], "wer": one["wer"]} for one in series()]
    assert not names(unmeasured)


def test_no_alarm_before_there_are_two_windows() -> None:
    falling = series(entropy=(3.0, 0.01))
    short = falling[:4] + falling[-5:]
    assert not names(short)
    assert names(short, AlarmConfig(window=2)) == ["entropy"]


def test_equal_rewards_are_reported_after_one_window() -> None:
    """Such a run has no gradient: nothing else changes."""
    records = [{"step": step + 1.0, "frac_reward_zero_std": 1.0} for step in range(5)]
    assert names(records[:4]) == []
    assert names(records) == ["equal_rewards"]


def test_zero_disables_an_alarm() -> None:
    assert not names(series(kl=(0.0, 2.0)), AlarmConfig(kl=0))


def test_each_alarm_is_logged_once_and_always_a_metric() -> None:
    logged: list[str] = []
    records = series(kl=(0.0, 2.0))
    monitor = CollapseMonitor(AlarmConfig(), [], logged.append)
    raised = [monitor.update(int(one["step"]), one) for one in records]
    first = first_alarms(records, AlarmConfig())["kl"][0]
    assert [step for step, one in enumerate(raised, 1) if one] == list(range(first, STEPS + 1))
    assert raised[-1] == {"alarm/kl": 1.0}
    assert len(logged) == 1
    assert f"kl after update {first}" in logged[0]
    resumed = CollapseMonitor(
        AlarmConfig(), [one | raised[n] for n, one in enumerate(records)], logged.append
    )
    resumed.update(STEPS + 1, records[-1])
    assert len(logged) == 1


def test_repeated_codes_are_counted() -> None:
    random = np.random.default_rng(0).integers(0, 4096, 200)
    assert repeated_share(random) == 0
    assert repeated_share(np.tile(random[:10], 20)) > 0.9
    assert repeated_share(random[:3]) == 0
