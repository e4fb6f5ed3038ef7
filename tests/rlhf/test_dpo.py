"""Preference pairs of rewards, and DPO on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.rlhf.conftest import TEXTS, grpo_program
from tests.rlhf.test_train import stop_after_first_step
from tests.support.speaking import SAMPLING, Speaking, publish_serving, publish_trained
from tts_assets.core.accounting import NothingUsableError, read_set_aside
from tts_assets.core.artifacts import CheckpointFacts
from tts_assets.core.config import ConfigError
from tts_assets.core.program import STOPPED, Run, read_metrics
from tts_assets.definitions import build_defs
from tts_assets.rlhf.dpo_config import (
    DpoProgram,
    DpoRecipe,
    PreferencesConfig,
    PreferencesProgram,
    read_pairs,
)
from tts_assets.rlhf.reporting import MARGIN, describe_dpo, find_collapse, training_records
from tts_assets.rlhf.rollouts import completion_seed
from tts_assets.serving.config import ServingConfig
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine
from tts_assets.serving.verify import compare_transformers
from tts_assets.settings import load_settings
from tts_assets.speechlm.generate import Completion, Request

Make = Callable[..., DpoProgram]
GENERATIONS = 6


def make_pairs(speaking: Speaking, folder: Path, **recipe: Any) -> Path:
    """The run folder of the program that makes pairs of rewards."""
    from tts_assets.rlhf import preferences

    changes = {"generations": GENERATIONS, "heldout": {"fraction": 0}, **recipe}
    rollouts = grpo_program(speaking, folder / "rollouts", **changes)
    made = PreferencesProgram(run_dir=folder / "run", rollouts=rollouts, pairs=100)
    made.run_dir.mkdir()
    (made.run_dir / "run.json").write_text(made.to_json())
    preferences.main([str(made.run_dir / "run.json")])
    return made.run_dir


@pytest.fixture(scope="module")
def pairs_run(speaking: Speaking, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of completions that end, which have the reward 1, and others."""
    return make_pairs(speaking, tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def program(speaking: Speaking, pairs_run: Path, tmp_path: Path) -> Make:
    """A factory of short DPO runs: a name, and changes of the recipe."""

    def make(name: str, **changes: Any) -> DpoProgram:
        recipe = {"base": "tiny", "preferences": "tiny", "steps": 6, "pairs_per_step": 4}
        recipe |= {"learning_rate": 3e-3, "save_every": 2, **changes}
        made = DpoProgram(
            run_dir=tmp_path / name,
            name="tiny_dpo",
            recipe=DpoRecipe.parse(recipe, "test"),
            serving_model=speaking.serving.path,
            preferences=pairs_run / "result",
        )
        made.run_dir.mkdir()
        (made.run_dir / "run.json").write_text(made.to_json())
        return made

    return make


def run(program: DpoProgram) -> None:
    from tts_assets.rlhf import dpo

    dpo.main([str(program.run_dir / "run.json")])


def weights(program: DpoProgram) -> bytes:
    return (program.run_dir / "result" / "model.safetensors").read_bytes()


def completed(speaking: Speaking, prompt: int) -> tuple[list[Request], list[Completion]]:
    """The requests of a prompt as GRPO makes them, and their completions."""
    synthesizer = Synthesizer.open(speaking.serving.path, device="cpu")
    assert isinstance(synthesizer.engine, TransformersEngine)
    order = np.random.default_rng([777, 0]).permutation(len(TEXTS))
    requests = [
        synthesizer.request(
            SynthesisLine(TEXTS[order[prompt]], seed=completion_seed(777, -2, index)), 0
        )
        for index in range(prompt * GENERATIONS, (prompt + 1) * GENERATIONS)
    ]
    recipe = {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    sampling = synthesizer.card.sampling.model_copy(
        update={**recipe, "min_tokens": 5, "max_tokens": 40, "top_p": 1.0}
    )
    return requests, synthesizer.engine.complete(requests, sampling, None)


def test_pairs_are_the_best_and_the_worst_completions(speaking: Speaking, pairs_run: Path) -> None:
    pairs = read_pairs(pairs_run / "result")
    left_out = read_set_aside(pairs_run / "result" / "set_aside.jsonl")
    facts = json.loads((pairs_run / "result.json").read_text())
    assert facts == {
        "asked": len(TEXTS),
        "pairs": len(pairs),
        "set_aside": len(left_out),
        "codec": speaking.codec.content,
    }
    assert len(pairs) + len(left_out) == len(TEXTS) and len(pairs) >= 3
    assert {one.reason for one in left_out} <= {"equal rewards"}
    for pair in pairs:
        assert pair.chosen.ended and not pair.rejected.ended and pair.margin > 0
        _, completions = completed(speaking, int(pair.id.removeprefix("prompt-")))
        codes = [tuple(one.codes) for one in completions]
        assert pair.chosen.codes in codes and pair.rejected.codes in codes


@pytest.mark.slow
def test_trl_gets_the_token_ids_of_synthesis(speaking: Speaking, pairs_run: Path) -> None:
    """Prompt and completion of a pair are those that the model generated, end token included."""
    from tts_assets.rlhf.dpo import token_ids

    synthesizer = Synthesizer.open(speaking.serving.path, device="cpu")
    pair = read_pairs(pairs_run / "result")[0]
    requests, completions = completed(speaking, int(pair.id.removeprefix("prompt-")))
    row = token_ids(pair, synthesizer)
    assert row["prompt_ids"] == requests[0].prompt.tolist()
    generated = [one.token_ids.tolist() for one in completions]
    assert row["chosen_ids"] in generated and row["rejected_ids"] in generated
    end = synthesizer.prompts.vocabulary.speech_end
    assert row["chosen_ids"][-1] == end and end not in row["rejected_ids"]


@pytest.mark.slow
def test_dpo_raises_the_margin_and_resumes_exactly(program: Make, speaking: Speaking) -> None:
    whole, parts = program("whole"), program("parts")
    run(whole)
    records = training_records(whole.run_dir, MARGIN)
    assert [one["step"] for one in records] == [1, 2, 3, 4, 5, 6]
    assert records[0][MARGIN] == 0, "the policy is the reference"
    assert records[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert records[-1][MARGIN] > 0.5 and records[-1]["rewards/accuracies"] == 1
    held_out = [one for one in read_metrics(whole.run_dir / "metrics.jsonl") if "ended" in one]
    assert [one["step"] for one in held_out] == [0, 2, 4, 6]
    assert held_out[0]["margin_heldout"] == 0 != held_out[-1]["margin_heldout"]
    facts = CheckpointFacts.from_json(whole.run_dir / "result.json")
    assert (facts.stage, facts.recipe, facts.steps) == ("dpo", "tiny_dpo", 6)
    assert facts.vocabulary == speaking.checkpoint.facts.vocabulary and facts.tokens > 0
    folder = whole.run_dir / "result"
    steps = sorted(path.name for path in (folder / "rollouts").glob("*.json"))
    assert steps == [f"step-{step:06d}.json" for step in (0, 2, 4, 6)]
    assert (folder / "listening.ipynb").is_file()

    stop_after_first_step(parts)
    with pytest.raises(SystemExit) as stopped:
        run(parts)
    assert stopped.value.code == STOPPED
    assert 1 <= len(training_records(parts.run_dir, MARGIN)) < 6
    run(parts)
    assert weights(parts) == weights(whole)
    logged = [(made.run_dir / "result" / "metrics.jsonl").read_bytes() for made in (parts, whole)]
    assert logged[0] == logged[1]

    checkpoint = publish_trained(speaking, whole.run_dir)
    sources = replace(speaking.sources, checkpoint=checkpoint)
    serving = publish_serving(speaking.store, sources, ServingConfig(sampling=SAMPLING))
    agreement = compare_transformers(checkpoint.path, serving.path, 256, ["one two"], tokens=16)
    assert agreement.holds and serving.facts.stage == "dpo", agreement
    shown = describe_dpo(checkpoint, whole.recipe)
    assert shown["margin_last"] > shown["margin_first"] == 0 and "listening" in shown
    collapse = find_collapse(speaking.store, checkpoint, whole.recipe)
    assert collapse.metadata == shown["alarms"] == {}


@pytest.mark.slow
def test_adapters_are_trained_and_merged(program: Make) -> None:
    """The reference is the policy without its adapters."""
    made = program("lora", steps=2, lora_rank=4, learning_rate=0.03, micro_batch=1)
    run(made)
    records = training_records(made.run_dir, MARGIN)
    assert records[0][MARGIN] == 0 < records[1][MARGIN]
    before = load_file(made.serving_model / "model.safetensors")
    after = load_file(made.run_dir / "result" / "model.safetensors")
    assert {n: w.shape for n, w in after.items()} == {n: w.shape for n, w in before.items()}
    changed = {name for name in before if not bool((before[name] == after[name]).all())}
    assert changed == {name for name in before if "_proj" in name}
    configs = [
        json.loads((folder / "config.json").read_text())
        for folder in (made.serving_model, made.run_dir / "result")
    ]
    assert configs[0] == configs[1]


SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "steps": (20, {"max_steps": 20, "warmup_steps": 2}),
    "pairs_per_step": (12, {"gradient_accumulation_steps": 3}),
    "micro_batch": (2, {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}),
    "learning_rate": (1e-4, {"learning_rate": 1e-4}),
    "beta": (0.3, {"beta": 0.3}),
    "loss": ("ipo", {"loss_type": ["ipo"]}),
    "save_every": (3, {"save_steps": 3, "eval_steps": 3}),
    "seed": (5, {"seed": 5}),
}
OURS = {"base", "preferences", "lora_rank", "stop_on_collapse"}  # settings that TRL does not have


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(set(DpoRecipe.model_fields) - OURS))
def test_every_setting_reaches_trl(key: str, tmp_path: Path) -> None:
    from tts_assets.rlhf.dpo import dpo_config

    value, expected = SETTINGS[key]
    given = {"base": "tiny", "preferences": "tiny"}
    default, changed = (
        dpo_config(DpoRecipe.parse({**given, **more}, "test"), Run(tmp_path), first_start=True)
        for more in ({}, {key: value})
    )
    for name, wanted in expected.items():
        assert getattr(changed, name) == wanted != getattr(default, name)
    assert changed.max_length is None, "TRL cuts longer sequences off"
    assert changed.train_sampling_strategy == "sequential" and changed.eval_on_start


@pytest.mark.slow
def test_the_pairs_of_a_step_must_divide_into_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_assets.rlhf.dpo import dpo_config

    recipe = DpoRecipe(base="tiny", preferences="tiny", pairs_per_step=9)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="pairs_per_step = 9 does not divide into 2 processes"):
        dpo_config(recipe, Run(tmp_path), first_start=True)


