"""Two towers as a ranker: all users of a window embedded once, then compared with all items, exactly."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.bundle import Metric
from models.evaluation.ranking import Asked, Progress, Scorer
from models.samples import CHUNK
from models.tensors import Encoding, Inputs, item_inputs, log_features, user_inputs

Float32 = NDArray[np.float32]
EmbedUsers = Callable[[Inputs], Float32]
EmbedItems = Callable[[Inputs], tuple[Float32, Float32]]

BATCH = 1024


class TowerRanker:
    """The towers of a bundle, end to end: `embed_users` and `embed_items` run its graphs on named inputs.

    `encoding` is the bundle's own; its vocabularies are those of its fit, not of the data that is evaluated.
    """

    def __init__(
        self, towers: tuple[EmbedUsers, EmbedItems], encoding: Encoding, metric: Metric, progress: Progress
    ) -> None:
        self._embed_users, self._embed_items = towers
        self._encoding = encoding
        self._metric = metric
        self._progress = progress

    def __call__(self, asked: Asked, /) -> Scorer:
        """Embed the catalogue and every request's user: 4 * D bytes each are kept."""
        catalogue = asked.timeline.catalogue
        inputs = item_inputs(catalogue.item_ids, catalogue.attributes, self._encoding)
        items, history = self._embed_items(inputs)
        users = self._users(asked, np.vstack([history, np.zeros_like(history[:1])]))  # -1: not in the catalogue
        if self._metric == "COSINE":
            items = items / np.maximum(np.linalg.norm(items, axis=1, keepdims=True), 1e-12)
        halves = (items * items).sum(1) / 2 if self._metric == "L2" else np.float32(0)
        return lambda begin, end: users[begin:end] @ items.T - halves

    def _users(self, asked: Asked, history: Float32) -> Float32:
        requests, parts = asked.requests, [np.zeros((0, history.shape[1]), dtype=np.float32)]
        for start in range(0, len(requests.user), CHUNK):
            chunk = requests.piece(start, start + CHUNK)
            before_ms = asked.visible_before_ms[start : start + CHUNK]
            features = log_features(asked.timeline.log, chunk.user, before_ms, self._encoding)
            for begin in range(0, len(chunk.user), BATCH):
                piece = slice(begin, begin + BATCH)
                part = features.rows(piece)
                vectors = history[asked.timeline.catalogue.index_of(part.item_hashes)]
                times = (chunk.as_of_ms[piece], chunk.contexts[piece])
                parts.append(self._embed_users(user_inputs(part, vectors, *times, self._encoding)))
                self._progress(min(start + begin + BATCH, len(requests.user)) / len(requests.user))
        return np.concatenate(parts)
