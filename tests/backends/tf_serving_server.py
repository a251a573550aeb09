"""Our TensorFlow Serving: its official gRPC stubs (tensorflow-protobuf), ONNX towers behind them.

No registry has the server itself. `tf_serving_server.py PORT NAME=FILE...`, in an environment of its own, so it imports
nothing of this project.
"""

import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.any_pb2 import Any as Packed
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

# The package lacks a file that its own stubs import: the error codes, of which nothing is sent here.
MISSING = "tensorflow.tsl.protobuf.error_codes_pb2"
codes = descriptor_pb2.FileDescriptorProto(
    name="tensorflow/tsl/protobuf/error_codes.proto", package="tensorflow.error", syntax="proto3"
)
codes.enum_type.add(name="Code").value.add(name="OK", number=0)
descriptor_pool.Default().Add(codes)
for module in ("tensorflow.tsl", "tensorflow.tsl.protobuf", MISSING):
    sys.modules[module] = types.ModuleType(module)
sys.modules["tensorflow.tsl.protobuf"].error_codes_pb2 = sys.modules[MISSING]  # type: ignore[attr-defined]

from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

VERSION = 1
DTYPES = {"tensor(float)": types_pb2.DT_FLOAT, "tensor(int64)": types_pb2.DT_INT64}
KINDS = {types_pb2.DT_FLOAT: np.float32, types_pb2.DT_INT64: np.int64}
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Towers:
    """Models by name."""

    def __init__(self, paths: dict[str, Path]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._sessions = {
            name: onnxruntime.InferenceSession(path.read_bytes(), options) for name, path in paths.items()
        }

    def find(self, spec: Any, context: grpc.ServicerContext) -> Any:
        """A model that a request names; it ends NOT_FOUND without one."""
        version = spec.version.value if spec.HasField("version") else VERSION
        if spec.name not in self._sessions or version != VERSION:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific({spec.name}, {version})"
            )
        return self._sessions[spec.name]


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """tensorflow.serving.PredictionService."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802  # the protocol's
        """Run a model."""
        session = self._towers.find(request.model_spec, context)
        names = [each.name for each in session.get_outputs()]
        try:
            found = session.run(names, {name: array_of(each) for name, each in request.inputs.items()})
        except Exception as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = VERSION
        for position, (name, array) in enumerate(zip(names, found, strict=True)):
            response.outputs[name].CopyFrom(tensor(array, in_one_piece=position % 2 == 0))
        return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Its signature."""
        session = self._towers.find(request.model_spec, context)
        signature = meta_graph_pb2.SignatureDef(
            inputs={each.name: info(each) for each in session.get_inputs()},
            outputs={each.name: info(each) for each in session.get_outputs()},
        )
        packed = Packed()
        packed.Pack(get_model_metadata_pb2.SignatureDefMap(signature_def={"serving_default": signature}))
        return get_model_metadata_pb2.GetModelMetadataResponse(
            model_spec=request.model_spec, metadata={"signature_def": packed}
        )


def status_service(towers: Towers) -> Any:
    """tensorflow.serving.ModelService: one version, available. Its stub imports more that the package lacks."""

    def answer(request: Any, context: Any) -> Any:
        towers.find(request.model_spec, context)
        state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        status = get_model_status_pb2.ModelVersionStatus(version=VERSION, state=state)
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=[status])

    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        get_model_status_pb2.GetModelStatusRequest.FromString,
        get_model_status_pb2.GetModelStatusResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", {"GetModelStatus": handler})


def array_of(found: Any) -> Any:
    """Of a TensorProto, either way."""
    kind = KINDS[found.dtype]
    shape = [dim.size for dim in found.tensor_shape.dim]
    if found.tensor_content:
        return np.frombuffer(found.tensor_content, kind).reshape(shape)
    return np.array(found.int64_val or found.float_val, kind).reshape(shape)


def tensor(array: Any, *, in_one_piece: bool) -> Any:
    """A TensorProto; the real server gives values one by one, others in one piece."""
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in array.shape]
    shape = tensor_shape_pb2.TensorShapeProto(dim=dims)
    if in_one_piece:
        return tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape, tensor_content=array.tobytes())
    return tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape, float_val=array.ravel().tolist())


def info(node: Any) -> Any:
    """How a node is declared."""
    sizes = [size if isinstance(size, int) else -1 for size in node.shape]
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes]
    shape = tensor_shape_pb2.TensorShapeProto(dim=dims)
    return meta_graph_pb2.TensorInfo(name=node.name, dtype=DTYPES[node.type], tensor_shape=shape)


def main(port: str, *models: str) -> None:
    """Serve until ended."""
    towers = Towers({name: Path(path) for name, _, path in (each.partition("=") for each in models)})
    server = grpc.server(ThreadPoolExecutor(4), options=UNLIMITED)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Predictions(towers), server)
    server.add_generic_rpc_handlers((status_service(towers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