def test_equal_rewards_give_no_pair(speaking: Speaking, tmp_path: Path) -> None:
    always = {"temperature": 1.0, "min_tokens": 5, "max_tokens": 6}
    with pytest.raises(NothingUsableError, match=r"(?s)no preference pair.*equal rewards: 6"):
        make_pairs(speaking, tmp_path, sampling=always, generations=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "set one source of the pairs"),
        ({"comparison": "a", "votes": ["*"], "rollouts": "b"}, "set one source of the pairs"),
        ({"comparison": "a"}, "comparison needs votes"),
        ({"rollouts": "a", "votes": ["v.json"]}, "comparison needs votes"),
    ],
)
def test_preferences_have_one_source(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PreferencesConfig.parse(values, "test")


def test_vote_files_must_exist(tmp_path: Path) -> None:
    config = PreferencesConfig(comparison="a", votes=("votes/*.json",))
    with pytest.raises(ConfigError, match="there is no such vote file"):
        config.vote_files(tmp_path)
    (tmp_path / "votes").mkdir()
    for name in ("b.json", "a.json"):
        (tmp_path / "votes" / name).touch()
    assert [path.name for path in config.vote_files(tmp_path)] == ["a.json", "b.json"]


PAIRS: dict[str, Any] = {
    "preferences": {
        "voted": {"comparison": "announcer_grpo", "votes": ["votes/*.json"]},
        "rewarded": {"rollouts": "announcer_grpo"},
    },
    "dpo": {
        "voted_dpo": {"base": "announcer", "preferences": "voted"},
        "rewarded_dpo": {"base": "announcer", "preferences": "rewarded"},
    },
    "promotion": {"announcer": {"candidates": ["announcer", "voted_dpo"]}},
}


def test_a_dpo_recipe_has_the_assets_of_an_rlhf_recipe() -> None:
    settings = load_settings(environment={}, overrides=PAIRS)
    graph = build_defs(settings).resolve_asset_graph()
    parents = {
        node.key.to_user_string(): {key.to_user_string() for key in node.parent_keys}
        for node in (graph.get(key) for key in graph.materializable_asset_keys)
    }
    assert parents["dpo/voted_dpo"] == {"serving/announcer", "preferences/voted"}
    assert parents["preferences/voted"] == {"comparison/announcer_grpo", "evaluation_suite"}
    assert parents["preferences/rewarded"] == {"serving/announcer", "evaluation_suite"}
    assert "dpo/voted_dpo" in parents["serving/voted_dpo"]
    assert "serving/voted_dpo" in parents["report/voted_dpo"]
    assert parents["comparison/voted_dpo"] == {"report/announcer", "report/voted_dpo"}
    assert "report/voted_dpo" in parents["promoted/announcer"]
    job = build_defs(settings).resolve_job_def("align")
    selected = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert {"dpo/voted_dpo", "preferences/voted", "preferences/rewarded"} <= selected
    assert settings.training_corpora("voted_dpo") == settings.training_corpora("announcer_grpo")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dpo": {"x": {"base": "nobody", "preferences": "voted"}}}, "x starts from 'nobody'"),
        ({"dpo": {"x": {"base": "announcer", "preferences": "no"}}}, "'no', which are nowhere"),
        (
            {"dpo": {"announcer_grpo": {"base": "announcer", "preferences": "voted"}}},
            r"names recipes of \[rlhf\] and \[dpo\]",
        ),
        (
            {"preferences": {"x": {"rollouts": "announcer"}}},
            "rollouts is 'announcer', which is none",
        ),
        (
            {"preferences": {"x": {"comparison": "no", "votes": ["*"]}}},
            "comparison is 'no', which is none",
        ),
        (
            {"preferences": {"voted": {"comparison": "voted_dpo", "votes": ["*"]}}},
            "preferences.voted depend on themselves",
        ),
        (
            {
                "evaluation": {
                    "comparisons": {"x": {"models": ["announcer", "announcer_grpo"], "suite": "no"}}
                }
            },
            "suite is 'no', on which 'announcer' is not evaluated",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(overrides: dict[str, Any], message: str) -> None:
    tables = {**PAIRS, **{key: {**PAIRS.get(key, {}), **new} for key, new in overrides.items()}}
    with pytest.raises(ConfigError, match=message):
        load_settings(environment={}, overrides=tables)
