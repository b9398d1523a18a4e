"""Faults of a request in words for its caller, without what may be a record that went to the wrong door."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import Problem
from core.spec.base import nearest, quotable, shown
from core.spec.wording import worded


def listed(faults: Sequence[Mapping[str, str]]) -> str:
    """All of them, a line each."""
    return "\n".join(
        f"{fault['param']}: {fault['message']}" if fault["param"] else fault["message"] for fault in faults
    )


def discreet(fault: Problem) -> str:
    """The message, without the value where that is more than a name or a number: it may be a record gone astray."""
    value, message = fault.value, fault.message
    if isinstance(value, list | dict):
        return message.replace(quotable(json.dumps(value, ensure_ascii=False)), f"a JSON {_JSON[type(value)]}")
    if isinstance(value, str) and not _NAME.fullmatch(value):
        for form in (json.dumps(value, ensure_ascii=False), value):
            message = message.replace(quotable(form), "a text")
    return message


def invalid(fault: Mapping[str, Any]) -> dict[str, str]:
    """What a check by pydantic found in a query, a header, a path or a small body: the value, and what is allowed."""
    value = fault.get("input")
    if fault["type"] == "literal_error":
        # Typed by hand as often as not, so what was probably meant is told with it.
        known = _QUOTED.findall(fault["ctx"]["expected"])
        message = f"Unknown value {shown(value)}.{nearest(quotable(str(value)), known)}"
    else:
        message = worded(fault)
    # The first part of a location says whether it was the query, a header, the path or the body.
    param = ".".join(map(str, fault["loc"][1:]))
    return {"param": param, "message": discreet(Problem(param, value, message))}


_QUOTED = re.compile(r"'([^']*)'")
_JSON = {list: "list", dict: "object"}
_NAME = re.compile(r"[\w.:/@+-]*")
