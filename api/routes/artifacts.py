"""The files of a job: checkpoints, everything it left, and its report, each with its digest."""

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from pydantic import ValidationError

from api import schemas
from api.deps import Parts, Service
from api.errors import NotAcceptable, ReportMissing, Sealed
from api.negotiation import VARY, preferred
from api.sight import Seen
from api.store import artifacts, checkpoints
from api.store.blobs import PIECE
from api.store.records import Artifact, ArtifactKind
from core.report.schema import Report

router = APIRouter(prefix="/jobs/{job_id}", tags=["files"])

JSON = "application/json"
ENVELOPES = ("application/vnd.dsse.envelope.v1+json", "application/vnd.in-toto+json")
BYTES = "application/octet-stream"
SVG = "image/svg+xml"
HTML = "text/html"
# An image that a browser opens by itself is a document: it may style itself, and do nothing else.
_IMAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
Responses = dict[int | str, dict[str, Any]]
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILE: Responses = {200: {"content": {BYTES: _BINARY, SVG: _BINARY}}}
_REPORT: Responses = {
    200: {
        "content": {kind: {"schema": {"type": "object"}} for kind in (JSON, *ENVELOPES)}
        | {HTML: {"schema": {"type": "string"}}}
    }
}
_RECORD: Responses = {200: {"content": {ENVELOPES[0]: {"schema": {"type": "object"}}}}}


@router.get("/checkpoints")
def kept(service: Parts, sight: Seen, job_id: str) -> schemas.Checkpoints:
    """The checkpoints of a job. They are derived from the forget set, so their files are not given out."""
    with service.database.reading() as session:
        sight.job(session, job_id)
        found = checkpoints.of(session, job_id)
    return schemas.Checkpoints(data=[schemas.Checkpoint.model_validate(checkpoint) for checkpoint in found])


@router.get("/artifacts")
def listing(service: Parts, sight: Seen, job_id: str) -> schemas.Artifacts:
    """The files that a job left: model, report, signed envelope, plots, and the scores of rows, which are sealed.

    Checkpoints have a list of their own.
    """
    with service.database.reading() as session:
        sight.job(session, job_id)
        found = [file for file in artifacts.of(session, job_id) if file.kind != "checkpoint"]
    return schemas.Artifacts(data=[schemas.Artifact.model_validate(file) for file in found])


@router.get("/artifacts/{name:path}", response_class=StreamingResponse, responses=_FILE)
def download(service: Parts, sight: Seen, job_id: str, name: str) -> StreamingResponse:
    """One file. 409 for a file that is kept encrypted."""
    with service.database.reading() as session:
        sight.job(session, job_id)
        file = artifacts.named(session, job_id, name)
    if file.sealed:
        raise Sealed(
            f"{name!r} is derived from the forget set: it is kept encrypted and is not given out.", param="name"
        )
    if file.kind == "plot":
        return _sent(service, file, SVG, {"Content-Security-Policy": _IMAGE_POLICY})
    return _sent(service, file, BYTES)


@router.get("/report", response_class=StreamingResponse, responses=_REPORT)
def report(service: Parts, sight: Seen, request: Request, job_id: str) -> Response:
    """The report; by Accept a page for people, or the signed envelope that proves it. 404 until there is one."""
    wanted = preferred(request.headers.getlist("accept"), [JSON, *ENVELOPES, HTML])
    kind: ArtifactKind = "envelope" if wanted in ENVELOPES else "report"
    with service.database.reading() as session:
        job = sight.job(session, job_id)
        found = artifacts.of(session, job_id, kind)
        plots = artifacts.of(session, job_id, "plot") if wanted == HTML else []
    if not found:
        raise ReportMissing(f"Job {job_id} is {job.status}; a report comes only with success.")
    if wanted == HTML:
        return _page(service, found[0], plots)
    return _sent(service, found[0], wanted, VARY)


@router.get("/destruction", response_class=StreamingResponse, responses=_RECORD)
def destruction(service: Parts, sight: Seen, job_id: str) -> StreamingResponse:
    """The signed record, about the job's report, of which keys of its data were destroyed. 404 until a worker made it,
    soon after the destruction."""
    with service.database.reading() as session:
        sight.job(session, job_id)
        found = artifacts.of(session, job_id, "destruction")
    if not found:
        raise ReportMissing(f"Job {job_id} has no destruction record: its data is kept, or it never had a report.")
    return _sent(service, found[0], ENVELOPES[0])


def _page(service: Service, file: Artifact, plots: Sequence[Artifact]) -> HTMLResponse:
    from core.report.render import html  # what draws pages is loaded by whoever asks for one

    try:
        written = Report.model_validate_json(_whole(service, file))
    except ValidationError:
        said = "This report was written by another version of Lethe, which knows how to show it. Offered: the JSON."
        raise NotAcceptable(said, param="Accept") from None
    page = html(written, {plot.name: _whole(service, plot) for plot in plots})
    return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY, **VARY})


def _whole(service: Service, file: Artifact) -> bytes:
    with service.blobs.open(file.digest) as stream:
        return stream.read()


def _sent(
    service: Service, file: Artifact, media_type: str, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    digest = base64.b64encode(bytes.fromhex(file.digest)).decode()
    return StreamingResponse(
        _pieces(service.blobs.open(file.digest)),
        media_type=media_type,
        headers={
            "Content-Length": str(file.size),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(PurePosixPath(file.name).name)}",
            "ETag": f'"{file.digest}"',
            "Repr-Digest": f"sha-256=:{digest}:",  # RFC 9530
            **(headers or {}),
        },
    )


async def _pieces(stream: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while piece := await run_in_threadpool(stream.read, PIECE):
            yield piece
    finally:
        stream.close()
