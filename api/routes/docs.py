"""The API's description for people, at /docs. Its scripts come from this service, so it works where nothing else is
reached, and the page may run exactly those and the one line that starts them."""

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

router = APIRouter()

STATIC = "/docs/static"
_PAGE = get_swagger_ui_html(
    openapi_url="openapi.json",
    title="Lethe",
    swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
    swagger_css_url=f"{STATIC}/swagger-ui.css",
    swagger_favicon_url=f"{STATIC}/favicon.png",
)
_SCRIPT = re.search(rb"<script>(.*?)</script>", bytes(_PAGE.body), re.DOTALL)
assert _SCRIPT is not None
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT[1]).digest()).decode()
_POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{_HASH}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


def assets() -> StaticFiles:
    """Swagger UI's own files, as the fastapi-offline wheel carries them."""
    return StaticFiles(directory=str(files("fastapi_offline") / "static"))


@router.get("/", include_in_schema=False)
async def front() -> RedirectResponse:
    """Whoever opens the service's address wants to know what it is."""
    return RedirectResponse("docs")


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Swagger UI over /openapi.json."""
    return HTMLResponse(bytes(_PAGE.body), headers={"Content-Security-Policy": _POLICY})
