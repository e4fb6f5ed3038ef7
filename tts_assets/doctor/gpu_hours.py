"""GPU-hours of this week by asset: ``python -m tts_assets.doctor.gpu_hours``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from tts_assets.core.config import ConfigError
from tts_assets.core.ledger import FOLDER, Ledger
from tts_assets.settings import load_settings


def main() -> int:
    """Print one line per asset, the largest first, and the sum. Exit status 1: bad settings."""
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    limit = settings.budget.gpu_hours_a_week
    used = Ledger(settings.storage / FOLDER).used(datetime.now(UTC))
    for asset, hours in sorted(used.items(), key=lambda item: -item[1]):
        print(f"{hours:10.2f}  {asset}")
    of = "" if limit is None else f" of {limit:g}"
    print(f"{sum(used.values()):10.2f}{of} GPU-hours since Monday, 0:00 UTC")
    return 0


if __name__ == "__main__":
    sys.exit(main())
