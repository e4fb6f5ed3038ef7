"""Tell where audio comes from::

    python -m tts_assets.provenance check FILE… [--json]
    python -m tts_assets.provenance init FOLDER --organization NAME
    python -m tts_assets.provenance show FILE [--root PEM] [--storage FOLDER]
    python -m tts_assets.provenance consents [CORPUS]
    python -m tts_assets.provenance withdraw CORPUS [--because TEXT]

``check`` looks for the watermark of synthetic speech, in windows of 10 s. ``init`` makes the key
that signs manifests; ``TTS_PROVENANCE_KEYS=FOLDER`` uses it. ``show`` verifies the manifest of a
file offline and prints what it says; with a storage also the way back to reports, checkpoints,
corpora and codec. ``--root`` is the ``root.pem`` of the project that signed it. ``consents`` prints
the consent for each corpus of a recipe, and what depends on those that are not valid, or on CORPUS.
``withdraw`` records that the consent for a corpus was withdrawn: from then on no model of it is
published, promoted or served, and recipes leave it out. Both print the command that trains again.

The exit status is 0 if every file carries the watermark, the manifest or all consents are valid; 1
if not; 2 for files that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np

from tts_assets.core.artifacts import ArtifactStore, Report
from tts_assets.core.artifacts.handle import asset_name
from tts_assets.core.artifacts.store import way_back, withdrawals
from tts_assets.core.artifacts.verification import is_current
from tts_assets.core.audio import BrokenAudio, read_clip
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import Consent, VoiceConsent
from tts_assets.provenance import artifacts, made_from, withdraw
from tts_assets.provenance.manifest import (
    KEYS_VARIABLE,
    ROOT_FILE,
    Origin,
    Signed,
    make_keys,
    read_manifest,
)
from tts_assets.settings import Settings, load_settings

PROOF_SECONDS = 2.0  # recordings below it may score as high as marked clips
WINDOW_SECONDS = 10.0  # of a long file; each window has a score


@dataclass(frozen=True)
class Check:
    """The watermark of one file.

    ``score``: the highest of the ``windows`` that have one, 0 to 1; None without such a
    window. ``marked``: the number of windows with the watermark.
    """

    file: str
    seconds: float
    score: float | None
    windows: int
    marked: int

    def __str__(self) -> str:
        if self.score is None:
            return f"{self.file}: silence, or too short to judge"
        found = "watermark found" if self.marked else "no watermark"
        parts = f", in {self.marked} of {self.windows} windows of 10 s" if self.windows > 1 else ""
        short = ", too short for a proof" if self.seconds < PROOF_SECONDS else ""
        return f"{self.file}: {found}{parts} (score {self.score:.2f}{short})"


def check(path: Path) -> Check:
    """Look for the watermark in an audio file. Raises :class:`BrokenAudio`."""
    from tts_assets.audio_models.watermark import PRESENT, detect

    clip = read_clip(path)
    windows = max(1, round(clip.seconds / WINDOW_SECONDS))
    found = [detect(part, clip.rate) for part in np.array_split(clip.wave, windows)]
    scores = [score for score in found if score is not None]
    marked = sum(score > PRESENT for score in scores)
    score = max(scores, default=None)
    return Check(str(path), round(clip.seconds, 3), score, len(scores), marked)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = arguments(argv)
    try:
        status: int = options.run(options)
    except (BrokenAudio, ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    return status


def run_check(options: argparse.Namespace) -> int:
    """The command ``check``."""
    checks = [check(path) for path in options.files]
    lines = [json.dumps([asdict(one) for one in checks])] if options.json else map(str, checks)
    print("\n".join(lines))
    return 0 if all(one.marked for one in checks) else 1


def run_init(options: argparse.Namespace) -> int:
    """The command ``init``."""
    keys = make_keys(options.folder, options.organization)
    print(f"made {keys.folder}; to sign what is synthesized: export {KEYS_VARIABLE}={keys.folder}")
    print(f"others verify it with {keys.folder / ROOT_FILE}; keep the rest of the folder secret")
    return 0


def run_show(options: argparse.Namespace) -> int:
    """The command ``show``."""
    found = read_manifest(options.file, options.root)
    if found is None:
        print(f"{options.file}: no manifest; `check` looks for the watermark")
        return 1
    print("\n".join(described(found, options.root)))
    if found.origin is not None and options.storage is not None:
        print("\n".join(lineage(found.origin, ArtifactStore(options.storage))))
    return 1 if found.problems or (options.root and not found.trusted) else 0


def described(found: Signed, root: Path | None) -> Iterator[str]:
    """The lines about a manifest: what was verified, and what it says."""
    if found.problems:
        yield f"INVALID, do not rely on it: {', '.join(found.problems)}"
    else:
        yield "valid: the file is as it was signed"
    by_root = "no --root was given, so anybody may have signed under this name"
    if root is not None:
        by_root = f"{'signed' if found.trusted else 'NOT signed'} by a key of {root}"
    yield f"signer: {found.signer} ({by_root})"
    origin = found.origin
    if origin is None:
        yield "the manifest is of another program"
        return
    yield f"synthetic speech by {origin.model} {origin.content[:12]}, tts-assets {origin.version}"
    for corpus, consent in sorted(origin.consents.items()):
        words = consent.in_words() if isinstance(consent, Consent) else "a synthetic voice"
        yield f"trained on {corpus}: {words}"


def lineage(origin: Origin, store: ArtifactStore) -> Iterator[str]:
    """The lines about the artifacts of a storage: the model, its sources and its reports."""
    handles = artifacts(store)
    model = next((one for one in handles if one.content == origin.content), None)
    if model is None:
        yield f"{store.root} has no artifact with the content of {origin.model}"
        return
    yield "made from:"
    yield from (f"  {source}" for source in way_back(store, model.reference()))
    for one in handles:
        inputs = one.manifest.inputs
        if isinstance(one, Report) and inputs["serving"].content == origin.content:
            yield f"report: {one.asset} {one.content[:12]} ({one.path})"


def run_consents(options: argparse.Namespace) -> int:
    """The command ``consents``."""
    settings = load_settings(every_corpus=True)
    states = consent_states(settings, options.corpus)
    invalid = [name for name, state in states.items() if not state.valid]
    for name, state in states.items():
        print(f"{name}: {state.text}")
        if name in ([options.corpus] if options.corpus else invalid):
            print("\n".join(dependents(settings, name, state)))
    return 1 if invalid else 0


def run_withdraw(options: argparse.Namespace) -> int:
    """The command ``withdraw``."""
    settings = load_settings(every_corpus=True)
    state = consent_states(settings, options.corpus)[options.corpus]
    withdraw(ArtifactStore(settings.storage), options.corpus, options.because, date.today())
    print(f"{options.corpus}: withdrawn; no model of it is published, promoted or served any more")
    print("\n".join(dependents(settings, options.corpus, state)))
    for other in others_of(settings, options.corpus):
        print(f"  {other} has the same speaker: withdraw it, too, if the speaker means both")
    return 0


def others_of(settings: Settings, corpus: str) -> list[str]:
    """The other corpora with a consent of the speaker of ``corpus``, unless it is withdrawn."""
    known = settings.known_consents
    own = known.get(corpus)
    if not isinstance(own, Consent):
        return []
    gone = withdrawals(settings.storage)
    same = (n for n, one in known.items() if isinstance(one, Consent) and one.who == own.who)
    return sorted({*same} - {corpus, *gone})


@dataclass(frozen=True)
class ConsentState:
    """The consent for one corpus in words, whether it is valid today, and its recipes."""

    text: str
    valid: bool
    recipes: tuple[str, ...]


def consent_states(settings: Settings, asked: str | None) -> dict[str, ConsentState]:
    """The consent for every corpus of a recipe or of the codec, sorted by corpus.

    Corpora that no recipe has any more are among them if their consent is not valid, and the one
    that is ``asked`` for. Raises :class:`ConfigError` if nothing is known of it.
    """
    declared = settings.known_consents
    found = {name: declared.get(name) for name in settings.ended_consents}
    recipes: dict[str, list[str]] = {}
    for recipe in (*settings.stage_of, *settings.external_models.recipes):
        for corpus, consent in settings.consents(recipe).items():
            found[corpus] = consent
            recipes.setdefault(corpus, []).append(recipe)
    if asked is not None and asked not in found:
        store = ArtifactStore(settings.storage)
        if asked not in declared and not made_from(artifacts(store), asked):
            known = ", ".join(sorted({*found, *declared})) or "none"
            raise ConfigError(f"nothing is known of a corpus {asked!r}; known: {known}")
        found[asked] = declared.get(asked)
    withdrawn = withdrawals(settings.storage)
    states = {}
    for corpus in sorted(found):
        text, valid = state_of(found[corpus], withdrawn.get(corpus))
        states[corpus] = ConsentState(text, valid, tuple(recipes.get(corpus, ())))
    return states


def state_of(consent: VoiceConsent | None, withdrawn: date | None) -> tuple[str, bool]:
    """A consent in words, and whether it is valid today."""
    if withdrawn is not None:
        return f"WITHDRAWN on {withdrawn}", False
    if consent is None:
        return "NO CONSENT", False
    if not isinstance(consent, Consent):
        return "a synthetic voice", True
    ended = consent.ended(date.today())
    return f"{'ENDED: ' if ended else ''}{consent.in_words()}", not ended


def dependents(settings: Settings, corpus: str, state: ConsentState) -> Iterator[str]:
    """The lines about what depends on a corpus, and how to train without it."""
    affected = made_from(artifacts(ArtifactStore(settings.storage)), corpus)
    current = [one for one in affected if is_current(one.path)]
    for one in current:
        yield f"  {asset_name(one.manifest)} {one.content[:12]} ({one.path})"
    if older := len(affected) - len(current):
        yield f"  and {older} earlier versions; delete the folders if the data must be erased"
    if corpus in settings.ended_consents:
        made = (one.asset.rpartition("/")[2] for one in current)
        recipes = {*state.recipes, *(name for name in made if name in settings.stage_of)}
        yield from remedies(load_settings(), sorted(recipes))
    elif not state.valid and state.recipes:
        yield f"  add a consent, or remove {corpus} from the recipes {', '.join(state.recipes)}"


def remedies(settings: Settings, recipes: Sequence[str]) -> Iterator[str]:
    """How to train these recipes without corpora whose consent is not valid any more."""
    ended = settings.ended_consents.keys()
    bound = [name for name in recipes if ended & settings.consents(name).keys()]
    free = [name for name in recipes if name not in bound]
    if bound:
        yield f"  {', '.join(bound)}: no other corpus is left; add one, or remove the recipes"
    candidates = {voice: {*one.candidates} for voice, one in settings.promotion.items()}
    voices = [v for v, names in candidates.items() if names & {*free} and not names & {*bound}]
    others = {*free}.difference(*(candidates[voice] for voice in voices))
    if names := [*voices, *(name for name in free if name in others & {*settings.stage_of})]:
        yield f"  to train without it: tts-assets train {' '.join(names)}"
    if {*free} & {*settings.external_models.recipes}:
        yield "  to train external models without it: tts-assets run train_families"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; ``run`` is the function of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.provenance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("check", help="look for the watermark of synthetic speech")
    one.add_argument("files", type=Path, nargs="+", metavar="FILE")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.set_defaults(run=run_check)
    one = commands.add_parser("init", help="make the key that signs manifests")
    one.add_argument("folder", type=Path, help="new folder for the key and its certificates")
    one.add_argument("--organization", required=True, help="the signer that manifests name")
    one.set_defaults(run=run_init)
    one = commands.add_parser("show", help="verify the manifest of a file and print it")
    one.add_argument("file", type=Path, help="a wav, mp3 or flac file")
    one.add_argument("--root", type=Path, help="root.pem of the project that signed it")
    one.add_argument("--storage", type=Path, help="storage with the artifacts of the model")
    one.set_defaults(run=run_show)
    one = commands.add_parser("consents", help="list consents, and what depends on invalid ones")
    one.add_argument("corpus", nargs="?", help="list what depends on this corpus")
    one.set_defaults(run=run_consents)
    one = commands.add_parser("withdraw", help="record that the consent for a corpus was withdrawn")
    one.add_argument("corpus")
    one.add_argument("--because", default="", metavar="TEXT", help="for the record")
    one.set_defaults(run=run_withdraw)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
