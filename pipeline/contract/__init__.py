"""The data that travels between processes and to users: configuration, results, bus messages, arrays."""
