"""What the API says, and is told, of principals, their keys and the audit log."""

from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from api.store.chain_check import Kind
from api.store.keys import Scope
from core.report.schema import Sha256
from core.spec.base import Spec

_PRINCIPAL = "prn_01k9h3v2q8m4x7c5b6n1r0t9wz"
_KEY = {
    "id": "key_01k9h3v2q8m4x7c5b6n1r0t9wz",
    "name": "intake",
    "prefix": "7c5b6n1r",
    "principal": _PRINCIPAL,
    "scopes": ["jobs:read", "jobs:write"],
    "created_at": "2026-01-31T12:00:00Z",
    "expires_at": "2026-07-31T12:00:00Z",
    "last_used_at": "2026-02-02T08:15:00Z",
    "revoked_at": "2026-02-28T18:00:00Z",
}


def _example(**value: Any) -> ConfigDict:
    return ConfigDict(from_attributes=True, json_schema_extra={"examples": [value]})


class Principal(BaseModel):
    """A person, or a program, that acts through keys."""

    model_config = _example(
        id=_PRINCIPAL, name="Ada Quill", created_at="2026-01-31T12:00:00Z", disabled_at="2026-06-30T12:00:00Z"
    )

    id: str
    name: str
    created_at: datetime
    disabled_at: datetime | None = Field(description="from then on none of its keys opens anything")


class NewPrincipal(Spec):
    """A principal to enter."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Ada Quill"}]})

    name: str = Field(min_length=1, max_length=200)


class ApiKey(BaseModel):
    """A key, without its text: that is kept nowhere."""

    model_config = _example(**_KEY)

    id: str
    name: str
    prefix: str = Field(description="the text of the key begins with lethe_ and this")
    principal: str = Field(validation_alias="principal_id")
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")
    revoked_at: datetime | None


class IssuedKey(ApiKey):
    """A new key, with its text, which is shown this once."""

    model_config = _example(**_KEY, key="lethe_7c5b6n1r_" + "0" * 39)

    key: str


class NewKey(Spec):
    """A key to make."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "principal": _PRINCIPAL,
                    "name": "intake",
                    "scopes": ["jobs:read", "jobs:write"],
                    "expires_at": "2026-07-31T12:00:00Z",
                }
            ]
        }
    )

    principal: str = Field(max_length=64, description="id of whoever is to act through it")
    name: str = Field(min_length=1, max_length=200, description="what it is for")
    scopes: list[Scope] = Field(min_length=1, max_length=20, description="what it may do; admin is all of it")
    expires_at: AwareDatetime | None = Field(None, description="absent: never")


class AuditEntry(BaseModel):
    """Who did what to what, and when. `facts` hold no data of a set."""

    model_config = _example(
        id=7,
        at="2026-01-31T12:00:00Z",
        actor=_PRINCIPAL,
        key=_KEY["id"],
        action="job.approved",
        subject="job_01k9h3v2q8m4x7c5b6n1r0t9wz",
        facts={"request_id": "req_5f0c9be1d3a24c7e8b6f1a20"},
        position=7,
        hash="0" * 64,
    )

    id: int
    at: datetime
    actor: str = Field(description="a principal's id, worker:<name>, sweep, cli, embedded or anonymous")
    key: str | None = Field(validation_alias="key_id", description="the key by which the principal acted")
    action: str
    subject: str = Field(description="the id of what it was done to")
    facts: dict[str, Any]
    position: int | None = Field(description="place in the chain; null: not sealed yet")
    hash: Sha256 | None


class AuditEntries(BaseModel):
    """A part of the log, newest first. Give `after` to the next call while there `has_more`."""

    data: list[AuditEntry]
    has_more: bool
    after: int | None = Field(description="id of the last entry; null where the page is empty")


class ChainEnd(BaseModel):
    """The end of the chain."""

    model_config = _example(position=7, hash="0" * 64)

    position: int
    hash: Sha256


class SignedHead(ChainEnd):
    """The end of the chain as it was at one time, signed with the key that signs reports."""

    model_config = _example(position=7, hash="0" * 64, at="2026-01-31T12:00:00Z", signature="MEUCIQ==")

    at: datetime
    signature: str = Field(description="ECDSA P-256 over SHA-256, in base64; `lethe audit verify --key` checks it")


class AuditFinding(BaseModel):
    """Something that does not match."""

    model_config = _example(
        kind="changed",
        position=4,
        entry=4,
        message="Entry 4 at position 4 is not what was sealed there: it was changed.",
    )

    kind: Kind
    position: int
    entry: int | None = Field(description="id of the row, where there is one")
    message: str


class AuditVerification(BaseModel):
    """The chain, recomputed. The API has no key, so that signatures of heads are for `lethe audit verify --key`."""

    model_config = _example(
        ok=True,
        entries=7,
        head={"position": 7, "hash": "0" * 64},
        heads=1,
        newest_head={"position": 7, "hash": "0" * 64, "at": "2026-01-31T12:00:00Z", "signature": "MEUCIQ=="},
        unsealed=0,
        overdue=0,
        found=0,
        findings=[],
    )

    ok: bool
    entries: int = Field(description="sealed ones")
    head: ChainEnd
    heads: int = Field(description="signed heads that were compared")
    newest_head: SignedHead | None
    unsealed: int = Field(description="entries that are not in the chain yet")
    overdue: int = Field(description="of those, older than ten minutes: no worker looks")
    found: int = Field(description="what does not match, in all")
    findings: list[AuditFinding] = Field(description="the first 100 of them")
