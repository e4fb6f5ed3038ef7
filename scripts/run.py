"""``python -m scripts.run``: the command ``tts-assets run`` of this checkout."""

import sys

from tts_assets.cli.__main__ import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
