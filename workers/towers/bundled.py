"""A tower that runs elsewhere is held to the bundle: it must give what the bundle's own ONNX file gives."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import chain, repeat

from models import signature, verify
from models.bundle import Bundle
from models.signature import Arrays
from models.tensors import Inputs
from models.verify import Float32, Side
from workers.towers import onnx

ALONE = 4  # rows that are asked for by themselves too
KEPT = 2  # rows that are asked for again later: nobody, and one with the last code of everything

AsyncRun = Callable[[Inputs], Awaitable[Mapping[str, Float32]]]


@dataclass(frozen=True, slots=True)
class Known:
    """Rows and what the bundle's tower gives for them."""

    inputs: Inputs
    outputs: Mapping[str, Float32]


def arrays(bundle: Bundle, side: Side) -> tuple[Arrays, Arrays]:
    """Inputs and outputs of a side's tower."""
    if side == "user":
        return signature.user_inputs(bundle.encoding, bundle.dim), signature.user_outputs(bundle.dim)
    return signature.item_inputs(bundle.encoding), signature.item_outputs(bundle.dim)


async def hold(run: AsyncRun, bundle: Bundle, side: Side, timeout_ms: int) -> Known:
    """What ONNX towers are checked for at start, and that the vectors are those of the bundle's file.

    `run` answers some rows. Raises Unfit, ConfigurationError for the bundle's file, and what `run` raises.
    """
    inputs = verify.start_inputs(side, bundle.encoding, bundle.dim)
    _, outputs = arrays(bundle, side)
    asked = [inputs, *(_rows(inputs, n, n + 1) for n in range(ALONE))]
    together, *alone = [_named(await run(rows), outputs) for rows in asked]
    answers = chain([together, together], alone, repeat(together))  # in the order in which the check asks
    verify.check_start(lambda _: next(answers), inputs, outputs)
    own = onnx.open_tower(bundle, side, timeout_ms).run(inputs)
    verify.check_same(together, own)
    return Known(_rows(inputs, 0, KEPT), _rows(own, 0, KEPT))


def _named(found: Mapping[str, Float32], outputs: Arrays) -> dict[str, Float32]:
    for name in outputs:
        if name not in found:
            raise verify.Unfit(f"output {name!r} is missing")
    return {name: found[name] for name in outputs}


def _rows(columns: Mapping[str, Float32], begin: int, end: int) -> dict[str, Float32]:
    return {name: column[begin:end] for name, column in columns.items()}
