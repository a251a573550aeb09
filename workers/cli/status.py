"""`recall status`: what runs, where, and how far behind it is."""

from typing import Annotated, Any

import orjson
import typer

from workers import missed, views
from workers.cli.console import cells, columns, results
from workers.cli.running import run
from workers.errors import RecallError
from workers.kafka_client import group_lag
from workers.local.discover import with_local_stack
from workers.local.process import start_time
from workers.local.ready import health
from workers.local.stack import starting
from workers.local.state import StackState, last_failure, running
from workers.local.workers import ALL_KINDS
from workers.settings import AGENT_KINDS, Settings, load_settings
from workers.stores import keys


def status(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show the local stack, its workers and the active bundle."""
    settings = load_settings()
    state = running(settings.data_dir)
    if state is None:
        failure = last_failure(settings.data_dir)
        begun = starting(settings.data_dir)
        if as_json:
            found: dict[str, Any] = {"running": False, "starting": begun, "failure": failure or None, "workers": []}
            print(orjson.dumps(found).decode())
        elif begun:
            print("the stack is being started here")
        elif failure:
            print(f"nothing runs here, the last one ended by itself: {failure}")
        else:
            print("nothing runs here; `recall up` starts the stack")
        return
    report = run(_report(with_local_stack(settings), state))
    if as_json:
        print(orjson.dumps(report).decode())
    else:
        _print(report)


async def _report(settings: Settings, state: StackState) -> dict[str, Any]:
    unknown = None
    try:
        view = await views.read_active(settings)
    except RecallError as error:
        view, unknown = None, settings.hide(str(error))
    report: dict[str, Any] = {"running": True, "supervisor": state.supervisor_pid}
    addresses = {"kafka": "bootstrap", "redis": "url", "milvus": "uri"}
    for name, service in state.services.items():
        up = start_time(service.pid) > 0
        report[name] = {addresses[name]: service.address, "version": service.version, "pid": service.pid, "up": up}
    report["active"] = None
    if view is not None:
        missing = await _missed(settings, view.collection)
        report["active"] = {"version": view.version, "collection": view.collection, "missed_deletions": missing}
    report["active_unknown"] = unknown
    topics = {"activity": "user-activity", "items": "item-updates", "recall": "recall-requests"}
    groups = {"activity": "recall-activity", "recall": "recall-requests"}
    if view is not None:
        groups["items"] = keys.items_group(view.collection)
    report["workers"] = []
    for worker in state.workers:
        kinds = AGENT_KINDS if worker.kind == ALL_KINDS else [worker.kind]
        lags = [await _lag(settings, groups.get(kind), topics[kind]) for kind in kinds]
        lag = None if None in lags else sum(known for known in lags if known is not None)
        found = {"kind": worker.kind, "pid": worker.pid, "restarts": worker.restarts, "web_port": worker.web_port}
        report["workers"].append(found | {"health": health(worker), "lag": lag})
    return report


async def _missed(settings: Settings, collection: str) -> bool | None:
    try:
        return await missed.missed_ms(settings, collection) is not None
    except RecallError:
        return None


async def _lag(settings: Settings, group: str | None, topic: str) -> int | None:
    try:
        return None if group is None else await group_lag(settings, settings.group(group), settings.topic(topic))
    except RecallError:
        return None


def _print(report: dict[str, Any]) -> None:
    table = columns("what", "state", "pid", "where", "version")
    for name, address in (("kafka", "bootstrap"), ("redis", "url"), ("milvus", "uri")):
        if name not in report:  # Milvus, when the workers open a file
            continue
        service = report[name]
        up = "up" if service["up"] else "down"
        table.add_row(*cells(name, up, str(service["pid"]), service[address], service["version"]))
    for worker in report["workers"]:
        lag = "" if worker["lag"] is None else f"{worker['lag']} behind"
        lag += f", started again {worker['restarts']} times" if worker["restarts"] else ""
        table.add_row(*cells(f"worker {worker['kind']}", worker["health"], str(worker["pid"]), lag, ""))
    console = results()
    console.print(table)
    active = report["active"]
    if report["active_unknown"]:
        console.print(f"which bundle is active is not known: {report['active_unknown']}")
    elif active is None:
        console.print("no bundle is active; make one: recall model fit --data movielens-1m")
    else:
        console.print(f"active bundle {active['version']}, collection {active['collection']}")
        if active["missed_deletions"]:
            console.print(f"{missed.MISSED}; see `recall doctor`")
