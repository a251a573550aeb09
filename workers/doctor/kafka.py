"""Kafka holds every event until it has taken effect, and the catalogue for ever: does it, as the topics are?"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from workers import topics
from workers.doctor.findings import Finding, Level, well
from workers.kafka_inspect import Cluster, Topic, inspect_cluster
from workers.settings import AgentKind, Settings

CHECK = "kafka"
TOPICS_OF: dict[AgentKind, tuple[str, ...]] = {
    "activity": ("user-activity", "recall-dead-letters"),
    "items": ("item-updates", "recall-dead-letters"),
    "recall": ("recall-requests", "recall-candidates", "recall-dead-letters"),
}
LEVELS = {"max.message.bytes": Level.WRONG}  # of a difference; every other one loses data
WHY = {
    "cleanup.policy": "records that are still needed would be deleted",
    "message.timestamp.type": "producers' clocks would decide what expires",
    "max.message.bytes": "larger events would be refused",
    "min.insync.replicas": "an acknowledged record may be lost with one broker",
    "delete.retention.ms": "who is away for so long misses deletions",
}


def topic_names(settings: Settings, kinds: Collection[AgentKind]) -> list[str]:
    """The topics that workers of these kinds read or write, in the order of the contract."""
    used = {settings.topic(name) for kind in kinds for name in TOPICS_OF[kind]}
    return [name for name in topics.expected_configs(settings) if name in used]


async def check(settings: Settings, kinds: Collection[AgentKind]) -> list[Finding]:
    """Ask the cluster and judge what these kinds use. Raises DependencyError."""
    names = topic_names(settings, kinds)
    return judge(settings, await inspect_cluster(settings, names), names)


def judge(settings: Settings, cluster: Cluster, names: Collection[str]) -> list[Finding]:
    """What the cluster's answers mean for these topics; each that is well is one finding `ok`. Pure."""
    release = f"Kafka {cluster.release}" if cluster.release else "Kafka"
    found = [Finding(CHECK, Level.OK, f"{release} at {settings.kafka_bootstrap}, {_count(cluster.brokers, 'broker')}")]
    for name in names:
        topic = cluster.topics.get(name)
        if topic is None:
            found.append(
                Finding(CHECK, Level.WRONG, f"topic {name} does not exist", "`recall topics apply` creates it")
            )
        else:
            found += _Judgement(settings, name, topic).findings()
    single = [name for name in names if name in cluster.topics and cluster.topics[name].replicas == 1]
    if single:
        which = "every topic" if len(single) == len(names) else ", ".join(single)
        line = f"one replica of {which}: what one broker's disk loses is lost"
        todo = "three brokers, replication_factor = 3 and min_insync_replicas = 2 keep it"
        found.append(Finding(CHECK, Level.NOTE, line, todo))
    return found


