"""One row by its id, or a page of rows: newest first, and stable while rows arrive, because ids ascend with time."""

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.store.errors import NotFound
from api.store.ids import plausible
from api.store.records import Delivery, Webhook
from api.store.tables import ApiKey, Dataset, Job, Model, Principal
from core.errors import Problem, SpecError

Row = TypeVar("Row", ApiKey, Dataset, Delivery, Job, Model, Principal, Webhook)
_CALLED: dict[type, str] = {
    ApiKey: "API key",
    Dataset: "data set",
    Delivery: "delivery",
    Job: "job",
    Model: "model",
    Principal: "principal",
    Webhook: "webhook",
}


def by_id(session: Session, table: type[Row], row_id: str, *, lock: bool = False) -> Row:
    """The row, read afresh and with `lock` held until the transaction ends. Raises NotFound."""
    query = select(table).where(table.id == row_id).execution_options(populate_existing=True)
    if lock:
        query = query.with_for_update()
    # Whatever a caller may send as an id, only what could be one reaches the database.
    row = session.scalars(query).one_or_none() if plausible(row_id) else None
    if row is None:
        raise absent(table, row_id)
    return row


def absent(table: type[Row], row_id: str) -> NotFound:
    """The error that says so."""
    return NotFound(f"There is no {_CALLED[table]} {row_id!r}.")


def newest(
    session: Session, query: Select[Row], column: InstrumentedAttribute[str], after: str | None, limit: int
) -> tuple[Sequence[Row], bool]:
    """Up to `limit` rows older than `after`, and whether there are more. Raises SpecError for an impossible cursor."""
    if after is not None:
        if not plausible(after):
            raise SpecError([Problem("after", after, f"{after!r} is no id. Allowed: the id of a page's last row.")])
        query = query.where(column < after)
    rows = session.scalars(query.order_by(column.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def storable(value: str | None, param: str) -> str | None:
    """The text itself. Raises SpecError if it holds a NUL character, which PostgreSQL cannot store."""
    if value is not None and "\0" in value:
        raise SpecError([Problem(param, value, "Text must not hold a NUL character.")])
    return value
