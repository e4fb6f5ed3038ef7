"""Measures codecs on held-out speech: ``python -m tts_assets.codec_report.evaluate run.json``.

Each codec's figures are kept as soon as they are there; a restart measures the others.
"""

from __future__ import annotations

from typing import Any

from tts_assets.artifacts import written_aside
from tts_assets.codec.model import Codec
from tts_assets.codec_report.config import CodecReportProgram, CodecVersion
from tts_assets.codec_report.measure import ORIGINAL, ClipFigures, Measurer, SystemFigures
from tts_assets.codec_report.report import write_report
from tts_assets.config import ConfigError
from tts_assets.program import Run, load_config


class Evaluation:
    """The systems of a report, one after the other: the originals, then every codec."""

    def __init__(self, run: Run, program: CodecReportProgram) -> None:
        self.run, self.program = run, program
        names = [version.name for version in program.versions]
        if not names or len(set(names)) != len(names) or ORIGINAL in names:
            raise ConfigError(f"versions need names of their own, other than {ORIGINAL!r}: {names}")
        self.measurer = Measurer(program, run.result_dir)

    def systems(self) -> list[SystemFigures]:
        self.run.note(f"{len(self.measurer.samples)} clips, {self.measurer.seconds:.0f} s")
        return [self._kept(None), *(self._kept(version) for version in self.program.versions)]

    def _kept(self, version: CodecVersion | None) -> SystemFigures:
        name = ORIGINAL if version is None else version.name
        path = self.run.checkpoint_dir / f"{name.replace(' ', '-')}.json"
        if path.is_file():
            return SystemFigures.from_json(path)
        found = self._measured(name, version)
        with written_aside(path) as aside:
            aside.write_text(found.to_json())
        return found

    def _measured(self, name: str, version: CodecVersion | None) -> SystemFigures:
        codes = speed = None
        if version is None:
            clips = self.measurer.originals()
        else:
            codec = Codec.load(version.codec)
            if version.decoder is not None:
                codec.use_decoder(version.decoder)
            codes, speed, clips = self.measurer.through(name, codec)
        rows: list[ClipFigures] = []
        for clip in self.run.progress(clips, name, total=len(self.measurer.samples)):
            rows.append(clip)
            if self.run.stop_requested:
                self.run.stopped()
        return SystemFigures(name=name, clips=tuple(rows), codes=codes, speed=speed)


def facts_of(systems: list[SystemFigures]) -> dict[str, Any]:
    """Of the codec that the report is of."""
    original, codec = systems[0], systems[1]
    assert codec.codes is not None and codec.speed is not None
    means = ("stoi", "pesq", "mel", "cents", "voicing", "p808", "similarity")
    return {
        "clips": len(codec.clips),
        "versions": len(systems) - 1,
        "wer": codec.wer,
        "wer_original": original.wer,
        "p808_original": original.mean("p808"),
        **{name: codec.mean(name) for name in means},
        "perplexity": codec.codes.perplexity,
        "codes_used": codec.codes.codes_used,
        "bit_rate": codec.codes.bit_rate,
        "encode_real_time_factor": codec.speed.encode,
        "decode_real_time_factor": codec.speed.decode,
    }


def main(argv: list[str] | None = None) -> None:
    program = load_config(CodecReportProgram, argv)
    with Run(program.run_dir) as run:
        systems = Evaluation(run, program).systems()
        write_report(run.result_dir, systems, program)
        run.finish(facts_of(systems))


if __name__ == "__main__":
    main()
