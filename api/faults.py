"""Faults of a request in words for its caller, without what may be a record that went to the wrong door."""

import json
import re
from collections.abc import Mapping, Sequence

from core.errors import Problem
from core.spec.base import quotable


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
        for shown in (json.dumps(value, ensure_ascii=False), value):
            message = message.replace(quotable(shown), "a text")
    return message


_JSON = {list: "list", dict: "object"}
_NAME = re.compile(r"[\w.:/@+-]*")
