"""A Hugging Face hub on loopback, which keeps the files of one repository in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """The server, with the files that were uploaded and the requests that it received."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def served() -> Iterator[HubServer]:
    """Serve in a thread until the context ends."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = self.path.split("?")[0]
        if name.endswith("/repos/create"):
            self._answer({"url": f"{self.server.url}/owner/net"})
        elif name.endswith("/validate-yaml"):
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in name:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in name:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.server.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            url = f"{self.server.url}/owner/net/commit/{COMMIT}"
            self._answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self._answer({"error": "unknown"}, 404)

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        name = self.path.split("?")[0]
        if "/resolve/" in name:
            content = self.server.files.get(name.partition("/resolve/")[2].partition("/")[2])
            if content is None:
                self._answer({"error": "no file"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._answer(content, headers={"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        elif "/tree/" in name:
            self._answer(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in self.server.files.items()
                ]
            )
        elif name.startswith(("/api/models/", "/api/datasets/")):
            siblings = [{"rfilename": path} for path in self.server.files]
            self._answer({"_id": "0" * 24, "id": "owner/net", "sha": COMMIT, "siblings": siblings, "tags": []})
        else:
            self._answer({"error": "unknown"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()
