"""One try at a message: signed as Standard Webhooks says, sent once, to an address that the guard has checked."""

import json
import ssl
import time
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any

import httpcore
from httpcore import SOCKET_OPTION, NetworkBackend, NetworkStream, SyncBackend
from standardwebhooks import Webhook

from api.store.outbox import Outcome, Try
from api.webhooks.targets import Guard, Refused, parsed

TIMEOUT = 10.0  # seconds, for a try in all
_AGENT = b"Lethe-Webhooks/1"


def send(message: Try, secret: bytes, guard: Guard, moment: datetime) -> Outcome:
    """POST the message; only its status code is read of the answer. `moment` is the database's clock."""
    body = json.dumps(message.payload, separators=(",", ":")).encode()
    try:
        target = parsed(message.url)
        backend = _Checked(guard, target.scheme)
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        headers = [
            (b"Host", target.authority.encode()),
            (b"Content-Type", b"application/json"),
            (b"User-Agent", _AGENT),
            *((name.encode(), value.encode()) for name, value in signed(message.id, secret, body, moment).items()),
        ]
        limits = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT)}
        # httpcore alone: it follows no redirect and asks the environment for no proxy.
        with (
            httpcore.ConnectionPool(ssl_context=_tls(), network_backend=backend) as pool,
            pool.stream("POST", url, headers=headers, content=body, extensions=limits) as response,
        ):
            return Outcome(response.status, None if 200 <= response.status < 300 else f"answered {response.status}")
    except Refused:
        return Outcome(None, Refused.code)
    except Exception as error:  # Whatever a stranger's server does to a connection.
        return Outcome(None, type(error).__name__)


def signed(message_id: str, secret: bytes, body: bytes, moment: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks. The id is the same at every try; time and signature are each try's own."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, moment, body.decode()),
    }


@cache
def _tls() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


class _Checked(NetworkBackend):
    """Resolves and checks, then connects to what it checked; all within one deadline, also where bytes trickle in."""

    def __init__(self, guard: Guard, scheme: str) -> None:
        self._guard = guard
        self._scheme = scheme
        self._deadline = time.monotonic() + TIMEOUT

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  (the deadline holds)
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> NetworkStream:
        """To the first of the host's addresses that answers. Raises Refused unless all of them are allowed."""
        addresses = self._guard.addresses(host, port, self._scheme, _left(self._deadline))
        for address in addresses[:-1]:
            try:
                return self._connect(address, port, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._connect(addresses[-1], port, local_address, socket_options)

    def _connect(self, address: str, port: int, *rest: Any) -> NetworkStream:
        return _Hurried(SyncBackend().connect_tcp(address, port, _left(self._deadline), *rest), self._deadline)


class _Hurried(NetworkStream):
    """A stream whose every operation ends by the deadline."""

    def __init__(self, stream: NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> NetworkStream:
        # The name of the URL, not the address: the certificate is for it.
        return _Hurried(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the try took too long in all")
    return left
