"""Stop an embedded Redis server when the process that started it ends.

Run as a plain script (`python -I server_watchdog.py FOLDER SERVER ARGUMENT...`), without imports of this package, so
that it starts in milliseconds. Its standard input is a pipe whose other end only the parent process holds. The kernel
closes the pipe however the parent ends, even by SIGKILL; the watchdog then stops the server and removes its folder.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
STOP_TIMEOUT_S = 5.0
POLL_S = 0.5


def die_with_watchdog() -> None:
    """Ask the kernel to kill the server when the watchdog is killed. Linux only; other systems have no such request."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Run the server until it ends or standard input is closed, and return the exit status of the server."""
    folder, command = sys.argv[1], sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_watchdog)
    try:
        while server.poll() is None:
            readable, _, _ = select.select([0], [], [], POLL_S)
            if readable and not os.read(0, 4096):
                break
    finally:
        if server.poll() is None:
            server.terminate()
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(folder, ignore_errors=True)
    return server.returncode


if __name__ == "__main__":
    sys.exit(main())
