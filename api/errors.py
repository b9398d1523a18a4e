"""What only a request can do wrong; `api.problems` answers it.

LetheError
└── Refused                what only a request can do wrong; each kind knows its status
    ├── Unauthorized       401  no key, or one that is unknown, revoked or expired
    ├── Forbidden          403  the key may not do this
    ├── BadJson            400  the body is not JSON, or is nested too deeply
    ├── ReportMissing      404  the job has left no report (yet)
    ├── NotAcceptable      406  nothing that Accept names is offered here
    ├── UploadStalled      408  a body sent nothing for too long, or took too long in all
    ├── Sealed             409  the file is kept encrypted and is not given out
    ├── TooLarge           413  the body, or the number of its records, is over the limit
    ├── UnsupportedType    415  the body is of another type than this call reads
    ├── BadLines           422  an upload holds lines that are no records
    ├── TooMany            429  a key, or whoever is refused again and again, has used up this minute's share
    └── Busy               503  as many uploads as are allowed at once are under way
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from core.errors import LetheError

REFUSED_TOO_OFTEN = "Too many calls were refused lately. Wait before the next one."


class Refused(LetheError):
    """A request that cannot be served as it is."""

    status: ClassVar[int] = 400
    headers: ClassVar[Mapping[str, str]] = {}


class Busy(Refused):
    """Too much of this is going on at once."""

    code, status = "busy", 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}
    retryable = True


class Unauthorized(Refused):
    """Says the same of every key that opens nothing, so that nothing is learnt about those that exist."""

    code, status = "unauthorized", 401
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(Refused):
    """The key is good, and what it is for is something else. `reason` is a word for the audit log."""

    code, status = "forbidden", 403

    def __init__(self, message: str, *, param: str | None = None, reason: str | None = None) -> None:
        super().__init__(message, param=param)
        self.reason = reason


class TooMany(Refused):
    """More than a limit of the settings allows; `after` is how many seconds it lasts."""

    code, status = "too_many_requests", 429
    retryable = True

    def __init__(self, message: str, after: int) -> None:
        super().__init__(message)
        self.after = after


class BadJson(Refused):
    """The body cannot be decoded."""

    code, status = "invalid_json", 400


class ReportMissing(Refused):
    """There is no report to give."""

    code, status = "report_missing", 404


class NotAcceptable(Refused):
    """Content negotiation failed."""

    code, status = "not_acceptable", 406
    headers: ClassVar[Mapping[str, str]] = {"Vary": "Accept"}


class UploadStalled(Refused):
    """The body does not come to an end."""

    code, status = "upload_stalled", 408
    retryable = True


class Sealed(Refused):
    """The file is derived from a forget set."""

    code, status = "sealed", 409


class TooLarge(Refused):
    """A limit of the settings was passed."""

    code, status = "too_large", 413


class UnsupportedType(Refused):
    """The Content-Type is not one that is read here."""

    code, status = "unsupported_media_type", 415


class BadLines(Refused):
    """`lines` are the first bad lines, by number and reason; `count` says how many there are."""

    code, status = "invalid_data", 422

    def __init__(self, lines: Sequence[Mapping[str, Any]], count: int) -> None:
        shown = "" if count == len(lines) else f" The first {len(lines)} are listed."
        said = "1 line is no record" if count == 1 else f"{count} lines are no records"
        super().__init__(f"{said}; nothing was stored.{shown}")
        self.lines = lines
        self.count = count
