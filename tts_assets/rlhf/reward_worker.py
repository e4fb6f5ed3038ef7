"""A worker that judges: ``reward_workers.py`` gives it a pipe and the trainer's process id.

Reads the configurations of the rewards and its device, then tasks: the name of a reward and its
completions. Answers with their scores, or with the text of an error. The bytes are pickles, of the
process that started this one and of no other.

It does not heed SIGTERM and SIGINT, which ask the trainer to stop: that finishes its step first,
and then closes the pipe.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import NoReturn

from tts_assets.rlhf.function import RewardError
from tts_assets.rlhf.rewards import Reward, build_reward

LOOK_SECONDS = 1.0  # between two looks whether the trainer lives


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    pipe, trainer = map(int, sys.argv[1:])
    threading.Thread(target=end_with, args=(trainer,), daemon=True).start()
    try:
        serve(Connection(pipe))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the trainer has closed the pipe


def serve(connection: Connection) -> NoReturn:
    """Do tasks until the pipe is closed, which raises EOFError."""
    rewards, device = connection.recv()
    configs = {config.name: config for config in rewards}
    known: dict[str, Reward] = {}
    while True:
        name, spoken = connection.recv()
        try:
            if name not in known:
                known[name] = build_reward(configs[name], device)
            answer: object = known[name](spoken)
        except RewardError as error:
            answer = str(error)
        except Exception:  # noqa: BLE001 - told to the trainer, which ends
            answer = traceback.format_exc()
        connection.send(answer)


def end_with(trainer: int) -> NoReturn:
    """End this process as soon as its parent is gone, whatever it is doing."""
    while os.getppid() == trainer:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
