"""The service as seen from outside, for the command line, the demo and the benchmarks."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from core.errors import LetheError

TERMINAL = ("succeeded", "failed", "cancelled", "rejected")
Told = Callable[[str, Mapping[str, Any]], None]


class ServiceError(LetheError):
    """The service refused a request, or a job did not succeed."""

    code = "service"
    exit_code = 1


class Client:
    """One API key's view of a service. `idle` is called often while something is waited for."""

    def __init__(self, url: str, key: str, idle: Callable[[], None] = lambda: None) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        self._idle = idle

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """What the service answers to GET. Raises ServiceError."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._checked(self._send("GET", path, params=given))

    def post(self, path: str, body: Mapping[str, Any] | None = None, **content: Any) -> dict[str, Any]:
        """What it answers to POST, of a JSON body or of other `content` as httpx takes it. Raises ServiceError."""
        if body is not None:
            content["json"] = dict(body)
        return self._checked(self._send("POST", path, **content))

    def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What it answers to PUT. Raises ServiceError."""
        return self._checked(self._send("PUT", path, json=dict(body)))

    def delete(self, path: str) -> dict[str, Any]:
        """What it answers to DELETE. Raises ServiceError."""
        return self._checked(self._send("DELETE", path))

    def pages(self, path: str, most: int, **query: Any) -> Iterator[dict[str, Any]]:
        """The entries of a list, newest first, at most so many. Raises ServiceError."""
        after: str | None = None
        while most > 0:
            page = self.get(path, after=after, limit=min(most, 200), **query)
            yield from page["data"]
            most -= len(page["data"])
            after = page["after"]
            if not page["has_more"]:
                return

    def content(self, path: str, accept: str) -> bytes:
        """A document as bytes, of this media type. Raises ServiceError."""
        answer = self._send("GET", path, headers={"Accept": accept})
        self._checked(answer, json_expected=False)
        return answer.content

    def upload(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """Upload records; returns the data set's id. Raises ServiceError."""
        lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        return str(self.upload_lines(b"".join(lines))["id"])

    def upload_lines(self, lines: bytes | Iterable[bytes], name: str | None = None) -> dict[str, Any]:
        """Upload JSON lines as they are, whole or piece by piece; returns the data set. Raises ServiceError."""
        query = {} if name is None else {"name": name}
        return self.post("/datasets", content=lines, headers={"Content-Type": "application/jsonl"}, params=query)

    def register(self, model: Path) -> str:
        """Register a model folder; returns its id. Raises ServiceError."""
        return str(self.post("/models", {"path": str(model)})["id"])

    def submit(self, spec: Mapping[str, Any]) -> str:
        """Submit a forget request; returns the job's id. Raises ServiceError."""
        return str(self.post("/jobs", spec)["id"])

    def job(self, job: str) -> dict[str, Any]:
        """The job as it stands. Raises ServiceError."""
        return self.get(f"/jobs/{job}")

    def follow(self, job: str, told: Told) -> dict[str, Any]:
        """Pass on the job's events, kind and data, until it ends, reconnecting where the stream breaks off.

        Returns the job. Raises ServiceError where it did not succeed. Left early, by an error or Ctrl-C, it asks the
        service to cancel the job: nobody is waiting for it any more.
        """
        try:
            ended = self.watch(job, told)
        except BaseException:
            with suppress(httpx.HTTPError):
                self._http.post(f"/jobs/{job}/cancel", timeout=2)
            raise
        if ended["status"] != "succeeded":
            error = ended.get("error") or {}
            raise ServiceError(f"The job {job} {ended['status']}: {error.get('message', 'no reason was given')}")
        return ended

    def download(self, job: str, folder: Path, kind: str | None = None) -> Path:
        """Every artifact of the job, or of this kind, under its own name below `folder`, which is returned; those that
        are kept sealed are not given out. Raises ServiceError."""
        for artifact in self.get(f"/jobs/{job}/artifacts")["data"]:
            if artifact["sealed"] or kind not in (None, artifact["kind"]):
                continue
            target = folder / artifact["name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._http.stream("GET", f"/jobs/{job}/artifacts/{artifact['name']}") as stream:
                if stream.is_error:
                    raise ServiceError(f"{artifact['name']} was answered {stream.status_code}")
                with target.open("wb") as file:
                    for piece in stream.iter_bytes():
                        file.write(piece)
        return folder

    def watch(self, job: str, told: Told) -> dict[str, Any]:
        """Pass on the job's events as `follow` does, and return it however it ended; it goes on where this is left."""
        last_id = "0"
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last_id}
            try:
                with self._http.stream("GET", f"/jobs/{job}/events", headers=headers, timeout=60) as stream:
                    if stream.is_error:
                        stream.read()
                        self._checked(stream)
                    for line in stream.iter_lines():
                        self._idle()
                        if line.startswith("id:"):
                            last_id = line[3:].strip()
                        elif line.startswith("data:"):
                            event = json.loads(line[5:])
                            told(event["kind"], event["data"])
                now = self._checked(self._http.get(f"/jobs/{job}"))
                if now["status"] in TERMINAL:
                    return now
            except httpx.TransportError:
                self._idle()
            time.sleep(0.2)

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **content)
        except httpx.TransportError as error:
            raise ServiceError(f"{self._http.base_url} does not answer ({type(error).__name__}).") from None

    def _checked(self, response: httpx.Response, *, json_expected: bool = True) -> dict[str, Any]:
        if response.is_error:
            request = response.request
            raise ServiceError(f"{request.method} {request.url.path}: {_said(response)}")
        if not json_expected:
            return {}
        body: dict[str, Any] = response.json()
        return body


def _said(response: httpx.Response) -> str:
    """What the service says is wrong: status, sentence, and the id by which the log is searched."""
    try:
        problem = response.json()
        said = f"{problem['detail']} ({response.status_code} {problem['code']}, {problem['request_id']})"
        # Of an upload each bad line is told apart; of a request the sentence has named every field.
        lines = [fault for fault in problem.get("errors", ()) if "line" in fault]
        return "\n".join([said, *(f"  line {fault['line']}: {fault['message']}" for fault in lines)])
    except (ValueError, KeyError, TypeError):
        return f"answered {response.status_code}"
