"""Train one model of coqui's: ``python -m tts_assets.external_models.coqui.train job.json``."""

from __future__ import annotations

from tts_assets.external_models.coqui.fit import main_of
from tts_assets.external_models.coqui.job import Events, read_train_job


def main() -> None:
    job = read_train_job(main_of("train"))
    if job.family == "vits":
        from tts_assets.external_models.coqui.vits import train_vits

        train_vits(job)
    elif job.family == "xtts":
        from tts_assets.external_models.coqui.xtts import train_xtts

        train_xtts(job)
    elif job.family == "tortoise":
        from tts_assets.external_models.coqui.tortoise import take_over

        take_over(job)
    else:
        Events(job.events).refuse(f"no family {job.family!r}")


if __name__ == "__main__":
    main()
