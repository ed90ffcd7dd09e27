"""The Redis fixtures of conftest.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from support.redis_server import RedisServer


@pytest.mark.parametrize("run", ["first", "second"])
def test_every_test_gets_an_empty_server(redis_client: redis.Redis, run: str) -> None:
    assert redis_client.dbsize() == 0
    redis_client.set("left over by", run)


def test_a_server_without_aof_is_empty_after_a_restart(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    with server.client() as client:
        client.set("key", "value")
        server.restart()
        assert client.get("key") is None


def test_a_server_with_aof_has_its_data_after_a_restart(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis(aof="always", maxmemory="64mb")
    with server.client() as client:
        client.set("key", "value")
        server.restart()
        assert client.get("key") == b"value"
        assert client.config_get("maxmemory")["maxmemory"] == str(64 * 1024 * 1024)
