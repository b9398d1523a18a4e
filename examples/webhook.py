"""Receive Lethe's webhooks and believe only those that are signed (standardwebhooks.com). No library is needed.

export WEBHOOK_SECRET=whsec_...     # shown once, when the webhook was made
python examples/webhook.py 9000     # behind something that speaks TLS: Lethe calls https only
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

SECRET = base64.b64decode(os.environ.get("WEBHOOK_SECRET", "").removeprefix("whsec_"))
TOLERANCE = 300  # seconds between the message's time and ours: an old one may be a replay
seen: set[str] = set()  # a message may come twice; yours belongs into a database


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        message, timestamp, signatures = (
            self.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")
        )
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not signed(message, timestamp, body, signatures):
            self.send_error(401)
            return
        if message not in seen:
            seen.add(message)
            event = json.loads(body)
            print(event["timestamp"], event["type"], event["data"], flush=True)
        # Anything but 2xx is sent again, for days; 410 ends it.
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def signed(message: str, timestamp: str, body: bytes, signatures: str) -> bool:
    """Whether one of the signatures is of this message, made lately, under our secret."""
    wanted = hmac.new(SECRET, f"{message}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    try:
        age = time.time() - int(timestamp)
        given = [
            base64.b64decode(value) for kind, _, value in (s.partition(",") for s in signatures.split()) if kind == "v1"
        ]
    except ValueError:  # neither a number nor base64
        return False
    if abs(age) > TOLERANCE:
        return False
    return any(hmac.compare_digest(wanted, one) for one in given)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal() or not SECRET:
        sys.exit(__doc__)
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
