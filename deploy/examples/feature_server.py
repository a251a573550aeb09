"""A feature source over HTTP: `python feature_server.py VALUES.json --port 8200`. Only Python's standard library.

VALUES.json: {"user id": {"feature": value, ...}, ...}; it is read again when it has changed. The protocol:
POST /features {"user_ids": ["u1", "u2"], "features": ["tier"]} -> {"values": [{"tier": "gold"}, {}]}
"""

import argparse
import json
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Values:
    """The content of the file."""

    def __init__(self, path: Path) -> None:
        self._path, self._read_ns, self._users = path, 0, {}

    def of(self, user_ids: list[str], features: list[str]) -> list[dict[str, Any]]:
        """One object for each user, in their order; what is not there is left out."""
        if (changed_ns := self._path.stat().st_mtime_ns) != self._read_ns:
            self._users, self._read_ns = json.loads(self._path.read_text()), changed_ns
        rows = [self._users.get(user_id, {}) for user_id in user_ids]
        return [{name: row[name] for name in features if name in row} for row in rows]


class Handler(BaseHTTPRequestHandler):
    """Answers, and keeps connections open."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # an answer leaves at once

    def __init__(self, values: Values, *arguments: Any) -> None:
        self._values = values
        super().__init__(*arguments)

    def do_POST(self) -> None:  # the name that the base class calls
        """The one question."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        content = json.dumps({"values": self._values.of(asked["user_ids"], asked["features"])}).encode()
        self.send_response(200 if self.path == "/features" else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Not a line for every request."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("values", type=Path)
    parser.add_argument("--port", type=int, default=8200)
    given = parser.parse_args()
    ThreadingHTTPServer(("127.0.0.1", given.port), partial(Handler, Values(given.values))).serve_forever()
