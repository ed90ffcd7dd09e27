"""The domain: configuration, messages, bus, sources, engine, tracker, client."""
