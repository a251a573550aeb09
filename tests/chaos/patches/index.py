"""Rows that Milvus refuses: no event's id is too long for it, those of some items are made so on their way.

What the product checks by itself it would never send.
"""

from dataclasses import replace

from tests.chaos.workload import REFUSED_BY_INDEX
from workers.index import milvus_wire

TOO_LONG = "x" * 300

_upsert_request = milvus_wire._upsert_request


def upsert_request(collection, rows, positions, attributes):
    ids = [item_id + TOO_LONG if item_id.startswith(REFUSED_BY_INDEX) else item_id for item_id in rows.item_ids]
    return _upsert_request(collection, replace(rows, item_ids=ids), positions, attributes)


milvus_wire._upsert_request = upsert_request
