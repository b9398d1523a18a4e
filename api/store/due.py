"""When a request is due: one calendar month after it came in (GDPR art. 12(3)), and two more once it was extended."""

import calendar
from datetime import datetime


def a_month_after(moment: datetime, months: int = 1) -> datetime:
    """The same day so many months later, or that month's last where it has no such day."""
    months += moment.month - 1
    year, month = moment.year + months // 12, months % 12 + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))
