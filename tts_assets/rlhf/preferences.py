"""Program: makes preference pairs, from rewards or from the votes of a blind test::

    torchrun --nproc-per-node N -m tts_assets.rlhf.preferences run.json

A pair is a text with two syntheses, of which one is preferred. It has the codes of both, so that it
is valid for all models of one codec: DPO builds prompts and token ids in the format of its base.

From rewards: the best and the worst of the completions of a prompt. Seeds depend on the prompt and
on the number of the completion, not on the ranks. Each finished prompt is a file in
``checkpoints/``; a restart continues with the next ones.

From votes: reports have audio, but no codes, and the audio carries a watermark. The serving models
of the blind test therefore synthesize its texts again, with the same seeds. A trial gives a pair
only if the samples are those that the listeners heard.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from tts_assets.core.accounting import (
    SET_ASIDE_FILE,
    SetAside,
    raise_nothing_usable,
    write_set_aside,
)
from tts_assets.core.artifacts import atomic_write, sha256_file
from tts_assets.core.audio import read_wave
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config, one_thread
from tts_assets.rlhf.config import RlhfProgram
from tts_assets.rlhf.dpo_config import (
    PREFERENCES_FILE,
    Answer,
    PreferencePair,
    PreferencesProgram,
    VotedTrial,
)
from tts_assets.rlhf.prompts import RolloutPrompt, read_prompts
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.rollouts import Rollout, RolloutWorker, hold_out, open_engine
from tts_assets.serving.config import Voice
from tts_assets.serving.served_model import SynthesisLine, read_card
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine

PAIRS_STEP = -2  # in the seeds of completions: not a step of training, nor held out
# Of a sample in [-1, 1]: 16 bits round by 2e-5, other kernels of a GPU change 1e-4; the speech of
# other codes differs by 0.1.
SAME_AUDIO = 1e-3


Outcome = PreferencePair | SetAside


def main(argv: list[str] | None = None) -> None:
    """Makes the pairs that the program on the command line asks for."""
    program = load_config(PreferencesProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        if program.rollouts is not None:
            asked = make_from_rollouts(run, program.rollouts, program.pairs)
            models = [program.rollouts.serving_model]
        else:
            models = list(program.models.values())
            asked = [trial.id for trial in program.trials]
            if run.is_main:
                with one_thread():  # as the program of reports
                    for outcome in from_votes(program.trials, program.models, str(run.device)):
                        write_outcome(run, outcome)
        if run.is_main:
            run.finish(write_result(run, asked, read_card(models[0]).codec))


def write_result(run: Run, asked: Sequence[str], codec: str) -> dict[str, Any]:
    """Writes ``preferences.jsonl`` and ``set_aside.jsonl``. Returns the facts of the artifact.

    Raises NothingUsableError if no pair is left.
    """
    outcomes = [read_outcome(run, name) for name in asked]
    pairs = [one for one in outcomes if isinstance(one, PreferencePair)]
    left_out = [one for one in outcomes if isinstance(one, SetAside)]
    if not pairs:
        raise_nothing_usable("there is no preference pair", left_out)
    lines = "".join(pair.model_dump_json() + "\n" for pair in pairs)
    (run.result_dir / PREFERENCES_FILE).write_text(lines, encoding="utf-8")
    write_set_aside(run.result_dir / SET_ASIDE_FILE, left_out)
    return {"asked": len(asked), "pairs": len(pairs), "set_aside": len(left_out), "codec": codec}


def outcome_file(run: Run, name: str) -> Path:
    """Returns the file of one prompt or trial in ``checkpoints/``."""
    return run.checkpoint_dir / f"{name}.json"


def write_outcome(run: Run, outcome: Outcome) -> None:
    """Writes the pair of a prompt or trial, or why there is none."""
    if isinstance(outcome, PreferencePair):
        name, record = outcome.id, {"pair": outcome.model_dump(mode="json")}
    else:
        name, record = outcome.what, {"set_aside": asdict(outcome)}
    with atomic_write(outcome_file(run, name)) as aside:
        aside.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


def read_outcome(run: Run, name: str) -> Outcome:
    """Reads what :func:`write_outcome` wrote."""
    path = outcome_file(run, name)
    record = json.loads(path.read_text(encoding="utf-8"))
    if "pair" in record:
        return PreferencePair.parse(record["pair"], str(path))
    return SetAside(**record["set_aside"])


def make_from_rollouts(run: Run, program: RlhfProgram, count: int) -> list[str]:
    """Completes and scores up to ``count`` prompts on all ranks, and writes their outcomes.

    Returns the names of all outcomes in order. Ends the program if it was asked to stop.
    """
    recipe = program.recipe
    prompts, _ = hold_out(read_prompts(program.prompts), recipe.heldout)
    order = np.random.default_rng([recipe.seed, 0]).permutation(len(prompts))[:count]
    names = [f"prompt-{index:06d}" for index in range(len(order))]
    size = recipe.prompts_per_step
    rounds = [range(first, min(first + size, len(names))) for first in range(0, len(names), size)]
    left = [one for one in rounds if not all(outcome_file(run, names[i]).exists() for i in one)]
    if dist.is_initialized():
        dist.barrier()  # all ranks have listed the finished rounds
    synthesizer = Synthesizer.open(program.serving_model, device=str(run.device))
    assert isinstance(synthesizer.engine, TransformersEngine)
    with (
        open_engine(run, program.engine_program(), synthesizer.engine.lm) as engine,
        closing(RewardExecutor.open(recipe, synthesizer, run.rank)) as rewards,
    ):
        worker = RolloutWorker(
            synthesizer, engine, rewards, recipe.sampling.complete(), recipe.seed
        )
        start = len(rounds) - len(left)
        for one in run.progress(left, "preferences", total=len(rounds), start=start):
            each = -(-len(one) // run.world_size)
            own = one[run.rank * each : (run.rank + 1) * each]
            chosen = [prompts[order[i]] for i in own for _ in range(recipe.generations)]
            rollouts = worker.run(chosen, PAIRS_STEP, own.start * recipe.generations)
            for number, i in enumerate(own):
                first = number * recipe.generations
                group = rollouts[first : first + recipe.generations]
                prompt = prompts[order[i]]
                write_outcome(run, best_and_worst(names[i], prompt, group, recipe.base))
            if run.should_stop():
                run.stopped()
    if dist.is_initialized():
        dist.barrier()  # rank 0 reads the outcomes of all ranks
    return names


def best_and_worst(
    name: str, prompt: RolloutPrompt, rollouts: Sequence[Rollout], model: str
) -> Outcome:
    """Returns the pair of a prompt: the completions with the largest and the smallest reward."""
    best = max(rollouts, key=lambda one: one.result.total)
    worst = min(rollouts, key=lambda one: one.result.total)
    margin = best.result.total - worst.result.total
    if margin <= 0:
        detail = f"all {len(rollouts)} completions have the reward {best.result.total:.3f}"
        return SetAside(name, "equal rewards", detail)
    chosen, rejected = (
        Answer(codes=tuple(map(int, one.codes)), ended=one.ended, model=model)
        for one in (best.completion, worst.completion)
    )
    return PreferencePair(
        id=name, chosen=chosen, rejected=rejected, margin=round(margin, 6), **prompt.model_dump()
    )


def from_votes(
    trials: Sequence[VotedTrial], models: Mapping[str, Path], device: str
) -> Iterator[Outcome]:
    """Yields the pair of each trial, or why there is none, in their order.

    Raises :class:`ConfigError` if the models have different codecs.
    """
    codecs = {name: read_card(folder).codec for name, folder in models.items()}
    if len(set(codecs.values())) > 1:
        raise ConfigError(
            f"the models {', '.join(codecs)} have different codecs, and a pair has codes of one: "
            "compare models of one codec"
        )
    usable = [trial for trial in trials if not trial.reason]
    answers: dict[str, dict[str, Answer | SetAside]] = {}
    voices: dict[Path, Voice] = {}
    for name, folder in models.items():
        own = [trial for trial in usable if name in (trial.chosen, trial.rejected)]
        if own:
            synthesizer = Synthesizer.open(folder, device=device)
            answers[name] = synthesized_again(synthesizer, name, own, voices)
    for trial in trials:
        if trial.reason:
            yield SetAside(trial.id, trial.reason, trial.text)
        else:
            sides = [answers[name][trial.id] for name in (trial.chosen, trial.rejected)]
            voice = voices[trial.prompt_wav] if trial.prompt_wav else None
            yield pair_of_votes(trial, sides, voice)


def pair_of_votes(
    trial: VotedTrial, sides: Iterable[Answer | SetAside], voice: Voice | None
) -> Outcome:
    """Returns the pair of a trial, whose ``sides`` are chosen and rejected."""
    chosen, rejected = sides
    for side in (chosen, rejected):
        if isinstance(side, SetAside):
            return side
    assert isinstance(chosen, Answer) and isinstance(rejected, Answer)
    if chosen.codes == rejected.codes:
        return SetAside(trial.id, "both models say the same", trial.text)
    about = {"text": trial.text, "language": trial.language, "description": trial.description}
    return PreferencePair(
        id=trial.id, voice=voice, chosen=chosen, rejected=rejected, margin=trial.margin, **about
    )


def synthesized_again(
    synthesizer: Synthesizer, model: str, trials: Sequence[VotedTrial], voices: dict[Path, Voice]
) -> dict[str, Answer | SetAside]:
    """Returns the answer of a model to each trial, by trial; see the module's description.

    ``voices``: voice prompts by their recording; new ones are added.
    """
    for trial in trials:
        if trial.prompt_wav and trial.prompt_wav not in voices:
            wave = read_wave(trial.prompt_wav, synthesizer.codec.input_rate)
            voice = synthesizer.new_voice(wave, trial.prompt_text, trial.language)
            source = sha256_file(trial.prompt_wav)
            voices[trial.prompt_wav] = voice.model_copy(update={"source": source})
    lines = [
        SynthesisLine(
            trial.text,
            voices[trial.prompt_wav] if trial.prompt_wav else None,
            trial.seed,
            trial.description,
            trial.language,
        )
        for trial in trials
    ]
    answers: dict[str, Answer | SetAside] = {}
    for trial, line, speech in zip(trials, lines, synthesizer.synthesize(lines), strict=True):
        heard = read_wave(trial.audio[model], synthesizer.sample_rate)
        if not in_one_piece(synthesizer, line):
            answers[trial.id] = SetAside(trial.id, "synthesized in several pieces", trial.text)
        elif len(heard) != len(speech.wave) or differs(heard, speech.wave):
            detail = f"{model} does not synthesize the audio of the blind test again"
            answers[trial.id] = SetAside(trial.id, "other audio than in the blind test", detail)
        else:
            codes = tuple(map(int, speech.codes))
            answers[trial.id] = Answer(codes=codes, ended=speech.ended, model=model)
    return answers


def in_one_piece(synthesizer: Synthesizer, line: SynthesisLine) -> bool:
    """Whether a line is one request, with the prompt that DPO builds for its text."""
    pieces = synthesizer.piece_requests(line, synthesizer.card.sampling)
    whole = synthesizer.request(line, 0).prompt
    return len(pieces) == 1 and np.array_equal(pieces[0].request.prompt, whole)


def differs(heard: np.ndarray[Any, Any], wave: np.ndarray[Any, Any]) -> bool:
    """Whether two waveforms of shape (samples,) are not the same speech."""
    return bool(np.abs(heard - np.clip(wave, -1.0, 1.0)).max(initial=0.0) > SAME_AUDIO)


if __name__ == "__main__":
    main()
