"""A server of ours that answers as `feast serve` 0.67 does: `python tests/feast_server.py STORE.json PORT`.

STORE.json: {"views": {"VIEW": {"features": [...], "rows": {"user": {"feature": value}}}}, "services": {"NAME": [...]}}.
It is no Feast: `python -m tests.backends` asks the real one. What it keeps of it: features come in another order than
asked, the entity among them; an unknown user's are PRESENT, null and of 1970; an unknown view or feature is refused.
"""

import json
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WRITTEN = "2026-01-01T00:00:00Z"
NEVER = "1970-01-01T00:00:00Z"


class Handler(BaseHTTPRequestHandler):
    """The two paths that a source asks."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True

    def __init__(self, path: Path, *arguments: Any) -> None:
        self._store = path
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer(200, None)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        store = json.loads(self._store.read_text())
        try:
            if not asked["entities"].get("user_id"):
                raise IndexError("Missing join key values for keys: ['user_id'].")  # as Feast does
            references = (
                store["services"][asked["feature_service"]] if "feature_service" in asked else asked["features"]
            )
            self._answer(200, answer(store["views"], references, asked["entities"]["user_id"]))
        except LookupError as error:  # a view that there is not is 404, a feature that a view does not have 500
            self._answer(404 if isinstance(error, KeyError) else 500, str(error))

    def _answer(self, status: int, body: Any) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def answer(views: dict[str, Any], references: list[str], user_ids: list[str]) -> dict[str, Any]:
    names, results = ["user_id"], [_column([(user_id, "PRESENT", WRITTEN) for user_id in user_ids])]
    for reference in sorted(references, reverse=True):
        view, _, name = reference.partition(":")
        if name not in views[view]["features"]:
            raise IndexError(f"'Feature {name} not found in projection {view}'")
        names.append(name)
        results.append(_column([_cell(views[view]["rows"].get(user_id), name) for user_id in user_ids]))
    return {"metadata": {"feature_names": names}, "results": results}


def _cell(row: dict[str, Any] | None, name: str) -> tuple[Any, str, str]:
    if row is None:
        return None, "PRESENT", NEVER
    if name.startswith("old_"):
        return row.get(name), "OUTSIDE_MAX_AGE", WRITTEN
    return row.get(name), "PRESENT" if name in row else "NULL_VALUE", WRITTEN


def _column(cells: list[tuple[Any, str, str]]) -> dict[str, Any]:
    values, statuses, times = zip(*cells, strict=True) if cells else ((), (), ())
    return {"values": values, "statuses": statuses, "event_timestamps": times}


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), partial(Handler, Path(sys.argv[1]))).serve_forever()
