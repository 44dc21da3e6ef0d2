"""Starts `python -m MODULE` without the second or two that its imports take: from a process that has done them already.

What is started is a process like any other, with a pid, streams, an environment and a folder of its own, and it is
killed, stopped and waited for like any other: `Popen` is subprocess's. Only what is about the start itself needs a cold one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import runner

#: What the children of most tests import, besides vecrun itself; whatever else they need they import themselves.
IMPORTED = (
    "alembic.command", "dramatiq.brokers.redis", "dramatiq.brokers.stub", "httpx", "psycopg", "psycopg2", "pyarrow.parquet",
    "sqlalchemy.dialects.postgresql.psycopg2", "sqlalchemy.dialects.sqlite", "structlog", "tiktoken",
)  # fmt: skip
#: Parts of vecrun that few children need, and whose clients take seconds.
SELDOM = (
    "__main__",
    "demo",
    "migrations",
    "sentence_transformers",
    "milvus",
    "qdrant",
    "weaviate",
    "wordllama",
    "minilm",
)
_LENGTH = 8

__all__ = ["PIPE", "STDOUT", "Popen", "also", "run"]


class Popen(subprocess.Popen[Any]):
    """As subprocess.Popen, for commands (sys.executable, "-m", MODULE, …)."""

    def _execute_child(  # type: ignore[override]
        self, args: Sequence[str], executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any,
        startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, *_rest: Any,
    ) -> None:  # fmt: skip
        if list(args[:2]) != [sys.executable, "-m"]:
            raise ValueError(f"{args}: only python -m MODULE")
        order = {"args": list(args[2:]), "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        self._door, theirs = socket.socketpair()
        streams = [mine if given == -1 else given for mine, given in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            with theirs:
                socket.send_fds(_keeper(), [json.dumps(order).encode()], [*streams, theirs.fileno()])
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        self.pid = self._number()
        self._child_created = True

    def _number(self) -> int:
        """What the keeper says next: the pid, then the exit status."""
        said = self._door.recv(_LENGTH, socket.MSG_WAITALL)
        if len(said) < _LENGTH:
            raise RuntimeError("the process that all others are forked from has ended")
        return int.from_bytes(said, "little", signed=True)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not select.select([self._door], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._number()
            self._door.close()
        return self.returncode


def run(
    args: Sequence[str], *, timeout: float = 60, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """As subprocess.run."""
    with Popen(args, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


#: Besides IMPORTED, for who starts more of other kinds. Looked at once, before the first start.
also: list[str] = []
_opened: socket.socket | None = None
_lock = threading.Lock()


def _keeper() -> socket.socket:
    """The way to a keeper of ours, which ends with this process."""
    global _opened
    with _lock:
        if _opened is None:
            _opened, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, "-m", __name__, str(theirs.fileno()), *also]
            folder = Path(__file__).parents[1]
            with theirs:
                process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=folder, stdin=subprocess.DEVNULL)
            atexit.register(process.wait)
            atexit.register(_opened.close)
        return _opened


# -- the keeper: imports, and forks ------------------------------------------------------------------------------------


def _serve(orders: socket.socket) -> tuple[list[str], dict[str, str]] | None:
    """Fork until nobody is left to ask for it: None. In a child: its arguments and its environment."""
    living: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> pid, who waits for its end
    while True:
        for ready in select.select([orders, *living], [], [])[0]:
            if ready is not orders:
                pid, door = living.pop(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.close(ready)
                with door, contextlib.suppress(OSError):  # nobody may be interested any more
                    door.send(status.to_bytes(_LENGTH, "little", signed=True))
                continue
            said, fds, _, _ = socket.recv_fds(orders, 1 << 20, 4)
            if not said:
                for pid, _door in living.values():
                    os.kill(pid, signal.SIGKILL)
                return None
            order = json.loads(said)
            pid = os.fork()
            if pid == 0:
                for item in living:
                    os.close(item)
                for door in (orders, *(door for _, door in living.values())):
                    door.close()
                for number, fd in enumerate(fds):
                    if number < 3:
                        os.dup2(fd, number)
                    os.close(fd)
                os.chdir(order["cwd"])
                return order["args"], order["env"]
            door = socket.socket(fileno=fds.pop())
            for fd in fds:
                os.close(fd)
            living[os.pidfd_open(pid)] = pid, door
            with contextlib.suppress(OSError):
                door.send(pid.to_bytes(_LENGTH, "little", signed=True))


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; the end of their socket ends this process
    ours = pkgutil.walk_packages(runner.__path__, "runner.", onerror=lambda _: None)
    names = [found.name for found in ours if not {*SELDOM} & {*found.name.split(".")}]
    for name in (*IMPORTED, *names, *sys.argv[2:]):
        with contextlib.suppress(Exception):  # whoever needs it is told
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        import pyarrow as pa

        pa.array([1])  # it imports pandas, if there is one
    gc.collect()
    gc.freeze()
    child = _serve(socket.socket(fileno=int(sys.argv[1])))
    if child is None:
        return
    (module, *arguments), environment = child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    sys.argv = [module, *arguments]
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [str(Path.cwd()), *filter(None, given)]
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
        if status and status is not exc.code:
            print(exc.code, file=sys.stderr)  # noqa: T201
    except BaseException:
        traceback.print_exc()
        status = 1
    # as the interpreter ends, except that it does not take apart what was imported: that would copy all memory
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    _main()
