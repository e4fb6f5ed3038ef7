"""Program: train one model with coqui's trainer::

    python -m tts_assets.external_models.coqui.train job.json

The settings, samples and weights that all models share are in ``training.py``.
"""

from __future__ import annotations

from tts_assets.external_models.coqui.job import Events, job_file, read_train_job


def main() -> None:
    """Train the model of the job with the module of its family."""
    job = read_train_job(job_file("train"))
    if job.family == "vits":
        from tts_assets.external_models.coqui.vits import train_vits

        train_vits(job)
    elif job.family == "xtts":
        from tts_assets.external_models.coqui.xtts import train_xtts

        train_xtts(job)
    elif job.family == "tortoise":
        from tts_assets.external_models.coqui.tortoise import convert

        convert(job)
    else:
        Events(job.events).refuse(f"no family {job.family!r}")


if __name__ == "__main__":
    main()
