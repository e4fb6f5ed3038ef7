"""Votes of a blind test become preference pairs with the codes that the listeners heard."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetSpec, Definitions, define_asset_job, in_process_executor

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.sensors.conftest import InProcess
from tests.support.speaking import SAMPLING, Speaking, publish_checkpoint, publish_serving
from tts_assets.core.accounting import read_set_aside
from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    Comparison,
    EvaluationSuite,
    Handle,
    Preferences,
    Report,
    ServingModel,
)
from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.evaluation import evaluate
from tts_assets.evaluation.assets import vote_preferences
from tts_assets.evaluation.blind_test import (
    KEY_FILE,
    BlindKey,
    Votes,
    label,
    voted_pairs,
)
from tts_assets.evaluation.compare import compare
from tts_assets.evaluation.config import EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.results import read_samples
from tts_assets.evaluation.suite import SuiteText, read_suite, write_suite
from tts_assets.rlhf.dpo_config import PreferencesConfig, read_pairs
from tts_assets.serving.config import ServingConfig
from tts_assets.serving.synthesis import Synthesizer

pytestmark = pytest.mark.slow

CONFIG = EvaluationConfig(suite=Path("s.jsonl"), metrics=("words",), whisper="none")
TEXTS = {
    "clear": "one two",
    "tie": "three",
    "evaluated": "four",
    "changed": "five",
    "long": "six seven eight nine. " * 6,
    "voice": "nine",
}


@dataclass
class Voted:
    """A published comparison of two models, and the votes of two listeners in ``files``."""

    store: ArtifactStore
    models: dict[str, ServingModel]
    held_out: EvaluationSuite
    key: BlindKey
    files: list[Path]
    texts: dict[str, str]  # the ids of texts by trial


def publish(
    store: ArtifactStore, kind: type[Handle], build: Build, folder: Path, facts: Any
) -> Any:
    result = store.work_folder(build) / "result"
    shutil.copytree(folder, result, dirs_exist_ok=True)
    return store.publish(kind, build, result, facts)


def publish_suite(store: ArtifactStore, folder: Path, texts: list[SuiteText]) -> EvaluationSuite:
    folder.mkdir()
    facts = write_suite(folder / "suite.jsonl", texts)
    return publish(store, EvaluationSuite, Build(folder.name, {}, {}, "1"), folder, facts)


def publish_report(
    store: ArtifactStore, folder: Path, model: ServingModel, suite: EvaluationSuite
) -> Report:
    """The report of the real program, in which one clip is another model's."""
    program = EvaluationProgram(
        run_dir=folder,
        name=folder.name,
        evaluation=CONFIG,
        serving_model=model.path,
        suite=suite.path / "suite.jsonl",
        references=(),
    )
    folder.mkdir()
    (folder / "run.json").write_text(program.to_json())
    evaluate.main([str(folder / "run.json")])
    audio = {s.id: folder / "result" / str(s.audio) for s in read_samples(folder / "result")}
    shutil.copyfile(audio["clear"], audio["changed"])
    inputs = {"serving": model, "suite": suite}
    facts = json.loads((folder / "result.json").read_text())
    return publish(
        store, Report, Build(f"report/{folder.name}", inputs, {}, "1"), folder / "result", facts
    )


