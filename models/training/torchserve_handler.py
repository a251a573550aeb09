"""TorchServe's handler of a tower: named arrays as JSON in, named arrays as JSON out.

Copied into archives as it stands, so it imports nothing of this project, and defines one class: TorchServe's rule.

A request is an object of input name -> nested lists, the batch first, any batch; `signature.json` beside it names
them with types and shapes. The answer is an object of output name -> nested lists. Requests that TorchServe hands over
together are run together. One that is not as declared is answered 400 and `{"error": ...}`; the others are not touched.
"""

import json
from pathlib import Path
from typing import Any

import torch


class TowerHandler:
    """One tower in one worker process of TorchServe."""

    def initialize(self, context: Any) -> None:
        """Load the model and its signature from the unpacked archive."""
        folder, gpu = Path(context.system_properties["model_dir"]), context.system_properties.get("gpu_id")
        self._device = torch.device(f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu")
        self._signature = json.loads((folder / "signature.json").read_text())
        path = folder / context.manifest["model"]["serializedFile"]
        self._model = torch.jit.load(str(path), map_location=self._device).eval()
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """One answer per request, in their order."""
        answers: list[dict[str, Any]] = [{} for _ in data]
        good: dict[int, list[Any]] = {}
        for position, request in enumerate(data):
            try:
                good[position] = self._arguments(request)
            except (ValueError, TypeError, RuntimeError, OverflowError) as error:
                answers[position] = {"error": str(error)}
                context.set_response_status(code=400, phrase="Bad Request", idx=position)
        if good:
            sizes = [len(arguments[0]) for arguments in good.values()]
            columns = [torch.cat(column).to(self._device) for column in zip(*good.values(), strict=True)]
            with torch.inference_mode():
                found = self._model(*columns)
            outputs = found if isinstance(found, tuple) else (found,)
            for name, output in zip(self._signature["outputs"], outputs, strict=True):
                for position, rows in zip(good, output.cpu().split(sizes), strict=True):
                    answers[position][name] = rows.tolist()
        return answers

    def _arguments(self, request: dict[str, Any]) -> list[Any]:
        """The tower's tensors in its own order. Raises an error that says what is not as declared."""
        body = request.get("body") or request.get("data")
        inputs = json.loads(bytes(body)) if isinstance(body, bytes | bytearray) else body
        declared = self._signature["inputs"]
        if not isinstance(inputs, dict) or inputs.keys() != declared.keys():
            raise ValueError(f"a request is an object of the inputs {', '.join(declared)}")
        arguments = [self._tensor(name, inputs[name], declared[name]) for name in declared]
        if {len(argument) for argument in arguments} != {len(arguments[0])}:
            raise ValueError("inputs have different numbers of rows")
        return arguments

    @staticmethod
    def _tensor(name: str, values: Any, declared: dict[str, Any]) -> Any:
        tensor = torch.as_tensor(values)
        whole = declared["type"] == "int64"
        if tensor.ndim == 0 or not len(tensor) or list(tensor.shape[1:]) != declared["shape"]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, declared is [batch, *{declared['shape']}]")
        if whole and tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be integers")
        return tensor if whole else tensor.to(torch.float32)
