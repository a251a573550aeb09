"""What Faiss searches in place of all vectors: a graph (HNSW), or lists by nearest centroid (IVF_FLAT).

Both are built from float32[n, D] and then follow its changes slot by slot. Results are slots, -1 where there is none.
"""

from hashlib import blake2b
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from workers.index.catalogue import Mask, Slots
from workers.index.effort import ef_for, probes_for
from workers.ports import Float32

ROWS_PER_LIST = 39  # that k-means wants at least
OUTGROWN = 4  # lists are made anew, of the items as they are now, once there are so many times more
DIGEST_BYTES = 16  # of a vector: no two have the same, also of somebody who tries for it
MAX_DEAD_SHARE = 0.5  # of the nodes of a graph
FEW_NODES = 1000
SCORES_A_STEP = 64  # that take as long as a step of a walk, of which there are `ef`; measured: 60 to 110
SPARE = 2  # times what is asked for that the lists must hold


class Graph(Protocol):
    """What stands in for all vectors."""

    def search(self, queries: Float32, depth: int, fitting: Mask | None) -> tuple[Float32, Slots]:
        """Scores or distances and slots of the best of float32[B, D]: [B, depth], best first."""
        ...

    def costs(self, depth: int, share: float) -> float:
        """As many scores take as long as a search, where a filter leaves that share of the items."""
        ...

    def put(self, slots: Slots, vectors: Float32) -> None:
        """These slots hold these vectors now."""
        ...

    def move(self, slot: int, last: int, vector: Float32) -> None:
        """The item of a slot is gone, and that of the last slot, with this vector, has it now (they may be one)."""
        ...

    def is_worn(self, items: int) -> bool:
        """Whether it is better built anew, from so many items."""
        ...


class Hnsw:
    """A graph of distinct vectors: one node stands for all slots that hold the same, however many.

    Nodes of equal vectors would link to each other alone, and a walk that comes upon a few dozen of them ends there.

    It cannot forget: a node for which no slot is left is left out of results, until its vector comes again.
    """

    def __init__(self, matrix: Float32, metric: int, links: int, ef_construction: int, ef: int) -> None:
        """Takes about 0.2 ms for each of 20,000 rows, and frees the interpreter meanwhile."""
        self._index = faiss.IndexHNSWFlat(matrix.shape[1], links, metric)
        self._index.hnsw.efConstruction = ef_construction
        self._ef = ef
        self._known: dict[bytes, int] = {}  # digest of a vector -> its node, about 130 bytes each
        self._nodes = np.zeros(0, dtype=np.int64)  # by slot; -1 = none
        self._sorted: tuple[Slots, Slots] | None = None
        self.put(np.arange(len(matrix)), matrix)

    @property
    def nodes(self) -> int:
        """How many it holds, dead ones too."""
        return int(self._index.ntotal)

    def search(self, queries: Float32, depth: int, fitting: Mask | None) -> tuple[Float32, Slots]:
        """See Graph. `ef` grows with what is left out, so that it costs no recall."""
        order, starts = self._by_node()
        if fitting is not None:
            kept = fitting[order]
            order, starts = order[kept], np.append(0, np.cumsum(kept))[starts]
        sizes = np.diff(starts)
        alive, selector, share = sizes > 0, None, 1.0
        if not alive.all():
            share = float(alive.mean())
            selector = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef_for(depth, self._ef, share))
        scores, nodes = self._index.search(queries, min(depth, self.nodes), params=parameters)
        ends = np.cumsum(np.where(nodes >= 0, sizes[nodes], 0), axis=1)
        wanted = np.arange(depth)
        at = np.array([np.searchsorted(each, wanted, side="right") for each in ends])  # the node of each result
        there, at = at < nodes.shape[1], np.minimum(at, nodes.shape[1] - 1)
        found, end = np.take_along_axis(nodes, at, axis=1), np.take_along_axis(ends, at, axis=1)
        slots = np.where(there, order.take(starts[found + 1] - end + wanted, mode="clip"), -1)
        return np.take_along_axis(scores, at, axis=1), slots

    def costs(self, depth: int, share: float) -> float:
        """See Graph."""
        return SCORES_A_STEP * ef_for(depth, self._ef, share)

    def put(self, slots: Slots, vectors: Float32) -> None:
        """See Graph."""
        plain = vectors + np.float32(0)  # -0 becomes 0
        nodes, added = np.zeros(len(slots), dtype=np.int64), []
        for n, vector in enumerate(plain):
            before = len(self._known)
            nodes[n] = self._known.setdefault(blake2b(vector, digest_size=DIGEST_BYTES).digest(), before)
            if nodes[n] == before:
                added.append(n)
        self._index.add(plain[added])
        self._nodes = _grown(self._nodes, int(slots.max(initial=-1)) + 1)
        self._nodes[slots] = nodes
        self._sorted = None

    def move(self, slot: int, last: int, vector: Float32) -> None:  # noqa: ARG002  # its node stays as it is
        """See Graph."""
        self._nodes[slot] = self._nodes[last]
        self._nodes[last] = -1
        self._sorted = None

    def is_worn(self, items: int) -> bool:  # noqa: ARG002  # it knows how many it holds
        """See Graph."""
        dead = int((np.diff(self._by_node()[1]) == 0).sum())
        return dead > max(FEW_NODES, MAX_DEAD_SHARE * self.nodes)

    def _by_node(self) -> tuple[Slots, Slots]:
        """All slots, sorted by node, and where those of each node start there, and of one more. Sorted once a write."""
        if self._sorted is None:
            slots = np.flatnonzero(self._nodes >= 0)
            nodes = self._nodes[slots]
            starts = np.append(0, np.cumsum(np.bincount(nodes, minlength=self.nodes)))
            self._sorted = slots[np.argsort(nodes, kind="stable")], starts
        return self._sorted


