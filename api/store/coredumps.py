"""No process that holds records or keys leaves its memory on disk when it crashes."""

import resource
import sys

# To Linux one byte means: no file, and nothing for a program that takes dumps from a pipe, which 0 would not stop.
_LIMIT = 1 if sys.platform == "linux" else 0


def refuse() -> None:
    """From now on this process and those it starts leave no core dumps."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = _LIMIT if hard == resource.RLIM_INFINITY else min(_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
