"""What Faiss searches in place of all vectors: a graph (HNSW), or lists by nearest centroid (IVF_FLAT).

Both are built from float32[n, D] and then follow its changes slot by slot. Results are slots, -1 where there is none.
"""

from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from workers.index.catalogue import Mask, Slots
from workers.index.effort import ef_for, probes_for
from workers.ports import Float32

ROWS_PER_LIST = 39  # that k-means wants at least
OUTGROWN = 4  # lists are made anew, of the items as they are now, once there are so many times more
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
    """A graph, which cannot forget: the nodes of what was changed or deleted are left out of results."""

    def __init__(self, matrix: Float32, metric: int, links: int, ef_construction: int, ef: int) -> None:
        """Takes about 0.2 ms for each of 20,000 rows, and frees the interpreter meanwhile."""
        self._index = faiss.IndexHNSWFlat(matrix.shape[1], links, metric)
        self._index.hnsw.efConstruction = ef_construction
        self._ef = ef
        self._slots = np.zeros(0, dtype=np.int64)  # by node; -1 = dead
        self._nodes = np.zeros(0, dtype=np.int64)  # by slot; -1 = none
        self._dead = 0
        self.put(np.arange(len(matrix)), matrix)

    @property
    def nodes(self) -> int:
        """How many it holds, dead ones too."""
        return int(self._index.ntotal)

    def search(self, queries: Float32, depth: int, fitting: Mask | None) -> tuple[Float32, Slots]:
        """See Graph. `ef` grows with what is left out, so that it costs no recall."""
        slots = self._slots[: self._index.ntotal]
        selector, share = None, 1.0
        if fitting is not None or self._dead:
            alive = slots >= 0
            kept = alive if fitting is None else alive & fitting[np.maximum(slots, 0)]
            share = float(kept.mean())
            selector = faiss.IDSelectorBitmap(np.packbits(kept, bitorder="little"))
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef_for(depth, self._ef, share))
        scores, nodes = self._index.search(queries, depth, params=parameters)
        return scores, np.where(nodes >= 0, slots[np.maximum(nodes, 0)], -1)

    def costs(self, depth: int, share: float) -> float:
        """See Graph."""
        return SCORES_A_STEP * ef_for(depth, self._ef, share)

    def put(self, slots: Slots, vectors: Float32) -> None:
        """See Graph."""
        first = self._index.ntotal
        self._index.add(vectors)
        self._slots = _grown(self._slots, self._index.ntotal)
        self._nodes = _grown(self._nodes, int(slots.max(initial=-1)) + 1)
        before = self._nodes[slots]
        self._slots[before[before >= 0]] = -1
        self._dead += int((before >= 0).sum())
        added = np.arange(first, self._index.ntotal)
        self._slots[added] = slots
        self._nodes[slots] = added

    def move(self, slot: int, last: int, vector: Float32) -> None:  # noqa: ARG002  # its node stays as it is
        """See Graph."""
        self._slots[self._nodes[slot]] = -1
        self._dead += 1
        node = self._nodes[last]
        self._nodes[last] = -1
        if slot != last:
            self._nodes[slot], self._slots[node] = node, slot

    def is_worn(self, items: int) -> bool:  # noqa: ARG002  # it knows how many it holds
        """See Graph."""
        return bool(self._dead > max(FEW_NODES, MAX_DEAD_SHARE * self._index.ntotal))


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
