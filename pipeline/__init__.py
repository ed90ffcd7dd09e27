"""The domain: configuration, messages, bus, sources, engine, tracker, client."""

__version__ = "0.1.0"
