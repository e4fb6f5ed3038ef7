"""A speaker encoder trained on speech of Debian packages, from scratch and from Resemblyzer.

    OMP_NUM_THREADS=1 python benchmarks/speaker_encoder.py WORK

downloads the packages of ``PACKAGES`` with ``apt-get download`` (600 MB; nothing is installed) to
WORK/debs, sorts their recordings by speaker, and runs the programs of the pipeline: index, train,
report. ``--only scratch|finetune`` runs one of the two. The training is limited by the CPU time of
this process, which does not depend on other programs.

Test speakers have no language in common with training speakers of the same kind of package, because
a volunteer may have recorded for several packages. The task is still easier than VoxCeleb: speaker,
channel and mostly language coincide. The report therefore also has the error on trials within one
package.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tts_assets.core.accounting import ValidationSplit, is_validation
from tts_assets.core.artifacts import ArtifactStore, Build, RawCorpus
from tts_assets.core.program import Run
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.index import index_corpus
from tts_assets.speakers import evaluate, train
from tts_assets.speakers.config import (
    RESEMBLYZER,
    EncoderProgram,
    EncoderRecipe,
    ReportProgram,
    SpeakerSelection,
    TrialConfig,
)
from tts_assets.speakers.dataset import TrialLimits, read_speakers

PACKAGES = (
    *(f"asterisk-core-sounds-{language}-g722" for language in ("en", "es", "fr", "it", "ru")),
    "asterisk-prompt-it-menardi-wav",
    *("fillets-ng-data", "fillets-ng-data-cs", "fillets-ng-data-nl"),
    *("tuxpaint-stamps-default", "klettres-data", "ktuberling-data", "hedgewars-data"),
)
ASTERISK = {  # folder below sounds/ -> speaker; the English and the Spanish one are one person
    "en_US_f_Allison": "allison",
    "es_MX_f_Allison": "allison",
    "fr_CA_f_June": "june",
    "it_IT_m_Carlo": "carlo",
    "ru_RU_f_IvrvoiceRU": "ivrvoice",
    "it_IT_f_Menardi": "menardi",
}
NO_SPEECH = re.compile(r"silence|beep|tt-|confbridge-(join|leave)|scending|music|ring")
TUXPAINT = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")  # one volunteer each
LEADS = {"font_small": "small", "font_big": "big"}  # of fillets; the others are small roles
CORPORA = ("asterisk", "fillets", "tuxpaint", "klettres", "ktuberling", "hedgewars")
CLIPS = 120  # of a speaker at most
VOLUNTEERS = ("tuxpaint", "klettres", "ktuberling")
PROBED = 5  # steps that are timed to choose their number
TEST = ValidationSplit(fraction=0.4, salt="speakers")


def fetch(work: Path) -> Path:
    """Download and unpack the packages; returns their folder."""
    debs, unpacked = work / "debs", work / "packages"
    debs.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not (unpacked / package).is_dir():
            subprocess.run(["apt-get", "download", package], cwd=debs, check=True)
            deb = next(debs.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg", "-x", str(deb), str(unpacked / package)], check=True)
    return unpacked


def recordings(packages: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield corpus, speaker and file of each recording of speech."""
    for package in (p for p in PACKAGES if p.startswith("asterisk")):
        for path in sorted((packages / package / "usr/share/asterisk/sounds").rglob("*.*")):
            folder = next(p for p in path.parents if p.parent.name == "sounds").name
            if path.suffix in (".g722", ".wav") and not NO_SPEECH.search(str(path)):
                yield "asterisk", ASTERISK[folder], path
    for language in ("cs", "nl"):
        yield from fillets(packages, language)
    stamps = packages / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    for path in sorted(stamps.rglob("*_desc_*.ogg")):
        language = path.stem.rpartition("_desc_")[2]
        if language in TUXPAINT:
            yield "tuxpaint", language, path
    letters = packages / "klettres-data/usr/share/klettres"
    for path in sorted(letters.rglob("*.ogg")):
        yield "klettres", path.relative_to(letters).parts[0], path
    names = packages / "ktuberling-data/usr/share/ktuberling/sounds"
    for path in sorted(names.rglob("*.*")):
        if path.suffix in (".ogg", ".wav", ".opus", ".mp3"):
            yield "ktuberling", path.relative_to(names).parts[0].partition("@")[0], path
    voices = packages / "hedgewars-data/usr/share/games/hedgewars/Data/Sounds/voices"
    for path in sorted(voices.rglob("*.ogg")):
        yield "hedgewars", path.parent.name, path


