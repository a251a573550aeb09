"""The options that describe one recall request, for the commands that make one."""

import uuid
from contextlib import suppress
from typing import Annotated, cast, get_args

import orjson
import typer

from schemas import codec
from schemas.recall import MAX_K, MAX_TIMEOUT_MS, FilterClause, FilterOp, RecallRequest
from workers.errors import ConfigurationError

User = Annotated[str, typer.Argument(help="The user's id.")]
K = Annotated[int | None, typer.Option("--k", "-k", min=1, max=MAX_K, help="How many candidates; else the scene's.")]
TimeoutMs = Annotated[
    int, typer.Option(min=1, max=MAX_TIMEOUT_MS, help="The request's deadline, after the broker took it.")
]
Scene = Annotated[str, typer.Option(help="One that the workers' settings declare.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--filter", help="A clause that must hold: 'year ge 1990', 'genres contains Drama'; repeatable."),
]
Exclude = Annotated[list[str] | None, typer.Option(help="An item id to leave out; may be repeated.")]
Anchor = Annotated[list[str] | None, typer.Option(help="An item id that more are wanted like; may be repeated.")]
IncludeSeen = Annotated[bool, typer.Option("--include-seen", help="Keep what the user has seen.")]


def request_of(
    user: str, *, k: int | None, where: list[str] | None, include_seen: bool, **fields: object
) -> RecallRequest:
    """A request of these options, checked. Raises ConfigurationError with one line."""
    request = RecallRequest(
        request_id=str(uuid.uuid4()),
        user_id=user,
        k=k,
        filter=[_clause(text) for text in where or []],
        exclude_seen=False if include_seen else None,
        **{name: value for name, value in fields.items() if value is not None},  # type: ignore[arg-type]  # checked below
    )
    try:
        return codec.decode_request(codec.encode_event(request))
    except codec.DecodeError as error:
        raise ConfigurationError(str(error)) from error
    except UnicodeEncodeError as error:
        raise ConfigurationError("an argument is not UTF-8 text") from error


def _clause(text: str) -> FilterClause:
    """FIELD OP VALUE; the value is JSON, or else the text as it stands."""
    parts = text.split(maxsplit=2)
    if len(parts) < 3 or parts[1] not in get_args(FilterOp):
        raise ConfigurationError(
            f"--filter: {text!r} is not FIELD OP VALUE with one of {', '.join(get_args(FilterOp))}"
        )
    field, op, value = parts
    with suppress(orjson.JSONDecodeError):
        value = orjson.loads(value)
    return FilterClause(field=field, op=cast("FilterOp", op), value=value)
