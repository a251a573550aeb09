"""Opens a bundle's towers where the setting `tower` says: in this process, behind a model server, or anywhere else."""

from collections.abc import Awaitable, Callable

from models.bundle import Bundle
from models.verify import Side, Unfit
from workers import adapters
from workers.adapters import Builtin
from workers.errors import ConfigurationError, RowRefused
from workers.ports import Tower
from workers.settings import Settings
from workers.towers import bundled

GROUP = "recall.towers"
BUILTINS = {
    "onnx": Builtin("workers.towers.onnx:open_here"),
    "kserve": Builtin("workers.towers.kserve:open_kserve", extra="servers"),
    "torchserve": Builtin("workers.towers.torchserve:open_torchserve", extra="servers"),
    "tf_serving": Builtin("workers.towers.tf_serving:open_tf_serving", extra="servers"),
}

OpenTower = Callable[[Bundle, Side, Settings], Awaitable[Tower]]
"""What an entry point of the group recall.towers is."""


async def open_tower(bundle: Bundle, side: Side, settings: Settings) -> Tower:
    """One of a bundle's towers for serving, held to the bundle wherever it runs.

    Raises DependencyError while it cannot be reached, ConfigurationError when it is not the bundle's or cannot work.
    """
    opener: OpenTower = adapters.find("tower", settings.tower, BUILTINS, GROUP)
    tower = await opener(bundle, side, settings)
    if settings.tower in BUILTINS:
        return tower
    try:
        await bundled.hold(tower.embed, bundle, side, settings.tower_timeout_ms)
    except (Unfit, RowRefused) as error:
        await tower.close()
        raise ConfigurationError(f"tower = {settings.tower!r}: the {side} tower: {error}") from error
    except BaseException:
        await tower.close()
        raise
    return tower
