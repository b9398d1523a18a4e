"""`lethe submit`, `jobs`, `show`, `watch`, and what may be done to a job."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from api.client import TERMINAL
from api.commands.asked import HERE, AsJson, Key, Most, Reason, Url, connected, rows, show, unreadable, uploaded
from core.errors import Problem, SpecError

app = typer.Typer()

JobId = Annotated[str, typer.Argument(help="the job's id", metavar="JOB")]
_COLUMNS = ("id", "status", "verdict", "priority", "due_at", "model", "reference")
_FIELDS = (
    "id", "status", "verdict", "reason", "reference", "priority", "model", "output_model", "queue_position",
    "waits_for", "led_by", "members", "progress.phase", "progress.step", "progress.steps", "progress.done",
    "progress.total", "progress.seconds_left", "attempt", "received_at", "due_at", "late", "extended", "held",
    "principal", "approved_by", "created_at", "started_at", "finished_at", "warnings", "error.code", "error.message",
)  # fmt: skip


@app.command()
def submit(
    spec: Annotated[Path, typer.Argument(help="a JSON file as for POST /jobs; - reads it from standard input")],
    forget: Annotated[Path | None, typer.Option(help="JSON lines to upload as data.forget")] = None,
    retain: Annotated[Path | None, typer.Option(help="JSON lines to upload as data.retain")] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="only say what it would be and what it would cost")
    ] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="sent twice, it makes one job")] = None,
    follow: Annotated[bool, typer.Option("--watch", help="watch the job until it has ended")] = False,
    url: Url = HERE,
    api_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Ask for something to be forgotten."""
    body = _read(spec)
    with connected(url, api_key) as client:
        for name, file in (("forget", forget), ("retain", retain)):
            if file is not None:
                made = uploaded(client, file)
                # Shown nowhere else, and never again: without it nobody can prove what was in the set.
                key = made.get("commitment_key")
                print(f"{file.name} is {made['id']}" + (f", commitment key {key}" if key else ""), file=sys.stderr)
                body.setdefault("data", {})[name] = {"source": "upload", "dataset": made["id"]}
        if validate:
            found = client.post("/jobs/validate", body)
            show(found, as_json, ("valid", "rows", "warnings", "estimate"))
            return
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        job = client.post("/jobs", body, headers=headers)
        if not follow:
            show(job, as_json, _FIELDS)
            return
        print(job["id"], file=sys.stderr)
        _watch(url, api_key, job["id"], as_json)


@app.command("jobs")
def listing(
    status: Annotated[str | None, typer.Option(help="only those of this status")] = None,
    model: Annotated[str | None, typer.Option(help="only those on the model with this id")] = None,
    reference: Annotated[str | None, typer.Option(help="only those of this case number")] = None,
    due: Annotated[str | None, typer.Option(help="late, or soon")] = None,
    limit: Most = 50,
    url: Url = HERE,
    api_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """Jobs, the newest first."""
    with connected(url, api_key) as client:
        if model is not None:
            client.get(f"/models/{model}")  # an alias or a slip is said, where a list would only be empty
        found = client.pages("/jobs", limit, status=status, model=model, reference=reference, due=due)
        rows(found, as_json, _COLUMNS)


@app.command("show")
def one(job: JobId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Where a job stands, and what was asked."""
    with connected(url, api_key) as client:
        show(client.job(job), as_json, _FIELDS)


@app.command()
def watch(job: JobId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Follow a job to its end. Exit 0: its verdict is `passed`; 1: anything else. Ctrl-C leaves the job be."""
    _watch(url, api_key, job, as_json)


@app.command()
def cancel(job: JobId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """End a job that waits at once, and one that runs at its next batch."""
    _act(url, api_key, job, "cancel", as_json)


@app.command()
def retry(job: JobId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again, from its last checkpoint."""
    _act(url, api_key, job, "retry", as_json)


@app.command()
def approve(job: JobId, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Let a job that awaits approval begin. Not for whoever submitted it."""
    _act(url, api_key, job, "approve", as_json)


@app.command()
def reject(job: JobId, reason: Reason, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """End a job that awaits approval."""
    _act(url, api_key, job, "reject", as_json, {"reason": reason})


@app.command()
def extend(job: JobId, reason: Reason, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Move a job's due date by two months, once."""
    _act(url, api_key, job, "extend", as_json, {"reason": reason})


@app.command()
def hold(job: JobId, reason: Reason, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """Put a job's data under legal hold: it is not destroyed until released."""
    _act(url, api_key, job, "hold", as_json, {"reason": reason})


@app.command()
def release(job: JobId, reason: Reason, url: Url = HERE, api_key: Key = "", as_json: AsJson = False) -> None:
    """End a legal hold."""
    _act(url, api_key, job, "release", as_json, {"reason": reason})


def _act(url: str, key: str, job: str, action: str, as_json: bool, body: Mapping[str, Any] | None = None) -> None:
    with connected(url, key) as client:
        show(client.post(f"/jobs/{job}/{action}", body), as_json, _FIELDS)


def _watch(url: str, key: str, job: str, as_json: bool) -> None:
    with connected(url, key) as client:
        try:
            ended = client.watch(job, lambda kind, data: _tell(kind, data, as_json))
        except KeyboardInterrupt:
            print(f"{job} goes on; `lethe cancel {job}` ends it.", file=sys.stderr)
            sys.exit(130)
    show(ended, as_json, ("id", "status", "verdict", "output_model", "error.code", "error.message"))
    assert ended["status"] in TERMINAL
    sys.exit(0 if ended["verdict"] == "passed" else 1)


def _tell(kind: str, data: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"event": kind, **data}, ensure_ascii=False), flush=True)
        return
    told = {name: value for name, value in data.items() if value is not None and not isinstance(value, dict | list)}
    print(f"{kind:<10}", *(f"{name}={value}" for name, value in told.items()), flush=True)


def _read(spec: Path) -> dict[str, Any]:
    try:
        body = json.loads(sys.stdin.read() if str(spec) == "-" else spec.read_text("utf-8"))
    except OSError as error:
        raise unreadable(spec, error) from None
    except ValueError as error:
        raise SpecError([Problem("", None, f"{spec} is not JSON: {error}.")]) from None
    if not isinstance(body, dict):
        raise SpecError([Problem("", None, f"{spec} must hold one JSON object.")])
    return body
