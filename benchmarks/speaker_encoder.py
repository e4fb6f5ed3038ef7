"""A speaker encoder from real speech of Debian packages: from scratch, and from Resemblyzer's.

    OMP_NUM_THREADS=1 python benchmarks/speaker_encoder.py WORK

fetches the packages of ``PACKAGES`` with ``apt-get download`` (600 MB; nothing is installed) into
WORK/debs, lays their recordings out by speaker, and then runs what the pipeline runs: index, train,
report. ``--only scratch|finetune`` does one of both. Training is bounded by the CPU time of this
process, which does not depend on what else the machine does.

Real speakers, whole languages apart: who is tested with has no language in common with anyone of
the same kind of package who is trained on, because a volunteer may have recorded for several. What
is left is easier than VoxCeleb all the same: a speaker is also a channel and mostly a language. The
report therefore also has the error on the trials within one package.
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

from tts_assets.core.artifacts import ArtifactStore, Build, RawCorpus
from tts_assets.core.program import Run
from tts_assets.core.split import ValidationSplit, is_validation
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.index import index_corpus
from tts_assets.speakers import evaluate, train
from tts_assets.speakers.config import (
    RESEMBLYZER,
    EncoderProgram,
    EncoderRecipe,
    PeopleConfig,
    ReportProgram,
    TrialConfig,
)

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
CLIPS = 120  # of a speaker: enough to learn a voice from
VOLUNTEERS = ("tuxpaint", "klettres", "ktuberling")
PROBED = 5  # steps by which it is known how many fit
TEST = ValidationSplit(fraction=0.4, salt="speakers")


def fetch(work: Path) -> Path:
    """The packages, unpacked side by side."""
    debs, unpacked = work / "debs", work / "packages"
    debs.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not (unpacked / package).is_dir():
            subprocess.run(["apt-get", "download", package], cwd=debs, check=True)
            deb = next(debs.glob(f"{package}_*.deb"))
            subprocess.run(["dpkg", "-x", str(deb), str(unpacked / package)], check=True)
    return unpacked


def recordings(packages: Path) -> Iterator[tuple[str, str, Path]]:
    """Corpus, speaker and file of everything that somebody speaks."""
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
    """The two leads: who says which file stands in the game's scripts."""
    scripts = packages / "fillets-ng-data/usr/share/games/fillets-ng/script"
    if not scripts.is_dir():
        scripts = next((packages / "fillets-ng-data").rglob("script"))
    sounds = next((packages / f"fillets-ng-data-{language}").rglob("sound"))
    for level in sorted(sounds.glob(f"*/{language}")):
        said_by: dict[str, str] = {}
        for script in sorted((scripts / level.parent.name).glob("*dialogs*.lua")):
            found = re.findall(r'dialogId\("([^"]+)",\s*"([^"]+)"', script.read_text("utf-8"))
            said_by |= dict(found)
        for path in sorted(level.glob("*.ogg")):
            lead = LEADS.get(said_by.get(path.stem, ""))
            if lead:
                yield "fillets", f"{language}_{lead}", path


def lay_out(packages: Path, work: Path) -> None:
    """``WORK/corpora/<corpus>/<speaker>/<file>``, as the reader ``speakers`` wants it: of each
    speaker at most CLIPS, evenly from all."""
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
    """Each corpus' index, published as the asset ``raw_corpus`` publishes it."""
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
    """By the hash of their language, or of the game, or of the name; the clowns of hedgewars only
    train. Volunteers of a language may be one person: with the one who has the most clips is
    tested, and the others' folders are deleted."""
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
    """From random weights, heard in windows as long as the crops that are trained on, and from
    the public ones with a hundredth of the learning rate on crops as long as their windows."""
    batch = {"speakers": 16, "utterances": 4}
    scratch = {
        "architecture": {"hidden": 128},
        "audio": {"window_frames": 90, "step_frames": 45},
        "least_frames": 80,
        "most_frames": 100,
        "speeds": (0.87, 1.0, 1.15),
    }
    tuned = {
        "base": RESEMBLYZER,
        "least_frames": 150,
        "most_frames": 160,
        "lr": 1e-5,
        "final_lr": 1e-6,
    }
    return {
        "scratch": EncoderRecipe.model_validate(batch | scratch),
        "finetune": EncoderRecipe.model_validate(batch | tuned),
    }


def in_minutes(program: EncoderProgram, minutes: float) -> EncoderProgram:
    """The program with as many steps as fit, by the CPU time of a few that are thrown away."""
    with Run(program.run_dir) as running:
        trainer = train.EncoderTrainer(running, program)
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
    people: PeopleConfig,
    corpora: dict[str, Path],
    minutes: float,
) -> dict[str, Any]:
    """Train and judge; the seconds are those of the optimizer's steps, with what is measured and
    saved between them."""
    program = EncoderProgram(
        run_dir=folder / "train", recipe=recipe, people=people, corpora=corpora
    )
    program = in_minutes(program, minutes)
    with Run(program.run_dir) as running:
        trainer = train.EncoderTrainer(running, program)
        started, used = time.perf_counter(), time.process_time()
        trainer.train()
        wall, cpu = time.perf_counter() - started, time.process_time() - used
        trainer.finish()
        facts = trainer.facts()
    judged = ReportProgram(
        run_dir=folder / "report",
        people=people,
        corpora=corpora,
        trials=TrialConfig(max_utterances=40),
        encoder=str(folder / "train" / "result"),
    )
    with Run(judged.run_dir) as running:
        report = evaluate.EncoderEvaluation(running, judged).judge()
    seconds = {"cpu_seconds": round(cpu), "wall_seconds": round(wall)}
    return {"facts": facts, "report": report, "training": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="a folder with 4 GB of room")
    parser.add_argument("--only", choices=["scratch", "finetune"])
    parser.add_argument("--minutes", type=float, default=3.0, help="CPU, of training from scratch")
    parser.add_argument("--tuning", type=float, default=2.5, help="CPU minutes of fine-tuning")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    tested = work / "test_speakers.json"
    if not tested.exists():
        lay_out(fetch(work), work)
        tested.write_text(json.dumps(test_speakers(work)))
    people = PeopleConfig(
        corpora=CORPORA, test_speakers=json.loads(tested.read_text()), min_seconds=0.6
    )
    corpora = indexes(work)
    minutes = {"scratch": arguments.minutes, "finetune": arguments.tuning}
    for name, recipe in recipes().items():
        if arguments.only in (None, name):
            shutil.rmtree(work / "runs" / name, ignore_errors=True)
            found = run(work / "runs" / name, recipe, people, corpora, minutes[name])
            print(f"\n## {name}\n\n{json.dumps(found, indent=1)}\n")
            print(evaluate.table(found["report"]), flush=True)


if __name__ == "__main__":
    main()
