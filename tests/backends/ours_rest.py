"""Our test server's REST: the Open Inference Protocol, TorchServe's predictions and TensorFlow Serving's predict.

It is ours: it says what the protocols say, and nothing of how the servers that speak them behave otherwise.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import orjson
from aiohttp import web

from tests.backends.served import WHOLE_VERSION, Arrays, BadInputs, Model, Models, UnknownModel, as_array
from workers.towers.kserve import DATATYPES, JSON_LENGTH, TYPES
from workers.towers.rest import to_json

MAX_BYTES = 64_000_000
TF_TYPES = {"float32": "DT_FLOAT", "int64": "DT_INT64"}

Handler = Callable[[web.Request], Awaitable[web.Response]]


def application(models: Models) -> web.Application:
    """All three protocols under one address."""
    app = web.Application(client_max_size=MAX_BYTES)
    rest = Rest(models)
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.router.add_get(path, rest.metadata)
        app.router.add_get(f"{path}/ready", rest.ready)
        app.router.add_post(f"{path}/infer", rest.infer)
    app.router.add_get("/v2", rest.server)
    app.router.add_get("/ping", rest.healthy)
    app.router.add_post("/predictions/{name}/{version}", rest.torchserve)
    app.router.add_get("/v1/models/{name}", rest.tf_status)
    app.router.add_get("/v1/models/{name}/versions/{version}", rest.tf_status)
    app.router.add_get("/v1/models/{name}/versions/{version}/metadata", rest.tf_metadata)
    app.router.add_post("/v1/models/{name}/versions/{version}:predict", rest.tf_predict)
    return app


class Rest:
    """Handlers."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def _model(self, request: web.Request) -> Model:
        try:
            return self._models.find(request.match_info["name"], request.match_info.get("version", ""))
        except UnknownModel as error:
            raise web.HTTPNotFound(
                text=to_json({"error": str(error)}).decode(), content_type="application/json"
            ) from error

    async def server(self, request: web.Request) -> web.Response:
        return _answer({"name": "ours", "version": "0", "extensions": ["binary_tensor_data"]})

    async def metadata(self, request: web.Request) -> web.Response:
        model = self._model(request)
        sides = {
            side: [
                {"name": name, "datatype": DATATYPES[each.type], "shape": [-1, *each.shape[1:]]}
                for name, each in arrays.items()
            ]
            for side, arrays in (("inputs", model.inputs), ("outputs", model.outputs))
        }
        return _answer({"name": model.name, "versions": [model.version], "platform": "onnx"} | sides)

    async def ready(self, request: web.Request) -> web.Response:
        self._model(request)
        return web.Response()

    async def infer(self, request: web.Request) -> web.Response:
        model, body = self._model(request), await request.read()
        length = int(request.headers.get(JSON_LENGTH, len(body)))
        asked = orjson.loads(body[:length])
        try:
            outputs = model.run(_tensors(asked["inputs"], body[length:]))
        except BadInputs as error:
            return _answer({"error": str(error)}, 400)
        except Exception as error:
            return _answer({"error": str(error)}, 500)
        said, blobs = [], []
        for wanted in asked["outputs"]:
            array = outputs[wanted["name"]]
            tensor: dict[str, Any] = {
                "name": wanted["name"],
                "datatype": DATATYPES[str(array.dtype)],
                "shape": list(array.shape),
            }
            if wanted.get("parameters", {}).get("binary_data"):
                blobs.append(array.tobytes())
                tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                tensor["data"] = array.ravel()
            said.append(tensor)
        head = to_json({"id": asked["id"], "model_name": model.name, "model_version": model.version, "outputs": said})
        return web.Response(body=b"".join([head, *blobs]), headers={JSON_LENGTH: str(len(head))})

    async def healthy(self, request: web.Request) -> web.Response:
        return _answer({"status": "Healthy"})

    async def torchserve(self, request: web.Request) -> web.Response:
        model, asked = self._model(request), orjson.loads(await request.read())
        try:
            return _answer(model.run({name: as_array(asked[name], each.type) for name, each in model.inputs.items()}))
        except (BadInputs, KeyError) as error:
            return _answer({"error": str(error)}, 400)
        except Exception:
            failed = {"code": 503, "type": "InternalServerException", "message": "Prediction failed"}
            return _answer(failed, 503)

    async def tf_status(self, request: web.Request) -> web.Response:
        self._model(request)
        return _answer({"model_version_status": [{"version": WHOLE_VERSION, "state": "AVAILABLE", "status": {}}]})

    async def tf_metadata(self, request: web.Request) -> web.Response:
        model = self._model(request)
        signature = {
            side: {
                name: {"dtype": TF_TYPES[each.type], "tensor_shape": {"dim": _dims(each.shape)}}
                for name, each in arrays.items()
            }
            for side, arrays in (("inputs", model.inputs), ("outputs", model.outputs))
        }
        return _answer({"metadata": {"signature_def": {"signature_def": {"serving_default": signature}}}})

    async def tf_predict(self, request: web.Request) -> web.Response:
        model, asked = self._model(request), orjson.loads(await request.read())["inputs"]
        try:
            outputs = model.run({name: as_array(asked[name], each.type) for name, each in model.inputs.items()})
        except Exception as error:
            return _answer({"error": str(error)}, 400)
        return _answer({"outputs": next(iter(outputs.values())) if len(outputs) == 1 else outputs})


def _tensors(inputs: list[Mapping[str, Any]], blobs: bytes) -> Arrays:
    found: Arrays = {}
    at = 0
    for tensor in inputs:
        kind, size = TYPES[tensor["datatype"]], tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = as_array(tensor["data"], kind)
        else:
            array, at = np.frombuffer(blobs[at : at + size], dtype=kind), at + size
        found[tensor["name"]] = array.reshape(tensor["shape"])
    return found


def _dims(shape: tuple[Any, ...]) -> list[dict[str, str]]:
    return [{"size": str(axis) if isinstance(axis, int) else "-1", "name": ""} for axis in shape]


def _answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=to_json(value), status=status, content_type="application/json")
