"""How processes tell each other how they ended, and that they have a supervisor."""

from __future__ import annotations

SUPERVISED = "MASKSTREAM_SUPERVISED"
"""environment variable of a process whose parent stops it, and holds the other end of its standard input open until
then; such a process leaves Ctrl-C to its parent"""

EXIT_DONE = 0
EXIT_FAILED = 1
"""a stream or an output failed"""
EXIT_USAGE = 2
"""wrong use, or no Redis: starting again with the same arguments would not help"""
EXIT_FENCED = 3
"""a worker lost its role to another process"""
EXIT_DISCONNECTED = 4
"""a worker lost its connection to Redis where it could not wait; starting it again helps"""
EXIT_ABORTED = 5
"""of `python -m workers job`: the job could not continue, so its result logs may lack their end messages"""
EXIT_MEMORY = 6
"""a worker could not allocate memory; the supervisor treats it as a crash"""
EXIT_DEFECT = 70
"""an unexpected exception (EX_SOFTWARE in sysexits.h); the supervisor treats it as a crash"""
EXIT_INTERRUPTED = 130
"""SIGINT or SIGTERM ended the command"""
