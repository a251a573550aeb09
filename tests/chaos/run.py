"""One run: faults on a live system, then the whole of what it has stored and answered against the model."""

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.chaos.answers import View, Watched, read_answers, uncommitted
from tests.chaos.compare import compare
from tests.chaos.difference import KINDS, Difference
from tests.chaos.faults import FAULTS
from tests.chaos.log import CANDIDATES, DEAD_LETTERS, INPUTS
from tests.chaos.model import Rules, expected
from tests.chaos.recovery import too_slow
from tests.chaos.rig import NotRecoveredError, Rig, say
from tests.chaos.stored import read_all
from tests.chaos.vectors import ItemTower
from workers.local.stack import LocalStack
from workers.settings import AGENT_KINDS, AgentKind

SHOWN = 10
UNCOMMITTED_MS = 500 + 500 + 500  # the commit interval, `wait_for_event_ms`, and one batch


@dataclass
class Report:
    """What a run prints."""

    seed: int
    faults: dict[str, int] = field(default_factory=dict)
    events: int = 0
    lost: int = 0
    double_effects: int = 0
    unanswered: int = 0
    wrong_state: int = 0
    duplicate_answers: int = 0
    dead_letters: int = 0
    max_recovery_s: float = 0.0
    mutants_caught: int | None = None

    @property
    def clean(self) -> bool:
        """Whether every promise held."""
        return not (self.lost or self.double_effects or self.unanswered or self.wrong_state)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@contextmanager
def own_stack() -> Iterator[LocalStack]:
    """Servers that may be broken, in a folder of their own. After an exception its logs stay."""
    folder = Path(tempfile.mkdtemp(prefix="recall-chaos-"))
    stack = LocalStack(folder, say)
    try:
        stack.start()
        yield stack
    except BaseException:
        keep_logs(stack)
        raise
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


def keep_logs(stack: LocalStack) -> None:
    """Those of servers and workers, beyond the end of the run."""
    kept = shutil.copytree(stack.data_dir / "logs", tempfile.mkdtemp(prefix="recall-chaos-logs-"), dirs_exist_ok=True)
    say(f"the logs of servers and workers are in {kept}")


async def one_by_one(rig: Rig, groups: Sequence[Sequence[str]], report: Report) -> None:
    """Each group of faults at once, and after each the time until the system is well again."""
    for names in groups:
        say(f"fault {', '.join(names)}")
        await _at_once(FAULTS[name](rig) for name in names)
        _well_again(rig, names, await rig.recovered(), report)


def _well_again(rig: Rig, names: Sequence[str], recovery_s: float, report: Report) -> None:
    """Report how long it took after these faults."""
    report.max_recovery_s = max(report.max_recovery_s, round(recovery_s, 1))
    say(f"  {', '.join(names)}: well again after {recovery_s:.1f} s")
    if line := too_slow(names, recovery_s):
        say(f"  {line}")
        if rig.in_time:
            rig.problems.append(line)


async def _at_once(works: Iterable[Awaitable[None]]) -> None:
    """All of them; when one fails, the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def many_kills(rig: Rig, kills: int, report: Report) -> None:
    """kill -9 of workers of all kinds at once, again and again, with a worker that joins and leaves in between.

    After each, the time until all workers of its kind are ready and a request is answered `ok`.
    """

    async def inject(name: str, kind: AgentKind) -> None:
        await FAULTS[name](rig)
        report.faults[name] = report.faults.get(name, 0) + 1
        begun = time.monotonic()
        await rig.working(kind)
        await rig.answered("ok")
        _well_again(rig, [name], time.monotonic() - begun, report)

    async def of_kind(number: int) -> None:
        kind = AGENT_KINDS[number % len(AGENT_KINDS)]
        for n in range(kills // len(AGENT_KINDS) + (number < kills % len(AGENT_KINDS))):
            await inject(f"kill_{kind}", kind)
            if n % 5 == 4:
                joined = rig.workers.start(kind)
                await rig.working(kind)
                rig.workers.terminate(joined)
                await inject(f"terminate_{kind}", kind)

    await _at_once(of_kind(number) for number in range(len(AGENT_KINDS)))
    _well_again(rig, list(report.faults), await rig.recovered(), report)


async def judge(rig: Rig, report: Report, *, kills_only: bool = False) -> list[Difference]:
    """End the traffic and the workers, and compare everything. Adds up the report.

    Where nothing but kills has happened, no worker ends by itself, and duplicate answers are what was not committed:
    those of the commit interval, of a request that waits for its event and holds others back, and of one batch.
    """
    assert rig.view is not None
    found = []
    try:
        await rig.finish()
    except NotRecoveredError as error:
        found.append(Difference("lost", str(error), of_run=True))
        await asyncio.to_thread(rig.workers.stop)
    found += [Difference("wrong_state", line) for line in rig.problems]
    ends = rig.workers.bad_ends(any_death=kills_only)
    found += [Difference("wrong_state", line, of_run=True) for line in ends]
    settings = rig.settings
    topics = await rig.logs.read()
    tower = ItemTower(rig.bundle.path)
    must = expected(topics, Rules.read(rig.bundle.path))
    redis_url = settings.redis_url.get_secret_value()
    stored = await asyncio.to_thread(read_all, redis_url, settings.milvus_uri, settings.namespace, rig.view.collection)
    view = View(rig.view.version, rig.view.collection)
    found += compare(must, stored, topics, tower, Watched(rig.taken_in_by, rig.refilled, view))
    report.events += sum(len(topics[topic]) for topic in INPUTS)
    report.dead_letters += len(topics[DEAD_LETTERS])
    answers = read_answers(topics[CANDIDATES])
    report.duplicate_answers += answers.duplicates(must)
    killed = rig.workers.killed["recall"]
    bound = uncommitted(answers.taken_ms(), killed, UNCOMMITTED_MS)
    say(f"{report.duplicate_answers} duplicate answers; {len(killed)} recall workers that were killed allow {bound}")
    if kills_only and report.duplicate_answers > bound:
        found.append(Difference("wrong_state", f"{report.duplicate_answers} duplicate answers, at most {bound} may be"))
    counts = Counter(difference.kind for difference in found)
    for kind in KINDS:
        setattr(report, kind, getattr(report, kind) + counts[kind])
    say(
        f"{report.events} events, {len(must.users)} users, {len(must.items)} items, {len(must.requests)} requests, "
        f"{len(must.letters)} dead letters due, {len(found)} differences; not sent: {rig.feeder.failed}"
    )
    for difference in found[:SHOWN]:
        say(f"  {difference.kind}: {difference.line}")
    for death in rig.workers.deaths:
        say(f"  a worker ended by itself: {death}")
    return found


async def run(rig: Rig, groups: Sequence[Sequence[str]], kills: int = 0) -> tuple[Report, list[Difference]]:
    """Groups of faults one by one, or many kills; the report, and every difference."""
    report = Report(rig.seed, dict(Counter(name for names in groups for name in names)))
    failure: list[Difference] = []
    async with rig:
        try:
            await one_by_one(rig, groups, report)
            if kills:
                await many_kills(rig, kills, report)
        except NotRecoveredError as error:
            say(f"  {error}")
            failure = [Difference("wrong_state", str(error), of_run=True)]
            report.wrong_state += 1
        found = failure + await judge(rig, report, kills_only=not groups)
    return report, found
