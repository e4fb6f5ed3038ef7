"""The project file: profiles, overrides and error messages with remedies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, Definitions

from resources.slurm import SlurmLauncher
from tts_assets.core.compute import Compute
from tts_assets.core.config import ConfigError
from tts_assets.definitions import build_defs, build_launcher, vllm_shape
from tts_assets.normalization.front_end import FrontEnd
from tts_assets.project_file import PROJECT_FILE, environment_overrides, overlay, project_file
from tts_assets.settings import load_settings

PRETRAINING = {
    "base": {"llama": {}},
    "corpora": {"asterisk_en": 1.0},
    "pretraining": {"text_share": 0.1},
    "steps": 1,
}


def load(overrides: dict[str, Any], **environment: str) -> Any:
    return load_settings(environment=environment, overrides=overrides)


def test_the_project_file_of_the_checkout_is_valid_in_every_profile() -> None:
    embedded = load_settings(environment={})
    assert embedded.root == project_file({}).parent
    assert embedded.storage == embedded.root / "storage"
    for corpus in embedded.corpora.values():
        assert embedded.path(corpus.path).exists()
    for profile in ("gpu", "slurm", "codec_demo", "base"):
        assert load_settings(environment={"TTS_PROFILE": profile}) != embedded


def test_a_base_in_a_folder_is_relative_to_the_project_file(tmp_path: Path) -> None:
    (tmp_path / "models/base").mkdir(parents=True)
    text = (project_file({}).parent / PROJECT_FILE).read_text()
    text = text.replace('"examples/', f'"{project_file({}).parent}/examples/')
    (tmp_path / PROJECT_FILE).write_text(text)
    recipe = {"corpora": {"asterisk_en": 1.0}, "steps": 1}
    recipes = {
        name: {**recipe, "base": {"hub": hub}}
        for name, hub in (("folder", "models/base"), ("published", "someone/base"))
    }
    settings = load_settings(tmp_path / PROJECT_FILE, environment={}, overrides={"sft": recipes})
    assert settings.sft["folder"].base.hub == str(tmp_path / "models/base")
    assert settings.sft["published"].base.hub == "someone/base"
    assert settings.sft["folder"].identified().base.hub != settings.sft["folder"].base.hub


def test_environment_overrides_one_value() -> None:
    settings = load({}, TTS__SFT__ANNOUNCER__STEPS="20", TTS__PROJECT__NAME="plain text")
    assert settings.sft["announcer"].steps == 20
    assert settings.project.name == "plain text"
    assert environment_overrides({"TTS__A__B": "[1, 2]", "PATH": "x"}) == {"a": {"b": [1, 2]}}


def test_a_stage_changes_the_shape_of_its_programs() -> None:
    compute = load({}, TTS_PROFILE="slurm").compute
    assert compute.shape("evaluation").nodes == 1 and compute.shape("evaluation").gpus == 1
    assert compute.shape("sft").nodes == 2 and compute.shape("sft").gpus == 8
    launcher = build_launcher(compute)
    assert isinstance(launcher, SlurmLauncher)
    assert launcher.slurm_options() == compute.slurm


def test_programs_with_vllm_are_one_process_in_its_environment() -> None:
    changes = {"vllm": {"python": "/envs/vllm/bin/python"}, "compute": {"gpus": 8}}
    shape = vllm_shape(load(changes, TTS_PROFILE="slurm"))
    assert (shape.nodes, shape.processes, shape.gpus) == (1, 1, 1)
    assert shape.python == "/envs/vllm/bin/python"
    assert vllm_shape(load({})).python is None


def test_token_streams_are_made_if_a_recipe_pretrains() -> None:
    assert not load({}).pretrains
    assert load({"sft": {"base": PRETRAINING}}).pretrains


def test_overlay_merges_tables_and_replaces_the_rest() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert overlay(base, {"a": {"c": [9]}, "e": 4}) == {"a": {"b": 1, "c": [9]}, "d": 3, "e": 4}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"codec": {"shard_sample": 3}}, "codec: unknown key 'shard_sample'.*'shard_samples'"),
        ({"compute": {"processes": 0}}, "compute.processes"),
        ({"compute": {"gpus": 8, "stages": {"sft": {"processes": 9}}}}, "cannot share 8 GPUs"),
        ({"compute": {"nodes": 2}}, "need launcher = 'slurm'"),
        ({"compute": {"launcher": "slurm"}}, "needs gpus"),
        ({"compute": {"processes": 4, "gpus": 2}}, "set processes = 2"),
        (
            {
                "compute": {"launcher": "slurm", "gpus": 8},
                "rlhf": {
                    "announcer_grpo": {"engine": {"kind": "vllm", "gpus": 0, "gpu_memory": 0.3}}
                },
            },
            "rlhf.announcer_grpo.engine: gpus = 0 .* set gpus = 1",
        ),
        ({"compute": {"stages": {"sft": {"node": 2}}}}, "did you mean 'nodes'"),
        ({"sft": {"announcer": {"corpora": {"nope": 1.0}}}}, r"add \[corpora.nope\]"),
        ({"sft": {"announcer": {"epochs": 3}}}, "exactly one of steps and epochs"),
        ({"sft": {"announcer": {"texts": {"chat": 0.5}}}}, r"nowhere: add \[texts.chat\]"),
        ({"texts": {"a b": {"path": "a.jsonl"}}}, "for example 'a_b'"),
        ({"arrays": {"pretraining": True}}, "'pretraining' was removed: token_arrays have"),
        ({"rlhf": {"announcer_grpo": {"base": "nobody"}}}, "'nobody', which is no .sft. recipe"),
        (
            {"arrays": {"imported": {"asterisk_en": {"path": "x", "codec": "y"}}}},
            r"'asterisk_en' is declared in \[corpora\] and in \[arrays.imported\]",
        ),
        ({"arrays": {"imported": {"theirs": {"path": "x"}}}}, "imported.theirs.codec"),
        (
            {"rlhf": {"announcer": {"base": "announcer", "prompts": {"texts": "a.txt"}}}},
            "rename one",
        ),
    ],
)
def test_invalid_settings_are_rejected_with_a_remedy(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(overrides)
    assert "dagster_project.toml" in str(caught.value)


def test_a_recipe_may_name_a_discovered_corpus(tmp_path: Path) -> None:
    overrides = {
        "discovery": {"root": str(tmp_path), "language": "en"},
        "sft": {"announcer": {"corpora": {"voice": 1.0}}},
    }
    with pytest.raises(ConfigError, match=f"nor does {tmp_path / 'voice'} exist.*put its folder"):
        load(overrides)
    (tmp_path / "voice").mkdir()
    with pytest.raises(ConfigError, match="'voice': its layout is not recognized"):
        load(overrides)
    (tmp_path / "voice" / "samples.jsonl").write_text("")
    assert "voice" in load(overrides).sft["announcer"].corpora


def test_an_invalid_corpus_name_is_rejected() -> None:
    corpus = {"path": ".", "reader": "folder", "language": "en"}
    with pytest.raises(
        ConfigError, match=r"is not a valid name of a corpus.*for example 'my_voice'"
    ):
        load({"corpora": {"my voice": corpus}})


RECIPE = {"base": {"llama": {}}, "corpora": {"asterisk_en": 1.0}, "steps": 2}
SUITE = {"path": "examples/suites/numerals.jsonl"}
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("recipe", RECIPE),
    "rlhf": ("recipe", {"base": "announcer", "prompts": {"texts": "a.txt"}, "steps": 1}),
    "preferences": ("voice", {"rollouts": "announcer_grpo"}),
    "external_models.recipes": ("recipe", {"family": "vits", "corpora": ["asterisk_en"]}),
    "evaluation.suites": ("suite", SUITE),
    "evaluation.comparisons": ("comparison", {"models": ["announcer", "announcer_grpo"]}),
    "promotion": ("voice", {"candidates": ["announcer"]}),
    "texts": ("text", {"path": "a.jsonl"}),
}


def named(table: str, name: str) -> dict[str, Any]:
    """One more entry ``name`` of ``table``."""
    values = {name: NAMED[table][1]}
    for key in reversed(table.split(".")):
        values = {key: values}
    python = {"external_models": {"python": "/usr/bin/python3"}}
    return overlay(values, python) if table.startswith("external_models") else values


@pytest.mark.parametrize("table", NAMED)
@pytest.mark.parametrize(
    "name", ["my voice", "", "n" * 260, "a/b", "ä", "..", "x\n", "-x", "a...b"]
)
def test_an_invalid_name_is_rejected_with_its_table_and_a_better_name(
    table: str, name: str
) -> None:
    what = NAMED[table][0]
    with pytest.raises(ConfigError) as caught:
        load(named(table, name))
    message = str(caught.value)
    assert "dagster_project.toml" in message
    assert f"[{table}]: {name!r} is not a valid name of a {what}: use up to 100" in message
    load(named(table, message.rsplit("'")[-2]))  # the proposed name is valid


@pytest.mark.parametrize("table", NAMED)
def test_names_with_dots_and_hyphens_load(table: str) -> None:
    Definitions.validate_loadable(build_defs(load(named(table, "My-voice.2"))))


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"sft": {"my-voice": RECIPE, "my_voice": RECIPE}}, "report/my-voice and report/my_voice"),
        ({"texts": {"a.b": {"path": "a"}, "a_b": {"path": "b"}}}, "texts/a.b and texts/a_b"),
        (
            {"sft": {"announcer__few": RECIPE}, "evaluation": {"suites": {"few": SUITE}}},
            "report/announcer__few and report/announcer/few",
        ),
    ],
)
def test_names_that_are_equal_in_dagster_are_rejected(values: dict[str, Any], keys: str) -> None:
    with pytest.raises(ConfigError, match=f"the assets {keys} have the same name in Dagster"):
        load(values)


def test_a_base_reads_phonemes_of_the_languages_of_its_corpora() -> None:
    german = {"eva": {"path": "eva", "reader": "folder", "language": "de", "licence": "x"}}
    recipe = {"announcer": {"corpora": {"asterisk_en": 1.0, "eva": 1.0}}}
    with pytest.raises(ConfigError, match=r"its base reads phonemes of 'en', but .* speech in de"):
        load({"corpora": german, "sft": recipe})


def test_recipes_train_on_imported_arrays() -> None:
    base = load({}).sft["announcer"].model_dump(mode="json")
    more = base | {"base": {"recipe": "announcer"}, "corpora": {"theirs": 1, "asterisk_en": 1}}
    imported = {"imported": {"theirs": {"path": "x", "codec": "hub/codec"}}}
    settings = load({"arrays": imported, "sft": {"more": more}})
    # Continued training keeps the tokenizer, so that both recipes share one.
    assert settings.tokenizers["asterisk_en"] == settings.tokenizers["theirs"]
    assert [tokenizer.hub for tokenizer in settings.tokenizers["theirs"]] == [base["base"]["hub"]]


def test_a_missing_file_a_broken_file_and_an_unknown_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no project file"):
        load_settings(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[project\n")
    with pytest.raises(ConfigError, match="not TOML"):
        load_settings(tmp_path / "broken.toml")
    with pytest.raises(ConfigError, match=r"no profile 'gpus'; known: \['embedded', 'gpu'"):
        load_settings(environment={"TTS_PROFILE": "gpus"})


@pytest.mark.parametrize(
    ("visible", "compute", "processes"),
    [
        ("", {}, 2),
        ("3", {}, 1),
        ("0,1,2,3", {}, 4),
        ("0,1", {"processes": 1}, 1),
        ("0,1", {"gpus": 1}, 1),
        ("", {"launcher": "slurm", "gpus": 8}, 8),
        ("", {"launcher": "slurm", "gpus": 1, "stages": {"sft": {"gpus": 4}}}, 4),
    ],
)
def test_one_process_per_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str, compute: dict[str, Any], processes: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Compute.model_validate(compute).shape("sft").processes == processes


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (
            {"comparisons": {"x": {"models": ["announcer", "nobody"]}}},
            "names 'nobody', which is no",
        ),
        ({"comparisons": {"x": {"models": ["announcer"] * 2}}}, "names a model twice"),
        (
            {"comparisons": {"announcer_grpo": {"models": ["announcer", "announcer_grpo"]}}},
            "choose another name",
        ),
        ({"suites": {"x": {"path": "x.jsonl", "recipes": ["nobody"]}}}, "suites.x.recipes names"),
        ({"suites": {"main": {"path": "x.jsonl"}}}, "the name is taken"),
        ({"gates": {"baseline": "nobody"}}, "gates.baseline names 'nobody'"),
    ],
)
def test_evaluation_must_name_existing_recipes(evaluation: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load({"evaluation": evaluation})


def test_prompts_of_an_unknown_corpus_are_rejected() -> None:
    prompts = {"rlhf": {"announcer_grpo": {"prompts": {"corpora": ["announcer"]}}}}
    with pytest.raises(ConfigError, match=r"rlhf.announcer_grpo.prompts has corpus 'announcer'"):
        load_settings(environment={}, overrides=prompts)


def test_corpora_of_codecs_must_exist() -> None:
    report = {"codec": {"report": {"corpora": ["announcer"]}}}
    with pytest.raises(ConfigError, match=r"\[codec\.report\] has corpus 'announcer'"):
        load_settings(environment={}, overrides=report)


def test_rules_of_texts_are_read_from_a_file_beside_the_project_file(tmp_path: Path) -> None:
    text = project_file({}).read_text() + '\n[text]\nrules = "mine.toml"\n'
    (tmp_path / PROJECT_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"cannot read .*mine.toml"):
        load_settings(tmp_path / PROJECT_FILE)
    (tmp_path / "mine.toml").write_text('[en.words]\nSQL = "sequel"\n[en.symbols]\n"→" = "to"\n')
    rules = load_settings(tmp_path / PROJECT_FILE).text.rules
    front_end = FrontEnd(rules)
    assert front_end.normalize("SQL → 3 & 4", "en-GB") == "sequel to three and four"
    assert front_end.trigger("en") != FrontEnd().trigger("en")
    (tmp_path / "mine.toml").write_text("[en.wrods]\n")
    with pytest.raises(ConfigError, match=r"text.rules.en: unknown key 'wrods'.*'words'"):
        load_settings(tmp_path / PROJECT_FILE)


def test_the_lexicon_is_read_from_a_file_and_reaches_training_only(tmp_path: Path) -> None:
    text = project_file({}).read_text() + '\n[text]\nlexicon = "lexicon.toml"\n'
    (tmp_path / PROJECT_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"\[text\] lexicon: cannot read .*lexicon.toml"):
        load_settings(tmp_path / PROJECT_FILE)
    (tmp_path / "lexicon.toml").write_text('"SQL" = "sequel /ˈsiːkwəl/"\n')
    settings = load_settings(tmp_path / PROJECT_FILE)
    assert settings.text.lexicon == {"SQL": "sequel /ˈsiːkwəl/"}
    tokenizers = [one for found in settings.tokenizers.values() for one in found]
    assert tokenizers and all(one.lexicon == settings.text.lexicon for one in tokenizers)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"SQL" = ["sequel"]', r"text\.lexicon\.SQL: Input should be a valid string"),
        ('"3D" = "three D"', r"'3D' is no single word of letters: .* \[text\] rules, under words"),
        ('"New York" = "Noo York"', "'New York' is no single word of letters"),
        ('"\'tis" = "tiz"', r"\"'tis\" is no single word of letters"),
        ('"a-" = "ay"', "'a-' is no single word of letters"),
        ('"" = "ay"', "'' is no single word of letters"),
        ('"SQL" = ""', "'' of 'SQL' is neither a respelling nor phonemes"),
        ('"SQL" = "sequel /siːkwəl"', "neither a respelling nor phonemes"),
        ('"SQL" = "s3quel"', "the respelling 's3quel' of 'SQL' is not made of letters"),
        ('"SQL" = "/s1kw@l/"', "International Phonetic Alphabet"),
        ('"SQL" = "<laugh>"', "is not made of letters"),
        ("SQL", r"\[text\] lexicon: .* is not TOML"),
    ],
)
def test_a_malformed_lexicon_is_rejected(tmp_path: Path, line: str, message: str) -> None:
    text = project_file({}).read_text() + '\n[text]\nlexicon = "lexicon.toml"\n'
    (tmp_path / PROJECT_FILE).write_text(text)
    (tmp_path / "lexicon.toml").write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        load_settings(tmp_path / PROJECT_FILE)


def test_languages_without_text_rules_are_named(caplog: pytest.LogCaptureFixture) -> None:
    corpus = {"path": "clips", "reader": "jsonl", "language": "cs-CZ"}
    load({"corpora": {"czech": corpus}})
    assert "no text rules for cs:" in caplog.text
    caplog.clear()
    load({"corpora": {"czech": corpus}, "text": {"rules": {"cs": {"decimal": ","}}}})
    assert not caplog.text


FRENCH: dict[str, Any] = {
    "corpora": {"voix": {"path": "examples/corpora/asterisk_en", "language": "fr-CA"}},
    "sft": {"voix": {"base": {"llama": {}}, "corpora": {"voix": 1.0}, "steps": 1}},
}
FRENCH["corpora"]["voix"] |= {"reader": "jsonl", "licence": "x"}
SUITE = {"path": "examples/suites/numerals.jsonl", "language": "fr", "whisper": "large-v3"}


def test_a_voice_in_another_language_is_not_evaluated_with_english_settings() -> None:
    with pytest.raises(ConfigError, match=r"evaluation.language is 'en', but 'voix' is trained on"):
        load(FRENCH)
    whole = {"language": "fr", "whisper": "large-v3"}
    with pytest.raises(ConfigError, match=r"'announcer' is trained on speech in en"):
        load(overlay(FRENCH, {"evaluation": whole}))
    english = {"suites": {"numbers": SUITE | {"language": "en", "recipes": ["voix"]}}}
    with pytest.raises(ConfigError, match=r"evaluation.suites.numbers is in en, but 'voix'"):
        load(overlay(FRENCH, {"evaluation": english}))


def test_the_main_suite_of_a_recipe_is_in_its_language() -> None:
    suites = {"english": {"path": SUITE["path"]}, "nombres": SUITE}
    settings = load(overlay(FRENCH, {"evaluation": {"suites": suites}}))
    assert settings.suites["voix"] == ["nombres"]
    assert settings.suites["announcer"] == ["main", "english"]
    graph = build_defs(settings).resolve_asset_graph()
    report = graph.get(AssetKey(["report", "voix"]))
    assert AssetKey(["suite", "nombres"]) in report.parent_keys
    assert not graph.has(AssetKey(["report", "voix", "nombres"]))
    assert graph.has(AssetKey(["report", "announcer", "english"]))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"evaluation": {"suites": {"a": {"path": "a.jsonl", "language": "fr"}}}}, "suites.a"),
        ({"evaluation": {"language": "de"}}, "evaluation.whisper"),
        ({"filters": {"max_wer": 0.2}}, "corpora.voix.filters.whisper"),
        ({"codec": {"report": {"corpora": ["voix"]}}}, "codec.report.whisper"),
    ],
)
def test_an_asr_model_that_does_not_know_the_language_is_rejected(
    changes: dict[str, Any], key: str
) -> None:
    french = {"corpora": FRENCH["corpora"]}
    with pytest.raises(ConfigError, match=rf"{key}.*knows English only.*large-v3"):
        load(overlay(french, changes))


def test_suites_with_texts_in_a_language_that_the_asr_model_does_not_know_are_rejected() -> None:
    languages = {"path": "examples/suites/languages.jsonl"}
    with pytest.raises(ConfigError, match=r"evaluation.suites.a.whisper.*knows English only"):
        load({"evaluation": {"suites": {"a": languages}}})
    load({"evaluation": {"suites": {"a": languages | {"whisper": "none"}}}})


def test_the_prompts_of_rlhf_are_in_the_language_of_the_model() -> None:
    suites = {"evaluation": {"suites": {"nombres": SUITE}}}
    prompts = {"texts": "examples/texts/announcer_rlhf.txt"}
    grpo: dict[str, Any] = {"base": "voix", "prompts": prompts}
    french = overlay(FRENCH, suites)
    with pytest.raises(ConfigError, match=r"rlhf.voix_grpo.prompts.language is 'en', but 'voix'"):
        load(overlay(french, {"rlhf": {"voix_grpo": grpo}}))
    grpo["prompts"]["language"] = "fr"
    with pytest.raises(ConfigError, match=r"rlhf.voix_grpo.rewards.*knows English only"):
        load(overlay(french, {"rlhf": {"voix_grpo": grpo}}))
    grpo["rewards"] = [{"kind": "wer", "model": "large-v3"}]
    assert load(overlay(french, {"rlhf": {"voix_grpo": grpo}})).suites["voix_grpo"] == ["nombres"]


def test_the_base_of_a_promoted_model_is_the_recipe_that_it_is_trained_from() -> None:
    own = load({}).effects
    assert own == {"announcer": {"announcer": "", "announcer_grpo": "announcer"}}
    hub = {"base": {"hub": "some/base"}, "corpora": {"asterisk_en": 1.0}}
    sft = {"plain": {**hub, "steps": 0}, "tuned": {**hub, "steps": 5}, "other": {**hub, "steps": 0}}
    sft["other"] |= {"base": {"llama": {}}}
    voice = {"candidates": ["tuned"]}
    effects = load(
        {"sft": sft, "promotion": {"mine": voice, "none": {"candidates": ["other"]}}}
    ).effects
    assert effects == own | {"mine": {"plain": "", "tuned": "plain"}}
