"""What a model server may answer besides vectors, and what a tower makes of it; and towers that others register."""

import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from models import probes
from models.bundle import Bundle
from models.tensors import Inputs
from tests.backends.ours_rest import Handler, application
from tests.backends.served import Models, fit_towers
from workers.errors import ConfigurationError, DependencyUnavailable, RowRefused
from workers.settings import Settings
from workers.towers.opening import open_tower
from workers.towers.remote import RemoteTower
from workers.towers.rest import to_json

KSERVE, TORCHSERVE, TF_SERVING = "kserve", "torchserve", "tf_serving"
TOKEN = "open sesame"  # noqa: S105
OVERLOAD = {"code": 503, "type": "ServiceUnavailableException", "message": "Model user_tower has no worker to serve"}
FAILED = {"code": 503, "type": "InternalServerException", "message": "Prediction failed"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fit_towers(tmp_path_factory.mktemp("bundles"))


class Scripted:
    """Our test server, whose answers to inference may be replaced: the next `times`, or all that have some rows."""

    def __init__(self, bundle: Bundle) -> None:
        self.status, self.body, self.times = 200, b"", 0
        self.tokens: set[str | None] = set()
        self.encodings: set[str | None] = set()
        app = application(Models(bundle))
        app.middlewares.append(self._answer)
        self.runner = web.AppRunner(app, access_log=None)
        self.url = ""

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.tokens.add(request.headers.get("authorization"))
        self.encodings.add(request.headers.get("accept-encoding"))
        if request.method == "POST" and self.times:
            self.times -= 1
            return web.Response(status=self.status, body=self.body)
        return await handler(request)

    def next(self, status: int, body: object, times: int = 1) -> None:
        """What the next answers are."""
        self.status, self.body, self.times = status, body if isinstance(body, bytes) else to_json(body), times


@pytest.fixture
async def server(bundle: Bundle) -> AsyncIterator[Scripted]:
    scripted = Scripted(bundle)
    await scripted.runner.setup()
    site = web.TCPSite(scripted.runner, "127.0.0.1", 0)
    await site.start()
    scripted.url = f"http://127.0.0.1:{scripted.runner.addresses[0][1]}"
    yield scripted
    await scripted.runner.cleanup()


async def opened(server: Scripted, bundle: Bundle, tower: str, **changed: object) -> RemoteTower:
    overrides = {"tower": tower, "tower_url": server.url, "tower_binary": False, "tower_timeout_ms": 5000}
    found = await open_tower(bundle, "user", Settings(**overrides | changed))
    assert isinstance(found, RemoteTower)
    return found


def one_user(bundle: Bundle) -> Inputs:
    return probes.users(bundle.encoding, np.ones((1, bundle.dim), dtype=np.float32), 1, numbers=False)


@pytest.mark.parametrize(
    ("tower", "status", "body", "line"),
    [
        (KSERVE, 503, {"error": "Exceeds maximum queue size"}, "503: Exceeds maximum queue size"),
        (KSERVE, 429, {"error": "slow down"}, "429"),
        (KSERVE, 502, b"<html>\n bad gateway</html>", "502: <html> bad gateway"),
        (KSERVE, 302, b"", "302"),
        (KSERVE, 401, {"error": "who are you"}, "another tower_token"),
        (KSERVE, 404, {"error": "unloaded"}, "no such model, or not this version: unloaded"),
        (KSERVE, 200, b"[", "no JSON"),
        (KSERVE, 200, {"outputs": 7}, "cannot be read"),
        (KSERVE, 200, {"outputs": []}, "output 'user_embedding' is missing"),
        (KSERVE, 200, {"model_version": "2", "outputs": []}, "version 2 answered"),
        (TORCHSERVE, 503, OVERLOAD, "has no worker"),
        (TORCHSERVE, 200, [1], "no object of named arrays"),
        (TORCHSERVE, 200, {"user_embedding": [[1.0, 2.0]]}, "output 'user_embedding' is float32[1, 2]"),
        (TORCHSERVE, 200, {"user_embedding": [["a"]]}, "cannot be read"),
        (TF_SERVING, 503, {"error": "unavailable"}, "503: unavailable"),
        (TF_SERVING, 200, {"predictions": []}, "has no outputs"),
    ],
)
async def test_what_is_no_vector_is_the_servers_failure_and_no_rows(
    server: Scripted, bundle: Bundle, tower: str, status: int, body: object, line: str
) -> None:
    found, inputs = await opened(server, bundle, tower), one_user(bundle)
    server.next(status, body)
    with pytest.raises(DependencyUnavailable) as raised:
        await found.embed(inputs)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert np.isfinite((await found.embed(inputs))["user_embedding"]).all()
    await found.close()


@pytest.mark.parametrize(("tower", "status", "body"), [(KSERVE, 500, {"error": "x"}), (TORCHSERVE, 503, FAILED)])
async def test_a_failure_that_does_not_come_again_is_no_row_refused(
    server: Scripted, bundle: Bundle, tower: str, status: int, body: object
) -> None:
    found, inputs = await opened(server, bundle, tower), one_user(bundle)
    server.next(status, body)
    assert np.isfinite((await found.embed(inputs))["user_embedding"]).all()
    server.next(status, body, times=5)
    with pytest.raises(DependencyUnavailable):  # of whatever is asked
        await found.embed(inputs)
    await found.close()


async def test_vectors_that_are_not_finite_for_anybody_and_for_some(server: Scripted, bundle: Bundle) -> None:
    found, inputs = await opened(server, bundle, TORCHSERVE), one_user(bundle)
    nan = b'{"user_embedding": [[' + b", ".join([b"NaN"] * bundle.dim) + b"]]}"
    server.next(200, nan, times=2)
    with pytest.raises(DependencyUnavailable, match="no finite vector for anybody"):
        await found.embed(inputs)
    server.next(200, nan)
    assert np.isnan((await found.embed(inputs))["user_embedding"]).all()
    await found.close()


async def test_a_row_is_refused_when_it_fails_again(server: Scripted, bundle: Bundle) -> None:
    found, inputs = await opened(server, bundle, KSERVE), one_user(bundle)
    inputs["history_codes"] = np.full_like(inputs["history_codes"], 1_000_000)
    with pytest.raises(RowRefused):
        await found.embed(inputs)
    await found.close()


async def test_the_token_is_sent(server: Scripted, bundle: Bundle) -> None:
    await (await opened(server, bundle, KSERVE, tower_token=TOKEN)).close()
    assert server.tokens == {f"Bearer {TOKEN}"}


async def test_no_answer_is_compressed(server: Scripted, bundle: Bundle) -> None:
    await (await opened(server, bundle, KSERVE)).close()
    assert server.encodings == {"identity"}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"tower": KSERVE, "tower_url": ""}, "tower = 'kserve' needs tower_url: http://"),
        ({"tower": TF_SERVING, "tower_version": "one"}, "tower_version: 'one' is no whole number"),
        ({"tower": "nobodys"}, "tower = 'nobodys': there is no such adapter"),
    ],
)
async def test_settings_that_cannot_work_are_one_line(
    server: Scripted, bundle: Bundle, changed: dict[str, str], line: str
) -> None:
    overrides: dict[str, object] = {"tower_url": server.url, **changed}
    with pytest.raises(ConfigurationError) as raised:
        await open_tower(bundle, "user", Settings(**overrides))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_of_several_versions_none_is_guessed(server: Scripted, bundle: Bundle) -> None:
    found = await opened(server, bundle, KSERVE)
    model = found._server._asked.model  # type: ignore[attr-defined]
    assert model.choose(["1", bundle.version]) == bundle.version
    assert model.choose(["7"]) == "7"
    with pytest.raises(ConfigurationError, match="only 1, 2: name one with tower_version"):
        model.choose(["2", "1"])
    await found.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that no authority knows, and its key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