@pytest.fixture(scope="module")
def voted(speaking: Speaking, tmp_path_factory: pytest.TempPathFactory) -> Voted:
    folder, store = tmp_path_factory.mktemp("voted"), speaking.store
    checkpoint = publish_checkpoint(store, speaking.codec, seed=6)
    sources = replace(speaking.sources, checkpoint=checkpoint)
    other = publish_serving(store, sources, ServingConfig(sampling=SAMPLING))
    models = {"first": speaking.serving, "second": other}
    samples = [
        json.loads(line) for line in (speaking.clips / "samples.jsonl").read_text().splitlines()
    ]
    clip = next(one for one in samples if 1 < one["duration"] < 3)
    voice = {"prompt_wav": speaking.clips / clip["wav_path"], "prompt_text": clip["transcript"]}
    texts = [
        SuiteText(
            id=name, category="c", text=text, language="en", **(voice if name == "voice" else {})
        )
        for name, text in TEXTS.items()
    ]
    suite = publish_suite(store, folder / "heard", texts)
    evaluated = SuiteText(id="other", category="c", text="Four!", language="en")
    held_out = publish_suite(store, folder / "evaluation_suite", [evaluated])
    reports = {name: publish_report(store, folder / name, m, suite) for name, m in models.items()}
    (folder / "comparison").mkdir()
    facts = compare({n: r.path for n, r in reports.items()}, CONFIG, (), folder / "comparison")
    build = Build("comparison/heard", reports, {"models": list(reports)}, "1")
    comparison = publish(store, Comparison, build, folder / "comparison", facts)
    key = BlindKey.from_json(comparison.path / KEY_FILE)
    ids = {text.text: text.id for text in read_suite(suite.path / "suite.jsonl")}
    by_trial = {trial.id: ids[trial.text] for trial in key.trials}
    files = []
    for listener in ("anna", "ben"):
        votes = {}
        for trial in key.trials:
            wanted = "first" if by_trial[trial.id] == "tie" and listener == "ben" else "second"
            votes[trial.id] = "first" if trial.first == wanted else "second"
        path = folder / f"votes-{listener}.json"
        path.write_text(Votes.model_validate({"test": key.test, "votes": votes}).to_json())
        files.append(path)
    return Voted(store, models, held_out, key, files, by_trial)


def materialized(voted: Voted) -> Preferences:
    """The asset ``preferences/heard``, made by a Dagster run with its program in this process."""
    folder = voted.files[0].parent
    config = PreferencesConfig(comparison="heard", votes=("votes-*.json",))
    definitions = Definitions(
        assets=[
            AssetSpec(["comparison", "heard"]),
            AssetSpec("evaluation_suite"),
            *vote_preferences("heard", config, Shape(processes=1), folder),
        ],
        jobs=[define_asset_job("make", "preferences/heard")],
        executor=in_process_executor,
        resources={
            "store": ArtifactStoreResource(root=str(voted.store.root)),
            "io_manager": ArtifactIOManager(root=str(voted.store.root)),
            "launcher": InProcess(),
        },
    )
    result = definitions.resolve_job_def("make").execute_in_process()
    assert all(one.passed for one in result.get_asset_check_evaluations())
    made = voted.store.current("preferences/heard")
    assert isinstance(made, Preferences)
    return made


def test_votes_become_pairs_with_the_codes_that_were_heard(voted: Voted) -> None:
    made = materialized(voted)
    assert made.facts.asked == len(voted.key.trials) == made.facts.pairs + made.facts.set_aside
    pairs = {voted.texts[pair.id]: pair for pair in read_pairs(made.path)}
    left_out = {
        voted.texts[one.what]: one.reason for one in read_set_aside(made.path / "set_aside.jsonl")
    }
    assert left_out == {
        "tie": "no majority",
        "evaluated": "in the evaluation suite",
        "changed": "other audio than in the blind test",
        "long": "synthesized in several pieces",
    }
    assert set(pairs) == {"clear", "voice"} and len(pairs) + len(left_out) == len(voted.key.trials)
    for pair in pairs.values():
        for answer, model in ((pair.chosen, "second"), (pair.rejected, "first")):
            assert answer.model == label(voted.models[model])
            synthesizer = Synthesizer.open(voted.models[model].path, device="cpu")
            (speech,) = synthesizer.synthesize([pair.line(seed=42)])
            assert answer.codes == tuple(speech.codes) and answer.ended == speech.ended
        assert pair.margin == 1.0
    assert pairs["clear"].voice is None
    voice = pairs["voice"].voice
    assert voice is not None and len(voice.codes) > 10 and len(voice.source) == 64


def test_votes_of_another_test_are_refused(voted: Voted, tmp_path: Path) -> None:
    votes = Votes.from_json(voted.files[0]).model_copy(update={"test": "unknown"})
    path = tmp_path / "votes.json"
    path.write_text(votes.to_json())
    with pytest.raises(ConfigError, match="which no stored version of comparison/heard has"):
        voted_pairs(voted.store, "comparison/heard", [path], voted.held_out)