def fillets(packages: Path, language: str) -> Iterator[tuple[str, str, Path]]:
    """The two main roles; the scripts of the game map files to roles."""
    scripts = packages / "fillets-ng-data/usr/share/games/fillets-ng/script"
    if not scripts.is_dir():
        scripts = next((packages / "fillets-ng-data").rglob("script"))
    sounds = next((packages / f"fillets-ng-data-{language}").rglob("sound"))
    for level in sorted(sounds.glob(f"*/{language}")):
        role_of: dict[str, str] = {}
        for script in sorted((scripts / level.parent.name).glob("*dialogs*.lua")):
            found = re.findall(r'dialogId\("([^"]+)",\s*"([^"]+)"', script.read_text("utf-8"))
            role_of |= dict(found)
        for path in sorted(level.glob("*.ogg")):
            lead = LEADS.get(role_of.get(path.stem, ""))
            if lead:
                yield "fillets", f"{language}_{lead}", path


def lay_out(packages: Path, work: Path) -> None:
    """Write ``WORK/corpora/<corpus>/<speaker>/<file>``, the layout of the reader ``speakers``.

    Each speaker has at most CLIPS files, evenly spaced in all of them.
    """
    root = work / "corpora"
    shutil.rmtree(root, ignore_errors=True)
    voices: dict[tuple[str, str], list[Path]] = {}
    for corpus, speaker, path in recordings(packages):
        voices.setdefault((corpus, speaker), []).append(path)
    for (corpus, speaker), paths in voices.items():
        folder = root / corpus / speaker
        folder.mkdir(parents=True)
        for number, path in enumerate(paths[:: -(-len(paths) // CLIPS)]):
            (folder / f"{number:03d}{path.suffix}").hardlink_to(path.resolve())


def indexes(work: Path) -> dict[str, Path]:
    """The index of each corpus, published as the asset ``raw_corpus`` does."""
    store = ArtifactStore(work / "storage")
    found = {}
    for corpus in CORPORA:
        root = (work / "corpora" / corpus).resolve()
        config = CorpusConfig(path=root, reader="speakers", language="und")
        build = Build("raw_corpus", {}, {"corpus": config}, "benchmark", partition=corpus)
        handle = store.find(build)
        if handle is None:
            folder = store.work_folder(build)
            (folder / "result").mkdir(exist_ok=True)
            facts = index_corpus(corpus, root, config, store, folder / "result")
            handle = store.publish(RawCorpus, build, folder / "result", facts)
        found[corpus] = handle.path
    return found


def test_speakers(work: Path) -> list[str]:
    """The test speakers, drawn by the hash of their language, game or name.

    The voices of hedgewars are for training only. Volunteers of one language may be one person, so
    the one with the most clips is the test speaker, and the folders of the others are deleted.
    """
    clips = {
        f"{folder.parent.name}/{folder.name}": len(list(folder.iterdir()))
        for folder in sorted((work / "corpora").glob("*/*"))
    }
    chosen: dict[str, str] = {}
    for name in sorted(clips, key=lambda name: (-clips[name], name)):
        corpus, _, speaker = name.partition("/")
        if corpus == "hedgewars":
            continue
        group = name
        if corpus in VOLUNTEERS:
            group = f"volunteers/{speaker[:2]}"
        elif corpus == "fillets":
            group = f"fillets/{speaker[:2]}"
        if not is_validation(group, TEST):
            continue
        if corpus in VOLUNTEERS and group in chosen:
            shutil.rmtree(work / "corpora" / name)
        else:
            chosen[name if corpus == "fillets" else group] = name
    return sorted(chosen.values())


def recipes() -> dict[str, EncoderRecipe]:
    """A recipe from random weights, with windows as long as its crops, and one from public weights.

    The second has a hundredth of the learning rate, and crops as long as the public windows.
    """
    batch = {"speakers": 16, "utterances": 4}
    scratch = {
        "architecture": {"hidden": 128},
        "audio": {"window_frames": 90},
        "crop_frames": (80, 100),
        "speeds": (0.87, 1.0, 1.15),
    }
    tuned = {
        "base": RESEMBLYZER,
        "crop_frames": (150, 160),
        "lr": 1e-5,
        "final_lr": 1e-6,
    }
    return {
        "scratch": EncoderRecipe.model_validate(batch | scratch),
        "finetune": EncoderRecipe.model_validate(batch | tuned),
    }


def in_minutes(program: EncoderProgram, minutes: float) -> EncoderProgram:
    """The program with the number of steps that fit into the CPU time, from a few timed steps."""
    with Run(program.run_dir) as running:
        trainer = train.encoder_trainer(running, program)
        trainer.train_step(0)
        started = time.process_time()
        for step in range(1, PROBED + 1):
            trainer.train_step(step)
        seconds = (time.process_time() - started) / PROBED
    steps = max(10, int(60 * minutes / seconds))
    every = max(1, steps // 10)
    changed = {"steps": steps, "eval_every": every, "save_every": every}
    recipe = program.recipe.model_copy(update=changed)
    return program.model_copy(update={"recipe": recipe})


def run(
    folder: Path,
    recipe: EncoderRecipe,
    selection: SpeakerSelection,
    corpora: dict[str, Path],
    minutes: float,
) -> dict[str, Any]:
    """Train and evaluate; the seconds include the validations and checkpoints of the training."""
    program = EncoderProgram(
        run_dir=folder / "train", recipe=recipe, selection=selection, corpora=corpora
    )
    program = in_minutes(program, minutes)
    with Run(program.run_dir) as running:
        trainer = train.encoder_trainer(running, program)
        started, used = time.perf_counter(), time.process_time()
        trainer.train()
        wall, cpu = time.perf_counter() - started, time.process_time() - used
        trainer.finish()
        facts = trainer.facts()
    reported = ReportProgram(
        run_dir=folder / "report",
        selection=selection,
        corpora=corpora,
        trials=TrialConfig(),
        encoder=str(folder / "train" / "result"),
    )
    with Run(reported.run_dir) as running:
        split = read_speakers(corpora, selection)
        encoders = evaluate.load_encoders(reported)
        limits = TrialLimits(utterances=40)
        report = evaluate.EncoderEvaluation(running, split, encoders, limits).evaluate()
    seconds = {"cpu_seconds": round(cpu), "wall_seconds": round(wall)}
    return {"facts": facts, "report": report, "training": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="a folder with 4 GB of free space")
    parser.add_argument("--only", choices=["scratch", "finetune"])
    parser.add_argument("--minutes", type=float, default=3.0, help="CPU, of training from scratch")
    parser.add_argument("--tuning", type=float, default=2.5, help="CPU minutes of fine-tuning")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    tested = work / "test_speakers.json"
    if not tested.exists():
        lay_out(fetch(work), work)
        tested.write_text(json.dumps(test_speakers(work)))
    selection = SpeakerSelection(
        corpora=CORPORA, test_speakers=json.loads(tested.read_text()), min_seconds=0.6
    )
    corpora = indexes(work)
    minutes = {"scratch": arguments.minutes, "finetune": arguments.tuning}
    for name, recipe in recipes().items():
        if arguments.only in (None, name):
            shutil.rmtree(work / "runs" / name, ignore_errors=True)
            found = run(work / "runs" / name, recipe, selection, corpora, minutes[name])
            print(f"\n## {name}\n\n{json.dumps(found, indent=1)}\n")
            print(evaluate.table(found["report"]), flush=True)


if __name__ == "__main__":
    main()
