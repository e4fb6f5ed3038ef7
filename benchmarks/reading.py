"""Which options make a small SpeechLM use its text: an ablation of the embedded recipe.

    python benchmarks/reading.py [--steps 1000]

Trains the recipe of the preset ``scratch-cpu`` four times on the arrays of ``make demo``:
unchanged, without growing groups (``grow_epochs``), without hidden codes (``code_dropout``), and
without both. Then it measures the loss a word, in nats, of random digit strings that are
concatenated from recordings of
digits: after their own text, and after the text of another string. An over-fitted model that
ignores the text has the same loss for both. A model that uses the text has a low loss after its own
text and a high loss after the other. Prints a Markdown table. A row takes about six minutes on one
core.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from tts_assets.core.artifacts import ArtifactStore
from tts_assets.project_file import preset_values
from tts_assets.settings import load_settings
from tts_assets.sft.config import SftProgram, SftRecipe
from tts_assets.sft.dataset import UtteranceDataset
from tts_assets.sft.epochs import Encoded, TrainingSample
from tts_assets.sft.model import SpeechLoss, prepare
from tts_assets.sft.packing import pack
from tts_assets.sft.train import main
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STRINGS = 48


def variants(recipe: SftRecipe, steps: int) -> dict[str, SftRecipe]:
    """The recipe with fewer steps and proportional ``grow_epochs``, and its ablations."""
    assert recipe.steps is not None and recipe.concatenate is not None
    grow = round(recipe.concatenate.grow_epochs * steps / recipe.steps)
    growing = recipe.concatenate.model_copy(update={"grow_epochs": grow})
    at_once = recipe.concatenate.model_copy(update={"grow_epochs": 0})
    short = recipe.model_copy(update={"steps": steps, "concatenate": growing, "sample_texts": 0})
    return {
        "as it is": short,
        "without grow_epochs": short.model_copy(update={"concatenate": at_once}),
        "without code_dropout": short.model_copy(update={"code_dropout": 0.0}),
        "without both": short.model_copy(update={"concatenate": at_once, "code_dropout": 0.0}),
    }


def digit_strings(dataset: UtteranceDataset, count: int) -> list[tuple[int, ...]]:
    """Random strings of 3 to 6 digits, as utterances of the dataset."""
    texts = [dataset.transcript(u).strip(" .").lower() for u in range(len(dataset))]
    digits = [texts.index(word) for word in DIGITS]
    random = np.random.default_rng(5)
    return [tuple(random.choice(digits, size=random.integers(3, 7))) for _ in range(count)]


def with_text_of(
    dataset: UtteranceDataset, utterances: tuple[int, ...], other: tuple[int, ...]
) -> Encoded:
    """The codes of ``utterances`` after the text of ``other``."""
    codes, text = (dataset.encode(TrainingSample(u, 0, 0)) for u in (utterances, other))
    head, start = text.inputs[: text.first + 2], codes.first + 2
    inputs = np.concatenate([head, codes.inputs[start:]])
    targets = np.append(inputs[1:], codes.targets[-1])
    return Encoded(inputs, targets, text.first)


@torch.no_grad()
def nats_a_word(lm: SpeechLM, arrays: Path) -> tuple[float, float]:
    """The mean loss of a word in nats, after its own text and after that of another string."""
    dataset = UtteranceDataset(
        {"corpus": arrays}, "train", PromptFormat(lm.tokenizer, lm.vocabulary), 1024
    )
    strings = digit_strings(dataset, STRINGS)
    prepare(lm.model, dropout=0.0)
    loss = SpeechLoss(lm.model, bf16=False).eval()
    own = sum(float(loss(pack([dataset.encode(TrainingSample(s, 0, 0))]))[0]) for s in strings)
    others = [*strings[1:], strings[0]]
    pairs = zip(strings, others, strict=True)
    swapped = sum(float(loss(pack([with_text_of(dataset, s, other)]))[0]) for s, other in pairs)
    words = sum(map(len, strings))
    return own / words, swapped / words


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    settings = load_settings()
    scratch = preset_values("scratch-cpu", ["announcer"], [], "")["sft"]["announcer"]
    recipe = SftRecipe(corpora=settings.sft["announcer"].corpora, **scratch)
    store = ArtifactStore(settings.storage)
    arrays = {name: store.current("code_arrays", name) for name in recipe.corpora}
    facts = next(iter(arrays.values())).facts
    folders = {name: handle.path for name, handle in arrays.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {steps} steps\n")
    print("| recipe | own text, nats a word | another string's text |\n|---|---|---|")
    for name, variant in variants(recipe, steps).items():
        with tempfile.TemporaryDirectory() as folder:
            program = SftProgram(
                run_dir=Path(folder),
                name="reading",
                recipe=variant,
                arrays=folders,
                codec=facts.codec,
                sample_rate=facts.sample_rate,
                token_rate=facts.token_rate,
                codebook_size=facts.codebook_size,
            )
            config = Path(folder) / "run.json"
            config.write_text(program.to_json())
            main([str(config)])
            lm = SpeechLM.load(Path(folder) / "result", facts.codebook_size)
            own, swapped = nats_a_word(lm, next(iter(folders.values())))
        print(f"| {name} | {own:.2f} | {swapped:.2f} |", flush=True)


if __name__ == "__main__":
    run()
