"""Paths that a request names: absolute, and below a configured folder once every link on the way is followed."""

from collections.abc import Sequence
from pathlib import Path


def confined(path: str, roots: Sequence[Path]) -> Path | None:
    """The path with all links resolved, if that lies in one of the folders; it need not exist.

    None says nothing else: whether something exists elsewhere on this machine is nobody's business.
    """
    if "\0" in path or not Path(path).is_absolute():
        return None
    try:
        real = Path(path).resolve()
        str(real).encode()
    except (OSError, RuntimeError, UnicodeEncodeError):  # A loop of links, or a link to a name that is not UTF-8.
        return None
    return real if any(real.is_relative_to(root.resolve()) for root in roots) else None


def listed(roots: Sequence[Path], setting: str) -> str:
    """A clause for an error message: where paths may lie."""
    if not roots:
        return f"None is configured: {setting} is empty."
    return f"Allowed: absolute paths below {', '.join(map(str, roots))}."
