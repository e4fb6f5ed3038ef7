"""The speakers of a recording: phrases of a wanted speaker, or diarization of all speakers.

Windows of 1.6 s of speech, every 0.4 s, are embedded by Resemblyzer and compared with the
reference of the wanted speaker, or with the mean embedding of each speaker that clustering finds.
The lowest window decides about a clip. The embedding of a whole clip hides a short part: with a
threshold of 0.75 on it, 88 to 95 % of clips that contain 1 to 3 s of another voice were kept; with
0.6 on the lowest window 49 % with 1 s, 4 % with 1.5 s and 1 % with 2 s or more, and 95 % of clips
of one voice (measured on 13 speakers, ten of them of LibriSpeech).

Diarization clusters the embeddings of phrases by average linkage of their cosine distances. Of 120
recordings made of phrases of 1 to 4 of these speakers, all had the right number of speakers, and
99.9 % of the speech was in the cluster of its speaker. ``pyannote.audio`` and ``sherpa-onnx`` are
not used: their packages contain no weights, and their weights need an account or a further
download, whereas the weights of Resemblyzer are part of its package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tts_assets.audio_models.speaker_similarity import Embedding, SpeakerEncoder
from tts_assets.core.audio import Wave
from tts_assets.corpora.segments.speech import RATE
from tts_assets.corpora.segments.words import ANOTHER, Phrase

SHORTEST = 1.0  # s of speech of a phrase; shorter ones have no reliable embedding
PHRASE_MARGIN = 0.05  # a phrase is another speaker's if it is so far below the limit of windows
LARGEST_DISTANCE = 0.35  # between two clusters of one speaker; 0.3 and 0.4 gave wrong numbers too
LEAST_SECONDS, LEAST_SHARE = 3.0, 0.05  # of speech: a smaller cluster is no speaker
MOST_PHRASES = 4000  # that are clustered: 128 MB of distances; further ones join the nearest

Embeddings = NDArray[np.float32]  # unit vectors (n, 256)


@dataclass(frozen=True)
class Voices:
    """The speakers of a recording, and its phrases with the indices of their speakers.

    ``speakers`` are unit vectors (speakers, 256). ``least``: similarity that all windows of a clip
    must have; None: each window must be nearer to its own speaker than to the others.
    """

    encoder: SpeakerEncoder
    speakers: Embeddings
    phrases: list[Phrase]
    least: float | None = None

    def speaker_of(self, run: Sequence[Phrase]) -> int | None:
        """The index of the speaker of a run; None if all of its phrases are too short to say."""
        return next((p.speaker for p in run if p.speaker is not None), None)

    def assess(self, wave: Wave, run: Sequence[Phrase]) -> tuple[int, float, bool]:
        """Speaker of a clip, the lowest similarity of its windows to it, and whether it is alone.

        ``wave`` is the recording at 16 kHz.
        """
        similarities = self.encoder.windows(speech_of(wave, run)) @ self.speakers.T
        named = self.speaker_of(run)
        speaker = int(similarities.mean(axis=0).argmax()) if named is None else named
        lowest = float(similarities[:, speaker].min())
        if self.least is not None:
            return speaker, lowest, lowest >= self.least
        return speaker, lowest, bool((similarities.argmax(axis=1) == speaker).all())


def wanted_speaker(
    encoder: SpeakerEncoder, reference: Embedding, least: float, wave: Wave, phrases: list[Phrase]
) -> Voices:
    """The phrases of a recording (16 kHz) labelled as those of one speaker, or of another."""
    labelled = []
    for phrase in phrases:
        if phrase.speech.seconds >= SHORTEST:
            near = float(np.median(encoder.windows(speech_of(wave, [phrase])) @ reference))
            phrase = replace(phrase, speaker=0 if near >= least - PHRASE_MARGIN else ANOTHER)
        labelled.append(phrase)
    return Voices(encoder, reference[np.newaxis], labelled, least)


def diarized(encoder: SpeakerEncoder, wave: Wave, phrases: list[Phrase]) -> Voices:
    """The speakers of a recording (16 kHz), the one with the most speech first.

    Phrases of voices with too little speech are another speaker's.
    """
    long = [i for i, phrase in enumerate(phrases) if phrase.speech.seconds >= SHORTEST]
    if not long:
        return Voices(encoder, np.zeros((0, 256), np.float32), phrases)
    means = np.stack(
        [unit(encoder.windows(speech_of(wave, [phrases[i]])).mean(axis=0)) for i in long]
    )
    seconds = np.array([phrases[i].speech.seconds for i in long])
    clusters = clustered(means)
    totals = np.bincount(clusters, weights=seconds)
    least = max(LEAST_SHARE * totals.sum(), min(LEAST_SECONDS, totals.max()))
    order = [int(c) for c in np.argsort(-totals, kind="stable") if totals[c] >= least]
    index = {cluster: number for number, cluster in enumerate(order)}
    labels = {i: index.get(int(c), ANOTHER) for i, c in zip(long, clusters, strict=True)}
    speakers = np.stack([unit(means[clusters == c].mean(axis=0)) for c in order])
    named = [replace(phrase, speaker=labels.get(i)) for i, phrase in enumerate(phrases)]
    return Voices(encoder, speakers, named)


def clustered(embeddings: Embeddings) -> NDArray[np.int64]:
    """The cluster of each embedding, (n,)."""
    if len(embeddings) < 2:
        return np.zeros(len(embeddings), dtype=np.int64)
    from sklearn.cluster import AgglomerativeClustering

    some = embeddings[:: -(-len(embeddings) // MOST_PHRASES)]
    clustering = AgglomerativeClustering(
        n_clusters=None, distance_threshold=LARGEST_DISTANCE, metric="cosine", linkage="average"
    )
    found = clustering.fit_predict(some)
    if len(some) == len(embeddings):
        return np.asarray(found)
    centres = np.stack([unit(some[found == c].mean(axis=0)) for c in range(found.max() + 1)])
    return np.asarray((embeddings @ centres.T).argmax(axis=1))


def speech_of(wave: Wave, phrases: Sequence[Phrase]) -> Wave:
    """The speech of phrases without the pauses between them; ``wave`` has 16 kHz."""
    parts = (phrase.speech for phrase in phrases)
    return np.concatenate([wave[round(p.start * RATE) : round(p.end * RATE)] for p in parts])


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector (n,) scaled to length 1."""
    return (vector / np.linalg.norm(vector)).astype(np.float32)
