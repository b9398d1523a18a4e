"""When a request is due: one calendar month after it came in (GDPR art. 12(3)), and two more once it was extended."""

import calendar
from datetime import datetime, timedelta

from core.errors import Problem, SpecError
from core.spec.base import shown

EXTENSION = 2  # months
OLDEST = timedelta(days=3653)
_CLOCKS_DIFFER = timedelta(minutes=5)


def of(received: datetime) -> datetime:
    """When a request that came in at this time is due."""
    return months_after(received, 1)


def check(received: datetime | None, moment: datetime) -> None:
    """Raises SpecError where a request cannot have come in then, as seen from `moment`."""
    if received is not None and not moment - OLDEST <= received <= moment + _CLOCKS_DIFFER:
        said = "A request has come in by now, and not more than ten years ago"
        given = received.isoformat()
        raise SpecError([Problem("received_at", given, f"{said} (got {shown(given)}). Allowed: null for now.")])


def months_after(moment: datetime, months: int) -> datetime:
    """The same day so many months later, or that month's last where it has no such day."""
    months += moment.month - 1
    year, month = moment.year + months // 12, months % 12 + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))
