"""A corpus of recordings of which everything is known, and how to segment it by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.corpora.layouts import index
from tests.corpora.segments.recordings import Said, record
from tts_assets.artifacts import ArtifactStore, Build, CorpusFacts, RawCorpus, SegmentFacts
from tts_assets.corpora.segments.config import SegmentConfig, SegmentProgram
from tts_assets.corpora.segments.segment import main
from tts_assets.corpora.whisper import packaged_model
