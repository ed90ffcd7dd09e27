"""The base classes of the tasks: what a worker process is told when it starts.

A task travels as JSON. The command line and the supervisor create the same tasks. They are dataclasses, so that the
command line can import them without msgspec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What every worker needs. The task of a role derives from NamedTask or StreamTask and sets `role`."""

    role: str
    """name of the role"""
    redis_url: str

    @property
    @abstractmethod
    def label(self) -> str:
        """The worker's name in log lines and in the list of processes."""


@dataclass(frozen=True, kw_only=True)
class NamedTask(Task):
    """A worker that serves every stream."""

    name: str
    """unique on the Redis server; the worker writes its heartbeat under it"""

    @property
    def label(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class StreamTask(Task):
    """A worker of one stream."""

    stream_id: str

    @property
    def label(self) -> str:
        return f"{self.role} {self.stream_id}"