@dataclass(frozen=True, slots=True)
class _Judgement:
    """On one topic that exists."""

    settings: Settings
    name: str
    topic: Topic

    def findings(self) -> list[Finding]:
        concerns = [*self._configuration(), *self._retention(), *self._in_sync(), *self._replicas()]
        if not well(concerns):
            return concerns
        topic, kept = self.topic, (self.topic.configs or {}).get("cleanup.policy", "unknown")
        counts = f"{_count(topic.partitions, 'partition')}, {_count(topic.replicas, 'replica')}"
        return [self._finding(Level.OK, f"{counts}, {topic.in_sync} in sync, clean-up {kept}"), *concerns]

    def _finding(self, level: Level, line: str, todo: str = "") -> Finding:
        return Finding(CHECK, level, f"topic {self.name}: {line}", todo)

    def _alter(self, entry: str) -> str:
        return topics.alter_command(self.settings, self.name, entry)

    def _is(self, *names: str) -> bool:
        return self.name in map(self.settings.topic, names)

    def _configuration(self) -> Iterator[Finding]:
        if self.topic.configs is None:
            yield self._finding(Level.WARNING, "its configuration may not be read", "allow DescribeConfigs on it")
            return
        for difference in topics.differences(self.settings, self.name, self.topic.configs):
            level = LEVELS.get(difference.name, Level.UNSAFE)
            yield self._finding(level, f"{difference.line} ({WHY[difference.name]})", difference.todo)
        if self.topic.configs.get("unclean.leader.election.enable") == "true":
            line = "unclean.leader.election.enable is true (a replica that lags may become the leader)"
            yield self._finding(Level.UNSAFE, line, self._alter("unclean.leader.election.enable=false"))

    def _retention(self) -> Iterator[Finding]:
        configs, settings = self.topic.configs or {}, self.settings
        wanted_ms, ttl_ms = settings.activity_retention_ms, settings.user_ttl_ms
        kept_ms = int(configs.get("retention.ms", wanted_ms))
        if self._is("user-activity") and not 0 <= kept_ms < ttl_ms:
            line = f"retention.ms is {kept_ms}, user_ttl_ms {ttl_ms} (an event that outlives its record counts twice)"
            yield self._finding(Level.UNSAFE, line, self._alter(f"retention.ms={wanted_ms}"))
        if self._is("user-activity", "recall-dead-letters") and 0 <= kept_ms < wanted_ms:
            line = f"retention.ms is {kept_ms}, activity_retention_ms {wanted_ms} (events may go before they are read)"
            yield self._finding(Level.WARNING, line, self._alter(f"retention.ms={wanted_ms}"))
        size = int(configs.get("retention.bytes", -1))
        if self._is("user-activity", "recall-requests", "recall-dead-letters") and size >= 0:
            line = f"retention.bytes is {size} (events may go before they are read)"
            yield self._finding(Level.WARNING, line, self._alter("retention.bytes=-1"))

    def _in_sync(self) -> Iterator[Finding]:
        topic, least = self.topic, self._least
        if topic.leaderless:
            line = f"{topic.leaderless} of {_count(topic.partitions, 'partition')} have no leader"
            yield self._finding(Level.DOWN, line, "bring their brokers back")
        in_sync = f"{topic.in_sync} of {_count(topic.replicas, 'replica')} in sync"
        if least > topic.replicas:
            line = f"min.insync.replicas is {least}, but there is only {_count(topic.replicas, 'replica')} of it"
            yield self._finding(Level.WRONG, f"{line}: nothing can be written", self._alter("min.insync.replicas=1"))
        elif least > topic.in_sync:
            line = f"{in_sync}, min.insync.replicas is {least}: nothing can be written"
            yield self._finding(Level.DOWN, line, "bring the brokers of the other replicas back")
        elif topic.in_sync < topic.replicas:
            yield self._finding(Level.WARNING, in_sync, "see whether a broker is away or slow")

    def _replicas(self) -> Iterator[Finding]:
        topic, settings = self.topic, self.settings
        if topic.partitions < settings.partitions:
            line = f"{_count(topic.partitions, 'partition')}, the setting says {settings.partitions}"
            if self._is("item-updates"):
                yield self._finding(Level.NOTE, line, "it keeps them: items live in them")
            else:
                yield self._finding(Level.WARNING, line, "`recall topics apply` adds them")
        if topic.replicas < settings.replication_factor:
            line = f"{_count(topic.replicas, 'replica')}, the setting says {settings.replication_factor}"
            yield self._finding(Level.WARNING, line, "kafka-reassign-partitions adds them")
        if self._least != 1 or settings.min_insync_replicas != 1:  # what is below the setting is told already
            return
        line = f"{topic.replicas} replicas, but min.insync.replicas is 1 ({WHY['min.insync.replicas']})"
        if topic.replicas >= 3:
            todo = f"set min_insync_replicas = 2, and {self._alter('min.insync.replicas=2')}"
            yield self._finding(Level.UNSAFE, line, todo)
        elif topic.replicas == 2:
            yield self._finding(Level.WARNING, line, "use three replicas and min_insync_replicas = 2")

    @property
    def _least(self) -> int:
        return int((self.topic.configs or {}).get("min.insync.replicas", 1))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
