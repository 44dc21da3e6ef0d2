"""Starts processes and keeps them alive: one that dies is started again, and its siblings do not notice.

dramatiq's own command line ends all workers when one is killed; here each is on its own.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: Pause before a process that died is started again, in seconds: doubles each time, and is forgotten after a quiet minute.
FIRST_PAUSE, LONGEST_PAUSE, QUIET_SECONDS = 0.5, 30.0, 60.0
#: Seconds in which a process that was asked to end has to have done so.
GRACE_SECONDS = 40.0


@dataclass
class _Place:
    """One of the processes, dead or alive."""

    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0


def supervise(
    command: Sequence[str], environment: Mapping[str, str], processes: int, stop: threading.Event, say: Callable[[str], None],
) -> bool:  # fmt: skip
    """Keep `processes` of `command` running until `stop`; then ask them to end (SIGTERM). False if one had to be killed."""
    places = [_Place() for _ in range(processes)]
    while not stop.is_set():
        clock = time.monotonic()
        for number, place in enumerate(places, 1):
            if place.process is not None and (status := place.process.poll()) is not None:
                quiet = clock - place.began > QUIET_SECONDS
                place.pause = FIRST_PAUSE if quiet else min(place.pause * 2, LONGEST_PAUSE)
                place.due, place.process = clock + place.pause, None
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                say(f"Worker {number} {how}; it is started again in {place.pause:.0f} s.")
            if place.process is None and clock >= place.due:
                place.process = subprocess.Popen(list(command), env=dict(environment), stdin=subprocess.DEVNULL)
                place.began = clock
        stop.wait(0.2)
    return _end([place.process for place in places if place.process is not None])


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    for process in processes:
        process.terminate()
    deadline, clean = time.monotonic() + GRACE_SECONDS, True
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            clean = False
    return clean
