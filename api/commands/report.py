"""`lethe report`: the evidence of a job, to read or to hand on."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from api.commands.asked import HERE, AsJson, Key, Url, connected
from core.errors import Problem, SpecError

app = typer.Typer()

_ENVELOPE = "application/vnd.dsse.envelope.v1+json"


@app.command()
def report(
    job: Annotated[str, typer.Argument(help="the job's id", metavar="JOB")],
    out: Annotated[
        Path | None, typer.Option(help="folder for report.json, report.html and the signed report.dsse.json")
    ] = None,
    model: Annotated[bool, typer.Option("--model", help="the model's files too, into --out/model")] = False,
    url: Url = HERE,
    api_key: Key = "",
    as_json: AsJson = False,
) -> None:
    """The verdict and what it rests on; with --out the files that `lethe verify` checks."""
    if model and out is None:
        raise SpecError([Problem("--model", True, "needs --out, the folder to put the model's files in.")])
    with connected(url, api_key) as client:
        written = client.content(f"/jobs/{job}/report", "application/json")
        if out is not None:
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SpecError([Problem("--out", str(out), f"{out} is no folder: {error.strerror}.")]) from None
            (out / "report.json").write_bytes(written)
            (out / "report.html").write_bytes(client.content(f"/jobs/{job}/report", "text/html"))
            (out / "report.dsse.json").write_bytes(client.content(f"/jobs/{job}/report", _ENVELOPE))
            if any(file["kind"] == "destruction" for file in client.get(f"/jobs/{job}/artifacts")["data"]):
                (out / "destruction.dsse.json").write_bytes(client.content(f"/jobs/{job}/destruction", _ENVELOPE))
            if model:
                client.download(job, out, "model")
    found = json.loads(written)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for line in _told(found):
        print(line)
    if out is not None:
        what = f"{out / 'report.dsse.json'}" + (f" --model {out / 'model'}" if model else "")
        print(f"Written to {out}. Check it offline: lethe verify {what} --key signing.pub.pem")


def _told(report: dict[str, Any]) -> list[str]:
    verdict = report["verdict"]
    lines = [f"verdict: {verdict['verdict']}", *(f"  {reason}" for reason in verdict["reasons"])]
    lines += [f"digest of the output model: {report['output_model']}", "metric  before  after"]
    for name, after in report["after"].items():
        before = report["before"].get(name, {})
        if "value" in after:
            value = f"{before['value']:.4g}" if "value" in before else "-"
            lines.append(f"  {name}  {value}  {after['value']:.4g}")
    return lines
