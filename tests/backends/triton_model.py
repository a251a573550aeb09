"""A tower in Triton's Python backend. Requests that Triton hands over together are run together.

Copied into Triton's model repository beside `tower.onnx`, so it imports nothing of this project.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One tower; the name is Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model."""
        path = Path(args["model_repository"]) / args["model_version"] / "tower.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(path.read_bytes(), options)
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer per request; where they fail together, each is run alone, so that it fails for itself."""
        feeds = [
            {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
            for request in requests
        ]
        try:
            return self._run(feeds)
        except Exception as error:
            if len(feeds) == 1:
                return [triton.InferenceResponse([], triton.TritonError(str(error)))]
            return [self.execute([request])[0] for request in requests]

    def _run(self, feeds: list[dict[str, Any]]) -> list[Any]:
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._inputs}
        found = self._session.run(self._outputs, together)
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in feeds])[:-1]
        pieces = zip(*(np.split(array, ends) for array in found), strict=True)
        return [
            triton.InferenceResponse([triton.Tensor(*each) for each in zip(self._outputs, arrays, strict=True)])
            for arrays in pieces
        ]
