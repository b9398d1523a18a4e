"""The service benchmark counts right, and each of its parts runs."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks import clients, service, service_million, service_queue
from benchmarks.clients import Call, Seen, at, drive
from benchmarks.service import Scale, measure, summary, table
from benchmarks.service_stack import Servers, servers

TINY = Scale(
    clients=4, api_workers=(1,), seconds=0.4, rounds=1, few=60, many=120, read_seconds=0.1, starts=2, queued=4,
    queued_for_fewer=3, workers=(1,),
)  # fmt: skip


@pytest.fixture(scope="module")
def on() -> Iterator[Servers]:
    with servers(None) as running:
        yield running


def test_shares_are_nearest_ranks() -> None:
    hundred = [n / 100 for n in range(100, 0, -1)]
    assert (at(0.5, hundred), at(0.99, hundred), at(1.0, hundred)) == (0.5, 0.99, 1.0)
    assert at(0.99, [3.0]) == 3.0
    assert at(0.5, [1.0, 2.0, 3.0]) == 2.0


def test_ratios_are_taken_within_a_round() -> None:
    def seen(rate: int, duration: float) -> dict[str, Seen]:
        return {operation: Seen(1.0, [duration] * rate) for operation in ("create", "read")}

    # The machine is half as fast in the second round, and no slower for one than for the other.
    rounds = [
        {"lethe": seen(400, 0.01), "mlflow": seen(100, 0.04)},
        {"lethe": seen(200, 0.02), "mlflow": seen(50, 0.08)},
    ]
    row = summary(rounds)["read"]["mlflow"]
    assert (row["a_second"], row["ours_is_times"], row["our_p99_over_its"]) == (75.0, 4.0, 0.25)
    assert row["p50"] == 60.0


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(BrokenPipeError):  # One client does not wait for its answer.
            super().handle()

    def do_POST(self) -> None:
        if self.path == "/slow":
            time.sleep(0.5)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, self.headers["Idempotency-Key"], json.loads(body)["n"]))  # type: ignore[attr-defined]
        self.send_response(500 if self.path == "/bad" else 201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # In two pieces, as a slow network would.
        self.wfile.write(body[:3])
        self.wfile.flush()
        self.wfile.write(body[3:])

    def log_message(self, *_: object) -> None:
        pass


def test_every_client_waits_for_its_answer_and_no_number_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.heard = heard = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    call = Call("POST", ["/good"], 201, ("Idempotency-Key: case-{n}",), '{"n": {n}, "more": "text"}')
    seen = drive(server.server_address[1], call, 3, 0.3, 100)
    assert len(heard) == len(seen.durations) + 3  # the last answer of each comes after the end
    assert sorted(n for _, _, n in heard) == list(range(100, 100 + len(heard)))
    assert all(key == f"case-{n}" for _, key, n in heard)
    assert 0.3 <= seen.seconds < 1
    assert seen.rate == len(seen.durations) / seen.seconds
    with pytest.raises(RuntimeError, match="was answered"):
        drive(server.server_address[1], replace(call, paths=["/bad"]), 1, 1.0, 0)
    slow = drive(server.server_address[1], replace(call, paths=["/slow"]), 1, 0.1, 0)
    assert len(slow.durations) == 1
    assert slow.seconds >= slow.durations[0] >= 0.5
    monkeypatch.setattr(clients, "_PATIENCE", 0.2)
    with pytest.raises(RuntimeError, match="/slow was not answered within 0 s"):
        drive(server.server_address[1], replace(call, paths=["/slow"]), 1, 0.1, 0)
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_service_is_measured_by_its_parts(on: Servers) -> None:
    result = measure(on, {"api", "million"}, None, TINY)
    (run,) = result["api"]
    assert run["create"]["lethe"]["a_second"] > 0
    assert run["read"]["lethe"]["p99"] >= run["read"]["lethe"]["p50"] > 0
    assert set(result["million"]["milliseconds"]) == set(service_million._reads(120))
    assert len(table(result)) == 2 + len(service_million._reads(120))
    assert json.loads(json.dumps(result)) == result


def test_jobs_begin_and_end(on: Servers) -> None:
    begun = service_queue.start(on, 2)
    assert 0 < begun["p50"] <= begun["p99"] <= begun["max"] < 30
    drained = service_queue.drain(on, 4, 1)
    assert (drained["succeeded"], drained["worked"]) == (4, 1)
    assert drained["a_second"] > 0


def test_the_full_scale_is_that_of_the_note() -> None:
    full = Scale()
    assert (full.clients, full.api_workers, full.many, full.queued, max(full.workers)) == (32, (1, 2), 10**6, 2_000, 4)
    assert service.PARTS == ("api", "peers", "million", "start", "queue")
