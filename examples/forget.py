"""A forget request from upload to evidence, over plain HTTP.

    export LETHE_URL=http://127.0.0.1:8000 LETHE_API_KEY=lethe_...
    python examples/forget.py MODEL_FOLDER forget.jsonl retain.jsonl OUT

MODEL_FOLDER lies below one of the service's model roots. It needs httpx and nothing of Lethe.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

URL = os.environ.get("LETHE_URL", "http://127.0.0.1:8000")
ENDED = ("succeeded", "failed", "cancelled", "rejected")


def main() -> None:
    if len(sys.argv) != 5 or "LETHE_API_KEY" not in os.environ:
        sys.exit(__doc__)
    model_folder, forget, retain, out = map(Path, sys.argv[1:])
    headers = {"Authorization": f"Bearer {os.environ['LETHE_API_KEY']}"}
    with httpx.Client(base_url=URL, headers=headers, timeout=30) as http:
        model = checked(http.post("/models", json={"path": str(model_folder.resolve())}))
        sets = {name: upload(http, file) for name, file in (("forget", forget), ("retain", retain))}
        request = {
            "model": {"id": model["id"]},
            "data": {name: {"source": "upload", "dataset": made["id"]} for name, made in sets.items()},
            "method": {"name": "npo", "retain": "nll"},
            "optimizer": {"name": "sophia_g", "lr": 3e-4, "gamma": 1.0},
            "training": {"steps": 40, "batch_size": 10},
            "gates": [
                {"metric": "forget.probability", "at_most": 0.1},
                {"metric": "retain.probability", "at_least": 0.85, "relative_to": "before"},
            ],
            "reason": "gdpr_art_17",
            "reference": "case 2041",
        }
        # Nothing is written yet; a fault would be named here, and what the run is likely to cost is told.
        print("estimate:", checked(http.post("/jobs/validate", json=request))["estimate"])
        # The same key sent again, after a broken connection say, finds the job that the first one made.
        job = checked(
            http.post("/jobs", json=request, headers={"Idempotency-Key": f"case-2041-{sets['forget']['id']}"})
        )
        for kind, data in events(http, job["id"]):
            print(kind, json.dumps(data)[:200])
        job = checked(http.get(f"/jobs/{job['id']}"))
        print("status:", job["status"], "verdict:", job["verdict"], job["error"] or "")
        if job["status"] == "succeeded":
            out.mkdir(parents=True, exist_ok=True)
            envelope = http.get(
                f"/jobs/{job['id']}/report", headers={"Accept": "application/vnd.dsse.envelope.v1+json"}
            )
            (out / "report.dsse.json").write_bytes(envelope.raise_for_status().content)
            # Whoever keeps this can prove later which records the report speaks of: `lethe prove`.
            (out / "commitment-key").write_text(sets["forget"]["commitment_key"])
    sys.exit(0 if job["verdict"] == "passed" else 1)


def upload(http: httpx.Client, file: Path) -> dict:
    """The data set that a file of JSON lines becomes."""
    query, kind = {"name": file.name}, {"Content-Type": "application/jsonl"}
    with file.open("rb") as lines:
        return checked(http.post("/datasets", params=query, headers=kind, content=lines))


def events(http: httpx.Client, job: str) -> Iterator[tuple[str, dict]]:
    """What happens to the job until it has ended. A stream that breaks off goes on where it was left."""
    last = "0"
    while checked(http.get(f"/jobs/{job}"))["status"] not in ENDED or last == "0":
        headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
        try:
            with http.stream("GET", f"/jobs/{job}/events", headers=headers, timeout=60) as stream:
                for line in stream.iter_lines():
                    if line.startswith("id:"):
                        last = line[3:].strip()
                    elif line.startswith("data:"):
                        event = json.loads(line[5:])
                        yield event["kind"], event["data"]
        except httpx.TransportError:
            continue


def checked(answer: httpx.Response) -> dict:
    """The answer's JSON. Errors are problem documents (RFC 9457): `detail` is for people, `code` for programs."""
    if answer.is_error:
        problem = answer.json()
        # Of an upload, which lines are no records, and why.
        lines = [
            f"\n  line {fault['line']}: {fault['message']}" for fault in problem.get("errors", ()) if "line" in fault
        ]
        said = f"{problem['detail']} ({problem['code']}){''.join(lines)}"
        sys.exit(f"{answer.request.method} {answer.request.url.path}: {said}")
    return answer.json()


if __name__ == "__main__":
    try:
        main()
    except httpx.TransportError as error:
        sys.exit(f"{URL} does not answer: {error}")
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
