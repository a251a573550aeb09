"""Towers behind the Open Inference Protocol, version 2 (KServe, Triton, MLServer): REST as JSON or bytes, and gRPC.

https://github.com/kserve/open-inference-protocol; bytes over REST are Triton's extension "binary_tensor_data".
"""

import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.verify import Declared, Side
from workers.errors import DependencyUnavailable
from workers.settings import Settings
from workers.towers.messages import messages
from workers.towers.remote import RemoteTower, open_remote
from workers.towers.rest import JSON_HEADERS, Rest, read_json, to_json
from workers.towers.rpc import Rpc
from workers.towers.server import (
    DEPENDENCY,
    Description,
    Missing,
    Model,
    NotTheBundles,
    Refused,
)

BINARY_EXTENSION = "binary_tensor_data"
JSON_LENGTH = "Inference-Header-Content-Length"  # of the JSON before the bytes
DATATYPES = {"float32": "FP32", "int64": "INT64"}
TYPES = {datatype: name for name, datatype in DATATYPES.items()}

SERVICE = "inference.GRPCInferenceService"  # its methods begin with this
PROTOCOL = messages(
    "recall_inference",
    """
    message ModelReadyRequest { string name = 1; string version = 2; }
    message ModelReadyResponse { bool ready = 1; }
    message ModelMetadataRequest { string name = 1; string version = 2; }
    message TensorMetadata { string name = 1; string datatype = 2; repeated int64 shape = 3; }
    message ModelMetadataResponse {
        string name = 1; repeated string versions = 2; repeated TensorMetadata inputs = 4;
        repeated TensorMetadata outputs = 5;
    }
    message Contents { repeated int64 int64_contents = 3; repeated float fp32_contents = 6; }
    message Tensor { string name = 1; string datatype = 2; repeated int64 shape = 3; Contents contents = 5; }
    message RequestedOutput { string name = 1; }
    message ModelInferRequest {
        string model_name = 1; string model_version = 2; string id = 3; repeated Tensor inputs = 5;
        repeated RequestedOutput outputs = 6; repeated bytes raw_input_contents = 7;
    }
    message ModelInferResponse {
        string model_name = 1; string model_version = 2; string id = 3; repeated Tensor outputs = 5;
        repeated bytes raw_output_contents = 6;
    }
    """,
)


async def open_kserve(bundle: Bundle, side: Side, settings: Settings) -> RemoteTower:
    """A tower behind a server of this protocol. Raises DependencyError, ConfigurationError."""
    return await open_remote(bundle, side, settings, KServeRest, KServeRpc)


