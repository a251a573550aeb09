"""Writes docs/settings.md from `Settings` and the meanings here: `python -m workers.settings_doc`, or `--check`."""

import sys
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr

from workers.doc_page import write_or_check
from workers.settings import Settings

MEANINGS = {
    "namespace": "in front of topics, groups, keys and collections: at most 40 lower-case letters, digits, underscores",
    "data_dir": "bundles, logs, the local stack, snapshots of an index in the process; workers want one that stays",
    "kafka_bootstrap": "brokers, `host:port`, separated by commas",
    "kafka_security_protocol": "of that listener: TLS, a login, both or neither ([how](operations.md#tls-and-logins))",
    "kafka_sasl_mechanism": "how the login is told",
    "kafka_user": "of `SASL_...`, with `kafka_password`",
    "kafka_password": "goes with `kafka_user`; a secret",
    "kafka_ca_path": "whose certificates the brokers' are checked against; empty: the usual ones",
    "kafka_cert_path": "of this client, for brokers that ask for one, with `kafka_key_path`",
    "kafka_key_path": "goes with `kafka_cert_path`",
    "redis_url": "`redis://[[user]:password@]host:port/db`, `rediss://` with TLS; a secret",
    "redis_cluster": "`redis_url` is a node of a Redis Cluster",
    "milvus_uri": "`http://host:port`, `https://` with TLS, or a file: [Milvus Lite](storage.md#milvus-lite)",
    "milvus_token": "`user:password`, or the key of an API; a secret",
    "milvus_user": "in place of a token, with `milvus_password`",
    "milvus_password": "goes with `milvus_user`; a secret",
    "milvus_database": "which must be there; empty: the server's default",
    "milvus_ca_path": "whose certificates the server's is checked against; empty: the usual ones",
    "milvus_cert_path": "of this client, for a server that asks for one, with `milvus_key_path`",
    "milvus_key_path": "goes with `milvus_cert_path`",
    "milvus_server_name": "that the server's certificate is for, where `milvus_uri` has another",
    "local_milvus": "which Milvus `recall up` starts; `auto`: the server where its package runs, else Milvus Lite",
    "partitions": "of topics that `recall topics apply` makes or grows (never `item-updates`)",
    "replication_factor": "of topics that `recall topics apply` makes",
    "min_insync_replicas": "of topics; what exists is held to it",
    "activity_retention_ms": "how long `user-activity` and dead letters are kept: 7 days",
    "requests_retention_ms": "how long requests and answers are kept: 1 day",
    "user_ttl_ms": "how long a user's record outlives its last change: 90 days; longer than `activity_retention_ms`",
    "popular_refresh_ms": "how often a recall worker reads popular lists anew",
    "index": "where item vectors are: `milvus`, `faiss`, `memory`, or an entry point's name ([indexes](indexes.md))",
    "index_type": "`auto`: FLAT for fewer than `index_flat_below` rows, else HNSW; decided when a collection is made",
    "index_flat_below": "see `index_type`",
    "index_ef": "how far a search in HNSW looks, at least; more where a filter leaves little",
    "index_m": "links of a node in HNSW's graph",
    "index_ef_construction": "candidates for these links when the graph is built",
    "index_nlist": "lists of IVF_FLAT",
    "index_nprobe": "of these, how many a search reads",
    "index_snapshot_ms": "how often an index in the process is written down; 0 = never",
    "tower": "`onnx` in the worker, `kserve`, `torchserve`, `tf_serving`, or one more ([backends](backends.md#towers))",
    "tower_url": "of the model server: `http://`, `https://` REST; `grpc://`, `grpcs://` gRPC",
    "tower_user_model": "its name on the server; `{version}` stands for the bundle's version",
    "tower_item_model": "likewise",
    "tower_version": "as the server names it; empty: the bundle's own, or the only one that it has",
    "tower_max_batch": "rows of one call; larger batches are split",
    "tower_binary": "tensors as bytes over REST, where the server takes them",
    "tower_token": "sent as `Authorization: Bearer`; a secret",
    "scenes": "`[scenes.NAME]`: what requests get; `default` where they name none ([scenes](scenes.md))",
    "sources": "`[sources.NAME]`: who is asked for values that a request lacks ([features](features.md))",
    "extractors": "code of the spec's extractors: name to `module:attribute` ([features](features.md#extractors))",
    "reuse_ms": "how long an equal request gets the same search results",
    "last_lists": "users' lists kept in memory for when the index is unavailable",
    "last_list_ttl_ms": "how long such a list counts: 1 hour",
    "store_timeout_ms": "of a call to Redis",
    "redis_durability_ms": "a write that is older survives Redis' death: only then is its offset committed",
    "index_timeout_ms": "of a call to the index",
    "tower_timeout_ms": "of a run of a tower, or of a model server's answer",
    "publish_timeout_ms": "of a write to Kafka",
    "wait_for_event_ms": "how long a request with `after_event_id` waits, at most",
    "dead_letters_per_minute": "beyond that a worker [pauses](operations.md#too-many-of-them); 0 = no cap",
    "stuck_after_ms": "a worker whose loop has not turned for so long [ends itself](operations.md#health)",
    "allow_unsafe": "start although `recall doctor` says that data may be lost",
    "web_bind": "the address of `/healthz`, `/readyz` and `/metrics`, which ask for no password",
    "web_port": "their port, of several workers the first; 0: [see there](operations.md#health)",
}

INTRODUCTION = """\
# Settings

Generated by `python -m workers.settings_doc`; names, defaults and values stand in `workers/settings.py`.

A setting `name` is a line in `recall.toml` of the working directory, or the variable `RECALL_NAME` in the environment,
which wins. `RECALL_NAME_FILE` names a file that holds the value, for secrets. In a variable and in its file,
tables (`scenes`, `sources`, `extractors`) are JSON. `recall doctor` prints every setting with its value and where that
came from, and names what looks like one and is none. Addresses that are not set (`kafka_bootstrap`, `redis_url`,
`milvus_uri`) are those of the local stack that runs in `data_dir`.

`RECALL_CACHE_DIR`, which is read from the environment alone, is the folder of downloads: servers of the local stack and
data sets, for all data folders of a user. By default `$XDG_CACHE_HOME/recall-worker`, or `~/.cache/recall-worker`.

| setting | default | values | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{name}` | {_default(field.default)} | {_values(field)} | {MEANINGS[name]} |\n"
        for name, field in Settings.model_fields.items()
    ]
    return INTRODUCTION + "".join(rows)


def _default(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        value = str(value).lower()
    return f"`{value}`" if value not in ("", {}) else ""


def _values(field: Any) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    least = next((rule.ge for rule in field.metadata if hasattr(rule, "ge")), None)
    most = next((rule.le for rule in field.metadata if hasattr(rule, "le")), None)
    if least is None:
        return ""
    return f"{least} or more" if most is None else f"{least} to {most}"


def main(arguments: list[str]) -> int:
    """Write the page; with --check, say whether it is what would be written."""
    return write_or_check("settings.md", page(), "workers.settings_doc", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
