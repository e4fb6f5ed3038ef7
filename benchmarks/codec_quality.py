r"""The quality of a codec on held-out speech: the codec report as a Markdown table.

    python benchmarks/codec_quality.py --samples \
        storage/filtered_samples/asterisk_en/current/kept.jsonl

resynthesizes the validation utterances (see ``tts_assets/core/accounting.py``). No codec of this
project was trained on them. ``--out`` keeps the page and the notebook.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from tts_assets.codec.config import CodecReportConfig
from tts_assets.codec_report.config import CodecReportProgram, CodecVersion
from tts_assets.codec_report.evaluate import FIGURES_FILE, METRICS
from tts_assets.codec_report.evaluate import main as evaluate


def wer(system: dict[str, Any]) -> str:
    interval = system["wer_interval"]
    return f"{system['wer']:.1%} ({interval['low']:.1%} to {interval['high']:.1%})"


def table(systems: list[dict[str, Any]]) -> str:
    """All metrics, with a column per system."""
    lines = [
        f"{len(systems[0]['clips'])} held-out clips.",
        "",
        "| | " + " | ".join(system["name"] for system in systems) + " |",
        "|---" * (len(systems) + 1) + "|",
        "| WER, 95 % interval | " + " | ".join(map(wer, systems)) + " |",
    ]
    for name, (heading, digits, _) in METRICS.items():
        values = [system[name] for system in systems]
        if any(value is not None for value in values):
            shown = ("–" if v is None else f"{v:.{digits}f}" for v in values)
            lines.append(f"| {heading} | " + " | ".join(shown) + " |")
    for system in systems:
        if codes := system["codes"]:
            speed = system["speed"]
            lines.append(
                f"\n{system['name']}: {codes['bit_rate']:.0f} bit/s; entropy "
                f"{codes['entropy']:.2f} bits per code; {codes['codes_used']} of "
                f"{codes['codebook_size']} codes occur in these clips; real-time factor "
                f"{speed['encode']:.3f} encoding, {speed['decode']:.3f} decoding."
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    vendored = Path("examples/codecs/announcer-16khz")
    parser.add_argument("--codec", type=Path, nargs="+", default=[vendored])
    parser.add_argument("--samples", type=Path, required=True, help="a kept.jsonl")
    parser.add_argument("--limit", type=int, default=40, help="clips at most")
    parser.add_argument("--whisper", default="", help="as in [evaluation]; empty: tiny.en")
    parser.add_argument("--out", type=Path, help="a folder that keeps the report")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        program = CodecReportProgram(
            run_dir=folder,
            report=CodecReportConfig(
                corpora=("speech",), clips=arguments.limit, whisper=arguments.whisper
            ),
            versions=tuple(CodecVersion(name=c.name, codec=c) for c in arguments.codec),
            samples={"speech": arguments.samples},
        )
        (folder / "run.json").write_text(program.to_json())
        evaluate([str(folder / "run.json")])
        print(table(json.loads((folder / "result" / FIGURES_FILE).read_text())))


if __name__ == "__main__":
    main()
