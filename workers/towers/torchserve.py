"""Towers behind TorchServe, in the archives of `recall model export --format torchserve`: REST and gRPC.

Named arrays as JSON in, named arrays as JSON out (`models/training/torchserve_handler.py`). TorchServe tells nothing of
a model's inputs and outputs, and its archives are of the bundle's version.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from numpy.typing import NDArray

from models.bundle import Bundle
from models.verify import Side
from workers.errors import DependencyUnavailable
from workers.settings import Settings
from workers.towers.messages import messages
from workers.towers.remote import RemoteTower, open_remote
from workers.towers.rest import JSON_HEADERS, Rest, read_arrays, read_json, to_json
from workers.towers.rpc import Rpc
from workers.towers.server import DEPENDENCY, Description, Model, Words

SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
PROTOCOL = messages(
    "recall_torchserve",
    """
    message PredictionsRequest { string model_name = 1; string model_version = 2; map<string, bytes> input = 3; }
    message PredictionResponse { bytes prediction = 1; }
    message Empty { }
    message TorchServeHealthResponse { string health = 1; }
    """,
)
HEALTHY = "Healthy"
WORDS: Words = {  # it says 503 and UNAVAILABLE of a model that fails too, and INTERNAL of one that it does not have
    "has no worker to serve": "busy",  # also of a queue that is full; over gRPC it calls that InternalServerException
    "InternalServerException": "refused",
    "ModelNotFoundException": "missing",
    "ModelVersionNotFoundException": "missing",
}


async def open_torchserve(bundle: Bundle, side: Side, settings: Settings) -> RemoteTower:
    """A tower behind TorchServe. Raises DependencyError, ConfigurationError."""
    return await open_remote(bundle, side, settings, TorchServeRest, TorchServeRpc)


class TorchServe:
    """What both protocols share."""

    def __init__(self, url: str, model: Model) -> None:
        self._model = model
        self._version = model.version or model.bundle_version
        self.where = f"{url} model {model.name} version {self._version}"

    async def describe(self) -> Description | None:
        """See ModelServer."""
        return None

    def _read(self, content: bytes) -> dict[str, NDArray[Any]]:
        answer = read_json(content)
        if not isinstance(answer, dict):
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: its answer is no object of named arrays")
        return read_arrays(answer, self._model.outputs)

    def _check_healthy(self, content: bytes) -> None:
        said = read_json(content)
        if not isinstance(said, dict) or said.get("status") != HEALTHY:
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: its health is {said}")


class TorchServeRest(TorchServe):
    """One model over REST."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self._rest = Rest(settings, WORDS)
        super().__init__(self._rest.url, model)
        self._path = f"/predictions/{quote(model.name, safe='')}/{quote(self._version, safe='')}"

    async def infer(self, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> dict[str, NDArray[Any]]:
        """See ModelServer."""
        del timeout_s  # the caller's to keep
        response = await self._rest.send("POST", self._path, to_json(inputs), JSON_HEADERS)
        return self._read(response.content)

    async def ready(self) -> None:
        """See ModelServer."""
        self._check_healthy((await self._rest.send("GET", "/ping")).content)

    async def close(self) -> None:
        """See ModelServer."""
        await self._rest.close()


class TorchServeRpc(TorchServe):
    """One model over gRPC."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self._rpc = Rpc(settings, WORDS)
        super().__init__(self._rpc.url, model)
        self._timeout_s = settings.tower_timeout_ms / 1000

    async def infer(self, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> dict[str, NDArray[Any]]:
        """See ModelServer."""
        request = PROTOCOL["PredictionsRequest"](
            model_name=self._model.name, model_version=self._version, input={"data": to_json(inputs)}
        )
        answer = await self._rpc.call(f"{SERVICE}/Predictions", request, PROTOCOL["PredictionResponse"], timeout_s)
        return self._read(answer.prediction)

    async def ready(self) -> None:
        """See ModelServer."""
        reply = PROTOCOL["TorchServeHealthResponse"]
        answer = await self._rpc.call(f"{SERVICE}/Ping", PROTOCOL["Empty"](), reply, self._timeout_s)
        self._check_healthy(answer.health.encode())

    async def close(self) -> None:
        """See ModelServer."""
        await self._rpc.close()
