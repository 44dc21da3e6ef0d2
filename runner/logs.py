"""Structured logs on stderr: structlog for our own lines, the same form for those of the libraries. No secret in either.

`configure` is for whoever owns the process (a command, a worker); without it nothing is shown. Fields that hold for a
while, such as the run, are set with `bound` and stand in every line until its block ends, those of libraries included.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

from runner.errors import VecrunError, redact

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger
    from structlog.types import EventDict, Processor

Form = Literal["text", "json", "auto"]
Level = Literal["debug", "info", "warning"]
#: Environment variables that go before what a command chose.
LEVEL_VARIABLE, FORM_VARIABLE = "VECRUN_LOG", "VECRUN_LOG_FORMAT"
#: Fields that say where a line comes from. The ledger's log of a run has the same run.
CONTEXT = ("run", "job", "step", "partition", "worker")
NAME = "vecrun"
#: Our own lines that come again and again while something is away, and the seconds after which one is shown again.
REPEATED, REPEAT_SECONDS = ("queue does not answer", "ledger does not answer"), 60.0


def configure(form: Form = "auto", level: Level = "info") -> None:
    """Send logs to stderr, once for the process; a second call replaces the first. Libraries are heard from warning on.

    `auto` is text on a terminal and JSON lines elsewhere. VECRUN_LOG and VECRUN_LOG_FORMAT go before both arguments;
    VecrunError names what they allow.
    """
    form, level = _chosen(FORM_VARIABLE, form, get_args(Form)), _chosen(LEVEL_VARIABLE, level, get_args(Level))
    handler = _Stderr()
    terminal = sys.stderr.isatty()
    handler.setFormatter(
        _json() if form == "json" or (form == "auto" and not terminal)
        else _text(colours=terminal and not os.environ.get("NO_COLOR"))
    )  # fmt: skip
    root = logging.getLogger()
    for old in [item for item in root.handlers if isinstance(item, _Stderr)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger(NAME).setLevel(level.upper())
    logging.captureWarnings(True)


@cache
def log() -> BoundLogger:
    """vecrun's own logger. It works before `configure`, too: whoever uses the Python API sees lines in their handlers."""
    import structlog

    ours = logging.getLogger(NAME)
    ours.addHandler(logging.NullHandler())
    made: BoundLogger = structlog.wrap_logger(
        ours, wrapper_class=structlog.stdlib.BoundLogger, cache_logger_on_first_use=True,
        processors=[
            structlog.stdlib.filter_by_level, *_shared(), structlog.processors.format_exc_info, _redacted,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
    )  # fmt: skip
    return made


def bound(**fields: Any) -> AbstractContextManager[None]:
    """Put `fields` (run, job, step, partition, worker) into every line of this thread and of tasks it copies its context to."""
    from structlog.contextvars import bound_contextvars

    return bound_contextvars(**fields)


class _Stderr(logging.StreamHandler[Any]):
    """sys.stderr as it is at each line; a line that cannot be written is not printed in its raw form."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.addFilter(_Seldom())

    @property
    def stream(self) -> IO[str]:
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """logging would print the message and its arguments, secrets and all."""
        kind = getattr(sys.exc_info()[0], "__name__", "")
        try:
            sys.stderr.write(f"a line of {record.name} could not be logged: {kind}\n")
        except (OSError, ValueError):  # stderr is closed
            return


class _Seldom(logging.Filter):
    """Lets a line of a library pass once a minute: one template of one logger. Of ours only those in `REPEATED`."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        clock, template = time.monotonic(), record.msg
        if isinstance(template, Mapping):  # ours, as structlog hands it on
            template = template.get("event", "")
            if template not in REPEATED:
                return True
        elif template == "%s":  # warnings of Python: all say what they have to say in the argument
            template = record.getMessage()
        if record.levelno < logging.WARNING:
            return True
        key = (record.name, str(template))
        if clock - self._shown.get(key, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        if len(self._shown) > 1000:
            self._shown = {old: at for old, at in self._shown.items() if clock - at < REPEAT_SECONDS}
        self._shown[key] = clock
        return True


def _shared() -> list[Processor]:
    import structlog

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]


def _formatter(*last: Processor) -> logging.Formatter:
    import structlog

    formatter = structlog.stdlib.ProcessorFormatter
    return formatter(
        foreign_pre_chain=_shared(),
        processors=[formatter.remove_processors_meta, structlog.processors.format_exc_info, _redacted, *last],
    )


def _json() -> logging.Formatter:
    import structlog

    dumps = partial(structlog.processors.JSONRenderer, ensure_ascii=False)
    return _formatter(structlog.processors.EventRenamer("message"), _ordered, dumps())


def _text(*, colours: bool) -> logging.Formatter:
    import structlog

    console = structlog.dev.ConsoleRenderer(
        colors=colours,
        timestamp_key="time",
        exception_formatter=structlog.dev.plain_traceback,  # the other one shows local variables
    )
    return _formatter(console)


def _redacted(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Every value without secrets, and nothing but what JSON has: a renderer's repr() could write a secret anew."""
    return {redact(str(key)): _plain(value) for key, value in event.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, VecrunError):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {redact(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return redact(str(value))


def _ordered(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    first = ("time", "level", "logger", "message", *CONTEXT)
    return {key: event[key] for key in (*first, *(key for key in event if key not in first)) if key in event}


def _chosen(variable: str, default: Any, allowed: tuple[str, ...]) -> Any:
    value = os.environ.get(variable, "").lower() or default
    if value not in allowed:
        raise VecrunError("No such setting of the logs", f"{variable}={value}", f"allowed: {', '.join(allowed)}")
    return value
