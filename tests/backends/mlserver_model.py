"""A tower as a runtime of MLServer, which finds it by its import path; it imports nothing of this project."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class OnnxTower(MLModel):
    """One tower."""

    async def load(self) -> bool:
        """Open the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(await get_model_uri(self._settings), options)
        self._ranks = {each.name: len(each.shape) for each in self._session.get_inputs()}
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Named arrays in, named arrays out. MLServer's codec gives one value a row a second axis."""
        feeds = {}
        for tensor in payload.inputs:
            array = NumpyCodec.decode_input(tensor)
            feeds[tensor.name] = array.reshape(-1) if self._ranks.get(tensor.name) == 1 else array
        names = [each.name for each in self._session.get_outputs()]
        found = zip(names, self._session.run(names, feeds), strict=True)
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(name, array) for name, array in found],
        )
