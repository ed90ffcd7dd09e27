"""One process role per file, and the supervisor that runs them on one host."""
