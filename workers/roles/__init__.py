"""The table of worker roles. CONTRIBUTING.md, "Adding a worker role", lists what a further one needs."""

from __future__ import annotations

from importlib import import_module

from workers.roles.role import Role

_MODULES = (
    "workers.roles.decode",
    "workers.roles.infer",
    "workers.roles.track",
    "workers.roles.sink",
)
"""the modules that define a `ROLE`. They load neither torch nor PyAV: the command line imports them for --help"""

ROLES: dict[str, Role] = {role.name: role for role in (import_module(module).ROLE for module in _MODULES)}
"""name -> role, in the order of the data flow"""
