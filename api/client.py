"""The service as seen from outside, for the demo and the benchmarks: upload, register, submit, follow, download."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
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

    def upload(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """Upload records; returns the data set's id. Raises ServiceError."""
        lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        headers = {"Content-Type": "application/jsonl"}
        return str(self._post("/datasets", content=b"".join(lines), headers=headers)["id"])

    def register(self, model: Path) -> str:
        """Register a model folder; returns its id. Raises ServiceError."""
        return str(self._post("/models", json={"path": str(model)})["id"])

    def submit(self, spec: Mapping[str, Any]) -> str:
        """Submit a forget request; returns the job's id. Raises ServiceError."""
        return str(self._post("/jobs", json=dict(spec))["id"])

    def job(self, job: str) -> dict[str, Any]:
        """The job as it stands. Raises ServiceError."""
        return self._checked(self._http.get(f"/jobs/{job}"))

    def follow(self, job: str, told: Told) -> dict[str, Any]:
        """Pass on the job's events, kind and data, until it ends, reconnecting where the stream breaks off.

        Returns the job. Raises ServiceError where it did not succeed. Left early, by an error or Ctrl-C, it asks the
        service to cancel the job: nobody is waiting for it any more.
        """
        try:
            ended = self._followed(job, told)
        except BaseException:
            with suppress(httpx.HTTPError):
                self._http.post(f"/jobs/{job}/cancel", timeout=2)
            raise
        if ended["status"] != "succeeded":
            error = ended.get("error") or {}
            raise ServiceError(f"The job {job} {ended['status']}: {error.get('message', 'no reason was given')}")
        return ended

    def download(self, job: str, folder: Path) -> Path:
        """Every artifact of the job under its own name below `folder`, which is returned; those that are kept sealed
        are not given out. Raises ServiceError."""
        for artifact in self._checked(self._http.get(f"/jobs/{job}/artifacts"))["data"]:
            if artifact["sealed"]:
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

    def _followed(self, job: str, told: Told) -> dict[str, Any]:
        last_id = "0"
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last_id}
            try:
                with self._http.stream("GET", f"/jobs/{job}/events", headers=headers, timeout=60) as stream:
                    for line in stream.iter_lines():
                        self._idle()
                        if line.startswith("id:"):
                            last_id = line[3:].strip()
                        elif line.startswith("data:"):
                            event = json.loads(line[5:])
                            told(event["kind"], event["data"])
                now = self.job(job)
                if now["status"] in TERMINAL:
                    return now
            except httpx.TransportError:
                self._idle()
            time.sleep(0.2)

    def _post(self, path: str, **content: Any) -> dict[str, Any]:
        return self._checked(self._http.post(path, **content))

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        if response.is_error:
            request = response.request
            raise ServiceError(
                f"{request.method} {request.url.path} was answered {response.status_code}: {response.text}"
            )
        body: dict[str, Any] = response.json()
        return body
