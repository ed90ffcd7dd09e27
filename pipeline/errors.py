"""The exceptions of MaskStream.

MaskStreamError
├── UsageError            the request is wrong: a flag, a configuration, a model that is not there (exit code 2)
│   ├── ConfigError       a field of the configuration, named with its path
│   └── ModelError        a model or its weights cannot be used
├── SourceError           a source cannot be opened or read: its stream fails, the others continue (exit code 1)
│   └── AccessDeniedError  the server refuses the user or the password
├── OutputError           results cannot be written (disk full, folder not writable)
└── BusError              Redis is too old, refuses, or cannot be reached
    ├── FencedError       another process has taken over the stream that this process was writing
    ├── JobLostError      the server no longer holds the job of the stream
    └── PositionMovedError  the position of a stream in Redis is not the one its writer remembers

The text of an exception is one line that says what was expected, what was found and what to do.
"""

from __future__ import annotations


class MaskStreamError(Exception):
    """Base class of all exceptions of MaskStream. Its text can be shown to a user."""


class UsageError(MaskStreamError):
    """The request cannot be carried out as given."""


class ConfigError(UsageError):
    """A configuration field is unknown, of the wrong type, or out of range."""


class ModelError(UsageError):
    """A model is unknown, or its weights are missing, truncated or of another architecture."""


class SourceError(MaskStreamError):
    """A source cannot be opened or read."""


class AccessDeniedError(SourceError):
    """The server of a source refuses the user or the password (HTTP and RTSP status 401 and 403)."""


class OutputError(MaskStreamError):
    """A result cannot be written."""


class BusError(MaskStreamError):
    """The Redis server cannot be used."""


class FencedError(BusError):
    """Another process has taken over the stream that this process was writing."""


class JobLostError(BusError):
    """The server lost the state of a job: it was restarted without its data, or the job was removed."""


class PositionMovedError(BusError):
    """The position in Redis is not the one that the writer remembers: the writer must open or load the stream again.

    This happens after the server lost its latest writes (power cut, failover) or after another session wrote.
    """
