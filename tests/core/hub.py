"""A hub of one's own: the few answers of the Hugging Face hub's HTTP interface that fetching a data set needs."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.spec.layouts import listing


@dataclass
class Hub:
    """Folders by the ids of data sets, all at one commit. `fetched` are the files that were sent, in their order.

    `listed` are the folders that were listed, and whether with all below them.
    """

    revision: str
    sets: dict[str, Path]
    fetched: list[str] = field(default_factory=list)
    listed: set[tuple[str, bool]] = field(default_factory=set)
    address: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a free port of this machine, until the block ends."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(send=True)

        def do_HEAD(self) -> None:
            self.answer(send=False)

        def answer(self, send: bool) -> None:
            parts = [*unquote(urlsplit(self.path).path).strip("/").split("/"), *[""] * 5]
            tree = parts[0] == "api"
            name, verb, revision = "/".join(parts[tree + 1 : tree + 3]), parts[tree + 3], parts[tree + 4]
            inner = "/".join(parts[tree + 5 :]).strip("/")
            if name not in hub.sets:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif revision != hub.revision:
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif not (hub.sets[name] / inner).exists():
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            elif verb == "tree":
                hub.listed.add((inner, "recursive=true" in urlsplit(self.path).query.lower()))
                self.reply(200, json.dumps(entries(hub.sets[name], inner)).encode(), {})
            else:
                content = (hub.sets[name] / inner).read_bytes()
                if send:
                    hub.fetched.append(inner)
                self.reply(200, content, {"X-Repo-Commit": revision, "ETag": f'"{hash((name, inner)):x}"'}, send)

        def reply(self, status: int, content: bytes, headers: dict[str, str], send: bool = True) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if send:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: a test's output is its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def entries(top: Path, folder: str) -> list[dict[str, str | int]]:
    """The top alone, or everything below a folder, as the hub lists it."""
    below = [name for name in listing(top, [folder]) if not folder or name.startswith(f"{folder}/")]
    return [
        {"type": "directory", "path": name[:-1], "oid": "0" * 40, "size": 0}
        if name.endswith("/")
        else {"type": "file", "path": name, "oid": "0" * 40, "size": (top / name).stat().st_size}
        for name in below
    ]
