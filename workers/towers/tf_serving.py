"""Towers behind TensorFlow Serving: REST, columns of named arrays as JSON, and gRPC's PredictionService.

https://www.tensorflow.org/tfx/serving/api_rest; its versions are whole numbers, the signature is `serving_default`.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.verify import Declared, Side
from workers.errors import ConfigurationError, DependencyUnavailable
from workers.settings import Settings
from workers.towers.messages import messages
from workers.towers.remote import RemoteTower, open_remote
from workers.towers.rest import JSON_HEADERS, Rest, read_arrays, read_json, to_json
from workers.towers.rpc import Rpc
from workers.towers.server import (
    DEPENDENCY,
    Description,
    Model,
    NotTheBundles,
    Refused,
)

SIGNATURE = "serving_default"
AVAILABLE = 30
DT_FLOAT, DT_INT64 = 1, 9
CODES = {"float32": DT_FLOAT, "int64": DT_INT64}
NAMES = {DT_FLOAT: "float32", DT_INT64: "int64", "DT_FLOAT": "float32", "DT_INT64": "int64"}

PREDICTION, MODELS = "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"
PROTOCOL = messages(
    "recall_tf_serving",
    """
    message Version { int64 value = 1; }
    message ModelSpec { string name = 1; Version version = 2; string signature_name = 3; }
    message Dim { int64 size = 1; }
    message Shape { repeated Dim dim = 2; }
    message Tensor {
        int32 dtype = 1; Shape tensor_shape = 2; bytes tensor_content = 4; repeated float float_val = 5;
        repeated int64 int64_val = 10;
    }
    message PredictRequest {
        ModelSpec model_spec = 1; map<string, Tensor> inputs = 2; repeated string output_filter = 3;
    }
    message PredictResponse { map<string, Tensor> outputs = 1; ModelSpec model_spec = 2; }
    message TensorInfo { int32 dtype = 2; Shape tensor_shape = 3; }
    message SignatureDef { map<string, TensorInfo> inputs = 1; map<string, TensorInfo> outputs = 2; }
    message SignatureDefMap { map<string, SignatureDef> signature_def = 1; }
    message Any { string type_url = 1; bytes value = 2; }
    message GetModelMetadataRequest { ModelSpec model_spec = 1; repeated string metadata_field = 2; }
    message GetModelMetadataResponse { ModelSpec model_spec = 1; map<string, Any> metadata = 2; }
    message GetModelStatusRequest { ModelSpec model_spec = 1; }
    message ModelVersionStatus { int64 version = 1; int32 state = 2; }
    message GetModelStatusResponse { repeated ModelVersionStatus model_version_status = 1; }
    """,
)


async def open_tf_serving(bundle: Bundle, side: Side, settings: Settings) -> RemoteTower:
    """A tower behind TensorFlow Serving. Raises DependencyError, ConfigurationError."""
    if settings.tower_version and not settings.tower_version.isdecimal():
        raise ConfigurationError(f"tower_version: {settings.tower_version!r} is no whole number, as here they must be")
    return await open_remote(bundle, side, settings, TfServingRest, TfServingRpc)


class TfServing:
    """What both protocols share."""

    def __init__(self, url: str, model: Model) -> None:
        self._model = model
        self._version = ""
        self._url = url
        self.where = f"{url} model {model.name}"

    def _settle(self, states: Iterable[tuple[str, bool]]) -> None:
        """Choose, of tuples (version, whether it is available)."""
        available = [version for version, is_there in states if is_there]
        if not available:
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: no version of it is available")
        self._version = self._model.choose(available)
        self.where = f"{self._url} model {self._model.name} version {self._version}"


class TfServingRest(TfServing):
    """One model over REST."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self._rest = Rest(settings)
        super().__init__(self._rest.url, model)

    def _path(self, what: str = "") -> str:
        version = f"/versions/{self._version}" if self._version else ""
        return f"/v1/models/{quote(self._model.name, safe='')}{version}{what}"

    async def _states(self) -> list[tuple[str, bool]]:
        found = (await self._rest.get(self._path()))["model_version_status"]
        return [(str(each["version"]), each["state"] == "AVAILABLE") for each in found]

    async def describe(self) -> Description | None:
        """See ModelServer."""
        try:
            self._settle(await self._states())
            said = await self._rest.get(self._path("/metadata"))
            signature = said["metadata"]["signature_def"]["signature_def"][SIGNATURE]
            inputs, outputs = (
                {name: _declared(each["dtype"], _sizes(each)) for name, each in signature[side].items()}
                for side in ("inputs", "outputs")
            )
        except Refused as error:
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            line = f"{self.where}: its metadata cannot be read: {type(error).__name__}: {error}"
            raise DependencyUnavailable(DEPENDENCY, line) from error
        return Description(inputs, outputs)

    async def infer(self, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> dict[str, NDArray[Any]]:
        """See ModelServer."""
        del timeout_s  # the caller's to keep
        body = to_json({"signature_name": SIGNATURE, "inputs": inputs})
        response = await self._rest.send("POST", self._path(":predict"), body, JSON_HEADERS)
        answer = read_json(response.content)
        outputs = answer.get("outputs") if isinstance(answer, dict) else None
        if isinstance(outputs, list) and len(self._model.outputs) == 1:  # a single one comes without its name
            outputs = dict.fromkeys(self._model.outputs, outputs)
        if not isinstance(outputs, dict):
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: its answer has no outputs")
        return read_arrays(outputs, self._model.outputs)

    async def ready(self) -> None:
        """See ModelServer."""
        try:
            states = await self._states()
        except (KeyError, TypeError) as error:
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: its status cannot be read: {error}") from error
        _check_available(states, self.where)

    async def close(self) -> None:
        """See ModelServer."""
        await self._rest.close()


class TfServingRpc(TfServing):
    """One model over gRPC."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self._rpc = Rpc(settings)
        super().__init__(self._rpc.url, model)
        self._timeout_s = settings.tower_timeout_ms / 1000

    def _spec(self, **fields: str) -> Any:
        version = PROTOCOL["Version"](value=int(self._version)) if self._version else None
        return PROTOCOL["ModelSpec"](name=self._model.name, version=version, **fields)

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        reply = PROTOCOL[method.rpartition("/")[2] + "Response"]
        return await self._rpc.call(method, request, reply, timeout_s)

    async def _states(self) -> list[tuple[str, bool]]:
        request = PROTOCOL["GetModelStatusRequest"](model_spec=self._spec())
        found = (await self._call(f"{MODELS}/GetModelStatus", request, self._timeout_s)).model_version_status
        return [(str(each.version), each.state == AVAILABLE) for each in found]

    async def describe(self) -> Description | None:
        """See ModelServer."""
        try:
            self._settle(await self._states())
            request = PROTOCOL["GetModelMetadataRequest"](model_spec=self._spec(), metadata_field=["signature_def"])
            said = await self._call(f"{PREDICTION}/GetModelMetadata", request, self._timeout_s)
        except Refused as error:
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: {error}") from error
        signatures = PROTOCOL["SignatureDefMap"].FromString(said.metadata["signature_def"].value).signature_def
        if SIGNATURE not in signatures:
            raise NotTheBundles(DEPENDENCY, f"{self.where}: it has no signature {SIGNATURE}")
        inputs, outputs = (
            {
                name: _declared(each.dtype, [dim.size for dim in each.tensor_shape.dim])
                for name, each in getattr(signatures[SIGNATURE], side).items()
            }
            for side in ("inputs", "outputs")
        )
        return Description(inputs, outputs)

    async def infer(self, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> dict[str, NDArray[Any]]:
        """See ModelServer."""
        request = PROTOCOL["PredictRequest"](
            model_spec=self._spec(signature_name=SIGNATURE),
            inputs={name: tensor(array) for name, array in inputs.items()},
            output_filter=list(self._model.outputs),
        )
        answer = await self._call(f"{PREDICTION}/Predict", request, timeout_s)
        if answer.model_spec.HasField("version") and str(answer.model_spec.version.value) != self._version:
            line = f"{self.where}: version {answer.model_spec.version.value} answered"
            raise NotTheBundles(DEPENDENCY, line)
        try:
            return {name: array_of(found) for name, found in answer.outputs.items()}
        except ValueError as error:
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: its answer cannot be read: {error}") from error

    async def ready(self) -> None:
        """See ModelServer."""
        _check_available(await self._states(), self.where)

    async def close(self) -> None:
        """See ModelServer."""
        await self._rpc.close()


def tensor(array: NDArray[Any]) -> Any:
    """A TensorProto."""
    shape = PROTOCOL["Shape"](dim=[PROTOCOL["Dim"](size=size) for size in array.shape])
    content = np.ascontiguousarray(array).tobytes()
    return PROTOCOL["Tensor"](dtype=CODES[str(array.dtype)], tensor_shape=shape, tensor_content=content)


def array_of(found: Any) -> NDArray[Any]:
    """Of a TensorProto, whether its values stand in one piece or typed. Raises ValueError when they do not fit."""
    kind = NAMES.get(found.dtype, "float64")
    if found.tensor_content:
        array = np.frombuffer(found.tensor_content, dtype=kind)
    else:
        array = np.array(found.float_val or found.int64_val, dtype=kind)
    shape = tuple(dim.size for dim in found.tensor_shape.dim)
    if array.size == 1:  # one value stands for all
        return np.full(shape, array[0])
    return array.reshape(shape)


def _sizes(info: Mapping[str, Any]) -> list[int]:
    return [int(dim["size"]) for dim in info["tensor_shape"].get("dim", [])]


def _declared(dtype: int | str, sizes: Iterable[int]) -> Declared:
    return Declared(NAMES.get(dtype, str(dtype)), tuple(None if size < 0 else size for size in sizes))


def _check_available(states: list[tuple[str, bool]], where: str) -> None:
    if not any(is_there for _, is_there in states):
        raise DependencyUnavailable(DEPENDENCY, f"{where}: it is not available")
