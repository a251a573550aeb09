"""Our test server's gRPC: the Open Inference Protocol, TorchServe's and TensorFlow Serving's services."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import orjson

from tests.backends.served import WHOLE_VERSION, BadInputs, Model, Models, UnknownModel, as_array
from workers.towers import kserve, tf_serving, torchserve
from workers.towers.rest import to_json

Handle = Callable[[Any, Any], Any]


def add_services(server: grpc.Server, models: Models) -> None:
    """Add all three."""
    for service, protocol, methods in (
        (kserve.SERVICE, kserve.PROTOCOL, Inference(models).methods()),
        (torchserve.SERVICE, torchserve.PROTOCOL, TorchServe(models).methods()),
        (tf_serving.PREDICTION, tf_serving.PROTOCOL, TfServing(models).methods()),
        (tf_serving.MODELS, tf_serving.PROTOCOL, {"GetModelStatus": TfServing(models).status}),
    ):
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(handle),
                protocol[request_type(service, name)].FromString,
                lambda each: each.SerializeToString(),
            )
            for name, handle in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def request_type(service: str, method: str) -> str:
    """The name of a method's request message."""
    return "Empty" if method == "Ping" else f"{method}Request"


def _answering(handle: Handle) -> Handle:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return handle(request, context)
        except UnknownModel as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except BadInputs as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception as error:
            context.abort(grpc.StatusCode.INTERNAL, str(error))

    return answer


class Inference:
    """inference.GRPCInferenceService."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def methods(self) -> dict[str, Handle]:
        return {"ModelReady": self.ready, "ModelMetadata": self.metadata, "ModelInfer": self.infer}

    def ready(self, request: Any, context: Any) -> Any:
        self._models.find(request.name, request.version)
        return kserve.PROTOCOL["ModelReadyResponse"](ready=True)

    def metadata(self, request: Any, context: Any) -> Any:
        model, tensor = self._models.find(request.name, request.version), kserve.PROTOCOL["TensorMetadata"]
        inputs, outputs = (
            [
                tensor(name=name, datatype=kserve.DATATYPES[each.type], shape=[-1, *each.shape[1:]])
                for name, each in arrays.items()
            ]
            for arrays in (model.inputs, model.outputs)
        )
        return kserve.PROTOCOL["ModelMetadataResponse"](
            name=model.name, versions=[model.version], inputs=inputs, outputs=outputs
        )

    def infer(self, request: Any, context: Any) -> Any:
        model = self._models.find(request.model_name, request.model_version)
        inputs = {
            tensor.name: np.frombuffer(blob, dtype=kserve.TYPES[tensor.datatype]).reshape(tuple(tensor.shape))
            for tensor, blob in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        found = model.run(inputs)
        tensor = kserve.PROTOCOL["Tensor"]
        return kserve.PROTOCOL["ModelInferResponse"](
            model_name=model.name,
            model_version=model.version,
            id=request.id,
            outputs=[tensor(name=name, datatype="FP32", shape=array.shape) for name, array in found.items()],
            raw_output_contents=[array.tobytes() for array in found.values()],
        )


class TorchServe:
    """org.pytorch.serve.grpc.inference.InferenceAPIsService."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def methods(self) -> dict[str, Handle]:
        return {"Ping": self.ping, "Predictions": self.predictions}

    def ping(self, request: Any, context: Any) -> Any:
        return torchserve.PROTOCOL["TorchServeHealthResponse"](health='{"status": "Healthy"}')

    def predictions(self, request: Any, context: Any) -> Any:
        model = self._models.find(request.model_name, request.model_version)
        asked = orjson.loads(request.input["data"])
        found = model.run({name: as_array(asked[name], each.type) for name, each in model.inputs.items()})
        return torchserve.PROTOCOL["PredictionResponse"](prediction=to_json(found))


class TfServing:
    """tensorflow.serving.PredictionService and ModelService."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def methods(self) -> dict[str, Handle]:
        return {"GetModelMetadata": self.metadata, "Predict": self.predict}

    def _model(self, spec: Any) -> Model:
        return self._models.find(spec.name, str(spec.version.value) if spec.HasField("version") else "")

    def status(self, request: Any, context: Any) -> Any:
        self._model(request.model_spec)
        status = tf_serving.PROTOCOL["ModelVersionStatus"](version=int(WHOLE_VERSION), state=tf_serving.AVAILABLE)
        return tf_serving.PROTOCOL["GetModelStatusResponse"](model_version_status=[status])

    def metadata(self, request: Any, context: Any) -> Any:
        model, messages = self._model(request.model_spec), tf_serving.PROTOCOL
        inputs, outputs = (
            {
                name: messages["TensorInfo"](
                    dtype=tf_serving.CODES[each.type],
                    tensor_shape=messages["Shape"](dim=[messages["Dim"](size=size) for size in (-1, *each.shape[1:])]),
                )
                for name, each in arrays.items()
            }
            for arrays in (model.inputs, model.outputs)
        )
        signature = messages["SignatureDef"](inputs=inputs, outputs=outputs)
        packed = messages["SignatureDefMap"](signature_def={tf_serving.SIGNATURE: signature}).SerializeToString()
        return messages["GetModelMetadataResponse"](metadata={"signature_def": messages["Any"](value=packed)})

    def predict(self, request: Any, context: Any) -> Any:
        model, messages = self._model(request.model_spec), tf_serving.PROTOCOL
        found = model.run({name: tf_serving.array_of(each) for name, each in request.inputs.items()})
        return messages["PredictResponse"](
            outputs={name: tf_serving.tensor(array) for name, array in found.items()},
            model_spec=messages["ModelSpec"](name=model.name, version=messages["Version"](value=int(WHOLE_VERSION))),
        )
