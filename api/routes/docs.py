"""The API's description for people, at /docs, allowed to run exactly the one script it comes with."""

import base64
import hashlib
import re

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

router = APIRouter()

_CDN = "https://cdn.jsdelivr.net"
_PAGE = get_swagger_ui_html(openapi_url="openapi.json", title="Lethe", swagger_favicon_url="data:,")
_SCRIPT = re.search(rb"<script>(.*?)</script>", bytes(_PAGE.body), re.DOTALL)
assert _SCRIPT is not None
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT[1]).digest()).decode()
_POLICY = (
    f"default-src 'none'; script-src {_CDN} 'sha256-{_HASH}'; style-src {_CDN} 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Swagger UI over /openapi.json."""
    return HTMLResponse(bytes(_PAGE.body), headers={"Content-Security-Policy": _POLICY})
