"""Every error MaskStream raises on purpose.

MaskStreamError
├── UsageError            the request is wrong: a flag, a configuration, a model that is not there (exit code 2)
│   ├── ConfigError       a field of the configuration, named with its path
│   └── ModelError        a model or its weights cannot be used
├── SourceError           one source cannot be opened or read: that stream fails, the others go on (exit code 1)
├── OutputError           results cannot be written (disk full, folder not writable)
└── BusError              Redis is too old, refuses, or cannot be reached
    ├── FencedError       this process no longer owns the stream it writes
    └── JobLostError      the server no longer holds the job of the stream

The text of each is one line that says what was expected, what came, and what to do.
"""

from __future__ import annotations


class MaskStreamError(Exception):
    """Base of every error raised on purpose; its text is fit to be shown to a user as it is."""


class UsageError(MaskStreamError):
    """The request cannot be carried out as given."""


class ConfigError(UsageError):
    """A configuration field is unknown, of the wrong type, or out of range."""


class ModelError(UsageError):
    """A model is unknown, or its weights are missing, truncated or foreign."""


class SourceError(MaskStreamError):
    """A source cannot be opened or read."""


class OutputError(MaskStreamError):
    """A result cannot be written."""


class BusError(MaskStreamError):
    """The Redis server cannot be used."""


class FencedError(BusError):
    """Another process took over the role this one held for a stream."""


class JobLostError(BusError):
    """The server lost the state of a job: it was restarted without its data, or the job was removed."""
