"""How brokers are reached: addresses, TLS and a login, as every client of aiokafka takes them."""

import ssl
from pathlib import Path
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError

from workers.errors import ConfigurationError
from workers.settings import Settings

ASK_WITHIN_MS = 5000


def connection(settings: Settings) -> dict[str, Any]:
    """Arguments of every client. Raises ConfigurationError, one line: a file that cannot be read, or is no certificate.

    An authority's file stands in place of the usual authorities. The server's certificate has to be for the address.
    """
    return {"bootstrap_servers": settings.kafka_bootstrap, **login(settings)}


def login(settings: Settings) -> dict[str, Any]:
    """The same without the addresses."""
    protocol = settings.kafka_security_protocol
    arguments: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        arguments["ssl_context"] = _context(settings)
    if protocol.startswith("SASL"):
        arguments["sasl_mechanism"] = settings.kafka_sasl_mechanism
        arguments["sasl_plain_username"] = settings.kafka_user
        arguments["sasl_plain_password"] = settings.kafka_password.get_secret_value()
    return arguments


def _context(settings: Settings) -> ssl.SSLContext:
    for name in ("kafka_ca_path", "kafka_cert_path", "kafka_key_path"):
        if path := getattr(settings, name):
            try:
                Path(path).read_bytes()
            except OSError as error:
                raise ConfigurationError(f"{name}: {path}: {error.strerror}") from error
    name = "kafka_ca_path"
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca_path or None)
        name = "kafka_cert_path"
        if settings.kafka_cert_path:
            context.load_cert_chain(settings.kafka_cert_path, settings.kafka_key_path, password="")  # else it would ask
    except ssl.SSLError as error:
        reason = error.reason or "not a file of certificates in PEM"
        raise ConfigurationError(f"{name}: {getattr(settings, name)}: {reason}") from error
    return context


async def refusal(settings: Settings) -> str | None:
    """Why the first broker does not let us in, one line; None where it does, or does not answer at all.

    A client that begins says only that it did not get in anywhere.
    """
    host, _, port = settings.kafka_bootstrap.partition(",")[0].strip().rpartition(":")
    try:
        connected = await create_conn(host.strip("[]"), int(port), request_timeout_ms=ASK_WITHIN_MS, **login(settings))
    except ssl.SSLCertVerificationError as error:
        return f"{host}:{port}: {error.verify_message}"
    except ssl.SSLError as error:
        return f"{host}:{port}: {error.reason or error}"
    except KafkaError as error:
        return f"{host}:{port}: {error}"
    except (OSError, TimeoutError):
        return None
    connected.close()
    return None
