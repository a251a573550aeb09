"""Opens what a reconciliation of the active view needs."""

from contextlib import AsyncExitStack
from functools import partial

from models import tensors
from workers import views
from workers.doctor import start
from workers.errors import ConfigurationError
from workers.index.opening import open_index
from workers.index.schema import Collection
from workers.pipelines.items import ItemsView
from workers.reconcile.examine import Parts
from workers.reconcile.run import Options, Reconciliation, Say
from workers.reconcile.topic import open_topic
from workers.settings import Settings
from workers.stores import keys
from workers.stores.connect import connect
from workers.stores.item_redis import RedisItemTable
from workers.stores.markers_redis import RedisMarkers
from workers.topics import partition_count
from workers.towers.opening import open_tower

PATIENT = {"store_timeout_ms": 10_000, "index_timeout_ms": 30_000, "tower_timeout_ms": 30_000}  # at least


async def open_reconciliation(
    settings: Settings, options: Options, opened: AsyncExitStack, say: Say = lambda *_: None
) -> Reconciliation:
    """Of the active view; `opened` closes it. Refuses a topic that may have lost items: it would judge all by it.

    Raises DependencyError, ConfigurationError.
    """
    view = await views.read_active(settings)
    if view is None:
        raise ConfigurationError("no bundle is active, so there is no view; make one: recall model fit")
    bundle = views.load(view)
    await start.check_kafka(settings, ["items"])
    patient = {name: max(least_ms, getattr(settings, name)) for name, least_ms in PATIENT.items()}
    settings = settings.model_copy(update=patient)
    collection = Collection(view.collection, bundle.dim, bundle.metric, bundle.version)
    index = await open_index(settings, collection)
    opened.push_async_callback(index.close)
    client = connect(settings)
    table = RedisItemTable(client, settings, view.collection, bundle.dim)
    opened.push_async_callback(table.close)
    markers = RedisMarkers(client, settings, keys.items_group(view.collection))
    tower = await open_tower(bundle, "item", settings)
    opened.push_async_callback(tower.close)
    partitions = await partition_count(settings, settings.topic("item-updates"))
    fields = ItemsView(bundle.dim, bundle.version, tuple(bundle.spec.filterable), partitions)
    inputs = partial(tensors.item_inputs, encoding=bundle.encoding)
    parts = Parts(fields, view.collection, bundle.metric, table, index, tower, inputs)
    topic = await opened.enter_async_context(open_topic(settings, view.collection))
    return Reconciliation(parts, topic, markers, options, say)
