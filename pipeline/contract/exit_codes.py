"""Exit codes of the command line and of worker processes."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
"""a stream or an output failed"""
EXIT_USAGE = 2
"""wrong use, or no Redis: starting again with the same arguments would not help"""
EXIT_FENCED = 3
"""a worker lost its role to another process"""
EXIT_AWAY = 4
"""a worker lost its connection to Redis where it could not wait; starting it again helps"""
EXIT_DEFECT = 70
"""an unexpected exception (EX_SOFTWARE in sysexits.h); the supervisor treats it as a crash"""
EXIT_INTERRUPTED = 130
"""SIGINT or SIGTERM ended the command"""