class Asked:
    """The model as it was asked for, and what its server said of it."""

    def __init__(self, url: str, model: Model) -> None:
        self.model = model
        self.where = f"{url} model {model.name}"
        self.version = ""  # empty: the server tells of none
        self._url = url
        self._as_columns: frozenset[str] = frozenset()
        self._ids = itertools.count(1)

    async def settled(self, metadata: Callable[[], Awaitable[tuple[list[str], Any]]]) -> Any:
        """Choose a version, and what `metadata` then says of it. Raises ConfigurationError, DependencyUnavailable.

        A server that tells of no versions is asked for the bundle's own; if it has none either, for no version at all.
        """
        versions, _ = await metadata()
        self._ask_for(self.model.choose(versions or [self.model.bundle_version]))
        try:
            return (await metadata())[1]
        except Missing:
            if versions or self.model.version is not None:
                raise
            self._ask_for("")
            return (await metadata())[1]

    def _ask_for(self, version: str) -> None:
        self.version = version
        self.where = f"{self._url} model {self.model.name}" + (f" version {version}" if version else "")

    def described(self, inputs: Iterable[Any], outputs: Iterable[Any]) -> Description | None:
        """Of tuples (name, datatype, shape). One value a row may be declared as a column, and is sent as one then."""
        found = {name: _declared(datatype, shape) for name, datatype, shape in inputs}
        flat = {name for name, array in self.model.inputs.items() if array.shape == ()}
        self._as_columns = frozenset(name for name in flat & found.keys() if found[name].shape == (None, 1))
        for name in self._as_columns:
            found[name] = Declared(found[name].type, (None,))
        given = {name: _declared(datatype, shape) for name, datatype, shape in outputs}
        return Description(found, given) if found or given else None

    def next_id(self) -> str:
        """An id for a request: servers may want one."""
        return str(next(self._ids))

    def shaped(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Inputs in the shapes that the server wants."""
        return {name: array[:, None] if name in self._as_columns else array for name, array in inputs.items()}

    def check_answer(self, version: str) -> None:
        """Raises NotTheBundles when another version has answered."""
        if self.version and version and version != self.version:
            raise NotTheBundles(DEPENDENCY, f"{self.where}: version {version} answered")


class KServeRest:
    """One model over REST."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self._rest = Rest(settings)
        self._asked = Asked(self._rest.url, model)
        self._binary_wanted = settings.tower_binary
        self._binary = False

    @property
    def where(self) -> str:
        """Address, model and version."""
        return self._asked.where

    def _path(self, what: str = "") -> str:
        version = f"/versions/{quote(self._asked.version, safe='')}" if self._asked.version else ""
        return f"/v2/models/{quote(self._asked.model.name, safe='')}{version}{what}"

    async def describe(self) -> Description | None:
        """See ModelServer."""
        try:
            said = await self._asked.settled(self._metadata)
            self._binary = self._binary_wanted and await self._takes_bytes()
            tensors = [[(each["name"], each["datatype"], each["shape"]) for each in said[side]] for side in SIDES]
        except Refused as error:  # Triton says 400 of a model that it does not have
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            line = f"{self.where}: its metadata is not of protocol V2: {type(error).__name__}: {error}"
            raise DependencyUnavailable(DEPENDENCY, line) from error
        return self._asked.described(*tensors)

    async def _takes_bytes(self) -> bool:
        """Whether the server says so; one that does not say what it can takes JSON."""
        try:
            return BINARY_EXTENSION in (await self._rest.get("/v2"))["extensions"]
        except (Missing, Refused, KeyError, TypeError):
            return False

    async def _metadata(self) -> tuple[list[str], Any]:
        said = await self._rest.get(self._path())
        return said.get("versions") or [], said

    async def infer(self, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> dict[str, NDArray[Any]]:
        """See ModelServer."""
        del timeout_s  # the caller's to keep
        if not self._binary:
            return await self._infer_text(inputs)
        shaped = self._asked.shaped(inputs)
        wanted, request = self._begun()
        blobs = [array.tobytes() for array in shaped.values()]
        request["inputs"] = [
            _tensor(name, array) | {"parameters": {"binary_data_size": len(blob)}}
            for (name, array), blob in zip(shaped.items(), blobs, strict=True)
        ]
        request["outputs"] = [output | {"parameters": {"binary_data": True}} for output in wanted]
        head = to_json(request)
        headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(len(head))}
        response = await self._rest.send("POST", self._path("/infer"), b"".join([head, *blobs]), headers)
        length = int(response.headers.get(JSON_LENGTH, len(response.content)))
        return self._read(read_json(response.content[:length]), response.content[length:])

    async def _infer_text(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        shaped = self._asked.shaped(inputs)
        wanted, request = self._begun()
        request["inputs"] = [_tensor(name, array) | {"data": array.ravel()} for name, array in shaped.items()]
        request["outputs"] = wanted
        response = await self._rest.send("POST", self._path("/infer"), to_json(request), JSON_HEADERS)
        return self._read(read_json(response.content), b"")

    def _begun(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        return [{"name": name} for name in self._asked.model.outputs], {"id": self._asked.next_id()}

    def _read(self, answer: Any, blobs: bytes) -> dict[str, NDArray[Any]]:
        """The tensors of an answer: lists, or pieces of the bytes behind it in the order of the outputs."""
        try:
            self._asked.check_answer(str(answer.get("model_version") or ""))
            found, at = {}, 0
            for output in answer["outputs"]:
                size = output.get("parameters", {}).get("binary_data_size")
                kind = TYPES.get(output["datatype"], "float64")
                if size is None:
                    array = np.array(output["data"], dtype=kind)  # null is NaN
                else:
                    array, at = np.frombuffer(blobs[at : at + size], dtype=kind), at + size
                found[output["name"]] = array.reshape(output["shape"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            line = f"{self.where}: its answer cannot be read: {type(error).__name__}: {error}"
            raise DependencyUnavailable(DEPENDENCY, line) from error
        return found

    async def ready(self) -> None:
        """See ModelServer."""
        await self._rest.send("GET", self._path("/ready"))

    async def close(self) -> None:
        """See ModelServer."""
        await self._rest.close()


class KServeRpc:
    """One model over gRPC."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self._rpc = Rpc(settings)
        self._asked = Asked(self._rpc.url, model)
        self._timeout_s = settings.tower_timeout_ms / 1000

    @property
    def where(self) -> str:
        """Address, model and version."""
        return self._asked.where

    async def describe(self) -> Description | None:
        """See ModelServer."""
        try:
            said = await self._asked.settled(self._metadata)
        except Refused as error:
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: {error}") from error
        tensors = [[(each.name, each.datatype, each.shape) for each in getattr(said, side)] for side in SIDES]
        return self._asked.described(*tensors)

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        return await self._rpc.call(f"{SERVICE}/{method}", request, PROTOCOL[f"{method}Response"], timeout_s)

    async def _metadata(self) -> tuple[list[str], Any]:
        request = PROTOCOL["ModelMetadataRequest"](name=self._asked.model.name, version=self._asked.version)
        said = await self._call("ModelMetadata", request, self._timeout_s)
        return list(said.versions), said

    async def infer(self, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> dict[str, NDArray[Any]]:
        """See ModelServer."""
        shaped = self._asked.shaped(inputs)
        request = PROTOCOL["ModelInferRequest"](
            model_name=self._asked.model.name,
            model_version=self._asked.version,
            id=self._asked.next_id(),
            inputs=[PROTOCOL["Tensor"](**_tensor(name, array)) for name, array in shaped.items()],
            outputs=[PROTOCOL["RequestedOutput"](name=name) for name in self._asked.model.outputs],
            raw_input_contents=[array.tobytes() for array in shaped.values()],
        )
        answer = await self._call("ModelInfer", request, timeout_s)
        self._asked.check_answer(answer.model_version)
        try:
            return dict(_tensors(answer))
        except ValueError as error:
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: its answer cannot be read: {error}") from error

    async def ready(self) -> None:
        """See ModelServer."""
        request = PROTOCOL["ModelReadyRequest"](name=self._asked.model.name, version=self._asked.version)
        answer = await self._call("ModelReady", request, self._timeout_s)
        if not answer.ready:
            raise DependencyUnavailable(DEPENDENCY, f"{self.where}: it is not ready")

    async def close(self) -> None:
        """See ModelServer."""
        await self._rpc.close()


SIDES = ("inputs", "outputs")


def _tensor(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": DATATYPES[str(array.dtype)]}


def _declared(datatype: str, shape: Iterable[int]) -> Declared:
    return Declared(TYPES.get(datatype, datatype), tuple(None if int(axis) < 0 else int(axis) for axis in shape))


def _tensors(answer: Any) -> Iterable[tuple[str, NDArray[Any]]]:
    """Of an answer, whether its values stand in one piece or typed."""
    for position, output in enumerate(answer.outputs):
        kind = TYPES.get(output.datatype, "float64")
        if answer.raw_output_contents:
            if position == len(answer.raw_output_contents):
                raise ValueError(f"it has {position} values of {len(answer.outputs)} outputs")
            array = np.frombuffer(answer.raw_output_contents[position], dtype=kind)
        else:
            values = output.contents.fp32_contents if kind == "float32" else output.contents.int64_contents
            array = np.array(values, dtype=kind)
        yield output.name, array.reshape(tuple(output.shape))
