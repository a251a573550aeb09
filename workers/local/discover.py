"""Endpoints of a running local stack: for commands whose user configured none, and for those that start their own."""

from pydantic import SecretStr

from workers.local.state import running
from workers.settings import KAFKA_OWN, MILVUS_OWN, Settings


def with_local_stack(settings: Settings) -> Settings:
    """Fill every endpoint that was not set explicitly from the stack that runs in `data_dir`, if one runs."""
    found = {name: value for name, value in _endpoints(settings).items() if name not in settings.model_fields_set}
    if "kafka_bootstrap" in found:  # which wants none of what was said for other brokers
        found |= {name: value for name, value in KAFKA_OWN.items() if name in settings.model_fields_set}
    return settings.model_copy(update=found)


def of_own_stack(settings: Settings) -> Settings:
    """Every endpoint from the stack that this process has started in `data_dir`, whatever was set."""
    return settings.model_copy(update=_endpoints(settings) | KAFKA_OWN | MILVUS_OWN | {"redis_cluster": False})


def _endpoints(settings: Settings) -> dict[str, object]:
    state = running(settings.data_dir)
    if state is None:
        return {}
    found: dict[str, object] = {
        "kafka_bootstrap": state.services["kafka"].address,
        "redis_url": SecretStr(state.services["redis"].address),
    }
    if "milvus" in state.services:  # else the workers open a file
        found["milvus_uri"] = state.services["milvus"].address
    return found
