"""How brokers are reached: addresses, TLS and a login, as every client of aiokafka takes them."""

import asyncio
import ssl
from functools import cache
from pathlib import Path
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError, UnsupportedSaslMechanismError

from workers.errors import ConfigurationError
from workers.settings import Settings

ASK_WITHIN_S = 3.0


def connection(settings: Settings) -> dict[str, Any]:
    """Arguments of every client. Raises ConfigurationError, one line: a file that cannot be read, or is no certificate.

    An authority's file stands in place of the usual authorities. The server's certificate has to be for the address.
    """
    return {"bootstrap_servers": settings.kafka_bootstrap, **login(settings)}


def login(settings: Settings) -> dict[str, Any]:
    """The same without the addresses. Files are read once a process: one that is being renewed ends nobody."""
    protocol = settings.kafka_security_protocol
    arguments: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        arguments["ssl_context"] = _context(settings.kafka_ca_path, settings.kafka_cert_path, settings.kafka_key_path)
    if protocol.startswith("SASL"):
        arguments["sasl_mechanism"] = settings.kafka_sasl_mechanism
        arguments["sasl_plain_username"] = settings.kafka_user
        arguments["sasl_plain_password"] = settings.kafka_password.get_secret_value()
    return arguments


@cache
def _context(ca_path: str, cert_path: str, key_path: str) -> ssl.SSLContext:
    for name, path in (("kafka_ca_path", ca_path), ("kafka_cert_path", cert_path), ("kafka_key_path", key_path)):
        if path:
            try:
                Path(path).read_bytes()
            except OSError as error:
                raise ConfigurationError(f"{name}: {path}: {error.strerror}") from error
    at = f"kafka_ca_path: {ca_path}"
    try:
        context = ssl.create_default_context(cafile=ca_path or None)
        at = f"kafka_cert_path: {cert_path}"
        if cert_path:
            context.load_cert_chain(cert_path, key_path, password="")  # without one it would ask for it
    except ssl.SSLError as error:
        raise ConfigurationError(f"{at}: {error.reason or 'no certificates in PEM'}") from error
    return context


async def refusal(settings: Settings) -> str | None:
    """Why a broker does not let us in, one line; None where the first that answers does, or none answers at all.

    A client that begins says only that it did not get in anywhere.
    """
    addresses = [address.strip() for address in settings.kafka_bootstrap.split(",")]
    try:
        async with asyncio.timeout(ASK_WITHIN_S):
            for address in addresses:
                if why := await _refusal(address, settings):
                    return f"{address}: {why}"
    except TimeoutError:
        pass
    return None


async def _refusal(address: str, settings: Settings) -> str | None:
    host, _, port = address.rpartition(":")
    within_ms = int(ASK_WITHIN_S * 1000)
    try:
        connected = await create_conn(host.strip("[]"), int(port), request_timeout_ms=within_ms, **login(settings))
    except UnsupportedSaslMechanismError:
        return f"it does not take {settings.kafka_sasl_mechanism} from kafka_sasl_mechanism"
    except KafkaError as error:
        cause = error.__cause__
        return _reason(cause) if isinstance(cause, ssl.SSLError) else str(error)
    except ssl.SSLError as error:
        return _reason(error)
    except OSError:
        return None
    connected.close()
    return None


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    return error.reason or str(error)