class Ivf:
    """Lists of what is nearest to the same centroid; the nearest few lists are searched."""

    def __init__(self, matrix: Float32, metric: int, lists: int, probes: int) -> None:
        """Takes some seconds for k-means, and frees the interpreter meanwhile."""
        quantizer = faiss.IndexFlat(matrix.shape[1], metric)
        self._index = faiss.IndexIVFFlat(quantizer, matrix.shape[1], lists, metric)
        self._index.train(matrix)
        self._index.set_direct_map_type(faiss.DirectMap.Hashtable)
        self._index.add_with_ids(matrix, np.arange(len(matrix)))
        self._probes = probes
        self._items = len(matrix)

    def search(self, queries: Float32, depth: int, fitting: Mask | None) -> tuple[Float32, Slots]:
        """See Graph."""
        selector, share = None, 1.0
        if fitting is not None:
            share = float(fitting.mean())
            selector = faiss.IDSelectorBitmap(np.packbits(fitting, bitorder="little"))
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes_for(self._probes, self._index.nlist, share))
        found: tuple[Float32, Slots] = self._index.search(queries, depth, params=parameters)
        return found

    def costs(self, depth: int, share: float) -> float:
        """See Graph: what the lists hold that are read; and it is in vain where they hold too little."""
        items, lists = float(self._index.ntotal), int(self._index.nlist)
        read = probes_for(self._probes, lists, share) / lists * items
        return read if read * share > SPARE * depth else items

    def put(self, slots: Slots, vectors: Float32) -> None:
        """See Graph."""
        self._index.remove_ids(slots)
        self._index.add_with_ids(vectors, slots)

    def move(self, slot: int, last: int, vector: Float32) -> None:
        """See Graph."""
        self._index.remove_ids(np.unique([slot, last]))
        if slot != last:
            self._index.add_with_ids(vector[None], np.array([slot]))

    def is_worn(self, items: int) -> bool:
        """See Graph."""
        return items > OUTGROWN * self._items


def _grown(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """At least so long, -1 where it was not."""
    if size <= len(values):
        return values
    grown = np.full(max(size, 2 * len(values)), -1, dtype=np.int64)
    grown[: len(values)] = values
    return grown
