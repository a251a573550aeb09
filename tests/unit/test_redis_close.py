"""A Redis client is closed without a word, whatever its server does meanwhile."""

import pytest
from redis import exceptions

from workers.stores.connect import close


@pytest.mark.parametrize(
    "error",
    [exceptions.TimeoutError("Timed out closing connection"), exceptions.ConnectionError("gone"), OSError("reset")],
)
async def test_a_server_that_says_no_goodbye_ends_nobody(error: Exception) -> None:
    class Client:
        asked = 0

        async def aclose(self) -> None:
            self.asked += 1
            raise error

    client = Client()
    await close(client)
    assert client.asked == 1
