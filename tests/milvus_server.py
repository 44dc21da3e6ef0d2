"""A real Milvus server for the tests, from the PyPI wheel `milvus` (2.3.5), shut into a network namespace of its own.

That server listens on all interfaces and cannot be told otherwise. So a keeper process (this file, run as a script)
moves into a new network with only loopback, starts the server there, and passes on what comes in through one socket
that was opened on 127.0.0.1 before: a socket stays in the network it was made in. The tests stay where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

PORT, HEALTH_PORT = 19530, 9091
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def start(data_dir: Path) -> tuple[str, Callable[[], None]]:
    """Start a server whose data lies in `data_dir`; its URI and what stops it. Up in 5 to 10 s.

    RuntimeError says why there can be none. The server ends with this process, even when that is killed.
    """
    binary = find()
    if binary is None:
        raise RuntimeError(
            "no server: set VECRUN_TEST_MILVUS_URI, or pip install milvus==2.3.5 (into the venv VECRUN_TEST_MILVUS_VENV)"
        )
    if sys.platform != "linux" or os.geteuid() != 0:
        raise RuntimeError("milvus-server listens on all interfaces; only root on Linux can give it its own network")
    data_dir.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as door, (data_dir / "server.log").open("wb") as log:
        uri = f"http://127.0.0.1:{door.getsockname()[1]}"
        keeper = subprocess.Popen(
            [sys.executable, __file__, str(door.fileno()), str(binary), str(data_dir / "milvus")],
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[door.fileno()],
        )

    def stop() -> None:
        keeper.terminate()
        keeper.wait()
        assert keeper.stdout is not None
        keeper.stdout.close()
        shutil.rmtree(data_dir / "milvus", ignore_errors=True)  # 246 MB of binaries are unpacked into it

    assert keeper.stdout is not None
    ready = select.select([keeper.stdout], [], [], 90)[0]
    if not ready or keeper.stdout.readline() != b"ready\n":
        stop()
        raise RuntimeError(f"milvus-server did not start: {(data_dir / 'server.log').read_text()[-500:]}")
    return uri, stop


def find() -> Path | None:
    """The `milvus-server` of the wheel: beside this Python, in VECRUN_TEST_MILVUS_VENV, or on PATH."""
    folders = [str(Path(sys.executable).parent)]
    if venv := os.environ.get("VECRUN_TEST_MILVUS_VENV"):
        folders.append(str(Path(venv) / "bin"))
    found = shutil.which("milvus-server", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    return Path(found) if found else None


async def keep(door: socket.socket, binary: str, data: str) -> None:
    """Run the server in a private network and pass connections on to it, for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _raise_loopback()
    Path(data).mkdir(parents=True, exist_ok=True)
    # A read at Strong consistency waits for the next time tick: 200 ms by default, which made the suite take 7 minutes
    command = [binary, "--data", data, "--proxy-port", str(PORT), "--extra-config", "proxy.timeTickInterval=20"]
    server = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)

    def end(*_: object) -> None:
        # SIGTERM leaves a Milvus half stopped for minutes (measured), and its data is not kept
        os.killpg(server.pid, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    while not await asyncio.to_thread(_healthy):
        if server.poll() is not None:
            sys.exit("milvus-server ended")
        await asyncio.sleep(0.2)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await (await asyncio.start_server(_pass_on, sock=door)).serve_forever()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    there = await asyncio.open_connection("127.0.0.1", PORT)

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 20):
                sink.write(data)
                await sink.drain()
        sink.close()

    await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        flags = struct.unpack("16sh22x", fcntl.ioctl(probe, SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0)))[1]
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))


def _healthy() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{HEALTH_PORT}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    asyncio.run(keep(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3]))