async def test_over_tls_by_the_authorities_of_the_machine(
    server: Scripted, bundle: Bundle, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    await web.TCPSite(server.runner, "127.0.0.1", 0, ssl_context=context).start()
    server.url = f"https://localhost:{server.runner.addresses[-1][1]}"
    with pytest.raises(DependencyUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await opened(server, bundle, KSERVE)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    tower = await opened(server, bundle, KSERVE)
    await tower.ping()
    await tower.close()


OTHERS = """
from dataclasses import replace
from workers.towers import onnx

class Theirs:
    def __init__(self, tower, factor):
        self._tower, self._factor = tower, factor
    async def embed(self, inputs):
        return {name: array * self._factor for name, array in (await self._tower.embed(inputs)).items()}
    async def ping(self):
        await self._tower.ping()
    async def close(self):
        await self._tower.close()

async def same(bundle, side, settings):
    return Theirs(onnx.open_tower(bundle, side, settings.tower_timeout_ms), 1)

async def other(bundle, side, settings):
    return Theirs(onnx.open_tower(bundle, side, settings.tower_timeout_ms), 1.01)
"""


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that somebody installed beside ours, with two towers."""
    folder = tmp_path / "others-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[recall.towers]\nsame = others_towers:same\nother = others_towers:other\n"
    )
    (tmp_path / "others_towers.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("others_towers", None)


async def test_a_tower_of_another_package_is_held_to_the_bundle_as_well(registered: None, bundle: Bundle) -> None:
    tower = await open_tower(bundle, "user", Settings(tower="same"))
    assert np.isfinite((await tower.embed(one_user(bundle)))["user_embedding"]).all()
    await tower.close()
    with pytest.raises(ConfigurationError, match=r"'other': the user tower: .* from the bundle's own tower"):
        await open_tower(bundle, "user", Settings(tower="other"))
