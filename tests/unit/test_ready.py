"""Who asks workers whether they are ready finds them: at their own address, through no proxy."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from workers.local.process import free_ports
from workers.local.ready import health
from workers.local.state import WorkerState
from workers.local.workers import asked_at

OTHER = "127.0.0.2"


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a page at another address of this machine."""
    server = HTTPServer((OTHER, 0), Page)
    threading.Thread(target=server.serve_forever).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def worker(port: int, host: str) -> WorkerState:
    return WorkerState(kind="recall", pid=1, web_port=port, web_host=host)


def test_a_worker_is_asked_where_it_listens(port: int) -> None:
    assert health(worker(port, OTHER)) == "ready"
    assert health(worker(port, "127.0.0.1")) == "down"


def test_a_proxy_of_the_environment_is_not_asked(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert health(worker(port, OTHER)) == "ready"


@pytest.mark.parametrize(
    ("web_bind", "host"),
    [("127.0.0.1", "127.0.0.1"), ("10.0.0.7", "10.0.0.7"), ("0.0.0.0", "127.0.0.1"), ("", "127.0.0.1"),  # noqa: S104
     ("::", "[::1]"), ("::1", "[::1]"), ("fd00::7", "[fd00::7]"), ("worker.example", "worker.example")],
)  # fmt: skip
def test_where_this_machine_finds_what_listens(web_bind: str, host: str) -> None:
    assert asked_at(web_bind) == host
