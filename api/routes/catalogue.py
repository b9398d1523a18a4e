"""What can be asked for: read off the spec classes themselves."""

from typing import Any

from fastapi import APIRouter

from core.spec.catalogue import catalogue

router = APIRouter(prefix="/catalogue", tags=["catalogue"])


@router.get("")
def what_can_be_asked_for() -> dict[str, Any]:
    """All that a request may name, from methods to presets, with fields, defaults, limits and citations."""
    return catalogue()
