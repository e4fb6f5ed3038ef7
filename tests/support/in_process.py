"""The definitions of the project, with programs in the process of the Dagster run."""

from tests.sensors.conftest import InProcess
from tts_assets.definitions import build_defs
from tts_assets.settings import load_settings

defs = build_defs(load_settings(), {"launcher": InProcess()})
