"""What systemd does between its own fork and the unit's command, by a process that then becomes the command.

Run as a script: a description as JSON in its first argument, the command behind it. Everything is read-only
but the folders named; descriptors stand from 3 on; a user without a capability; no new privileges; memory is
not both written and executed; address families and system calls are filtered by the kernel (libseccomp).
Imports nothing of ours: the user it becomes may not read this folder.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import socket
import sys
from typing import Any, Final

CLONE_NEWNS: Final = 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 24, 38, 65
SCMP_ACT_ALLOW: Final = 0x7FFF0000
SCMP_ACT_ERRNO: Final = 0x00050000
SCMP_CMP_EQ: Final = 4
KEPT: Final = ("/proc", "/sys", "/dev")
FAMILIES_MAX: Final = 64
CAPABILITIES_MAX: Final = 64

libc: Final = ctypes.CDLL(None, use_errno=True)


class Comparison(ctypes.Structure):
    """libseccomp's `struct scmp_arg_cmp`."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def check(result: int, what: str) -> None:
    """Raise for a call that failed."""
    if result < 0:
        number = ctypes.get_errno() or -result
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, flags: int) -> None:
    """mount(2)."""
    check(libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None), f"mount {target}")


def read_only_but(folders: list[str]) -> None:
    """A view of the file system of its own, in which nothing but the folders can be written."""
    check(libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", MS_REC | MS_PRIVATE)
    for folder in folders:
        mount(folder, folder, MS_BIND)
    with open("/proc/self/mounts", encoding="utf-8") as file:  # noqa: PTH123 - no import for one line
        places = dict.fromkeys(line.split()[1] for line in file)
    for place in places:
        if place not in folders and not f"{place}/".startswith(tuple(f"{one}/" for one in KEPT)):
            mount("none", place, MS_BIND | MS_REMOUNT | MS_RDONLY)


def become(user: int) -> None:
    """A user of its own, without a capability, for good."""
    for number in range(CAPABILITIES_MAX):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def filter_calls(calls: list[str], families: list[str]) -> None:
    """Have the kernel refuse every other call with EPERM, and other families with EAFNOSUPPORT."""
    seccomp: Any = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(SCMP_ACT_ERRNO | errno.EPERM)))
    allowed = {int(getattr(socket, name)) for name in families}
    for name in calls:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another architecture
            continue
        if name != "socket":
            check(seccomp.seccomp_rule_add_array(context, SCMP_ACT_ALLOW, number, 0, None), name)
            continue
        for family in range(FAMILIES_MAX):
            action = SCMP_ACT_ALLOW if family in allowed else SCMP_ACT_ERRNO | errno.EAFNOSUPPORT
            only = ctypes.byref(Comparison(0, SCMP_CMP_EQ, family, 0))
            check(seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, 1, only), name)
    check(seccomp.seccomp_load(context), "seccomp_load")


def main(description: dict[str, Any], command: list[str]) -> None:
    """Become the command."""
    os.umask(int(description["umask"], 8))
    is_root = os.geteuid() == 0
    if is_root:
        read_only_but(description["writable"])
    # By way of free places: a target may be another one's source.
    apart = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in description["descriptors"]]
    for place, one in enumerate(apart):
        os.dup2(one, 3 + place, inheritable=True)
    own = str(os.getpid())
    environment = {**description["environment"], "LISTEN_PID": own, "WATCHDOG_PID": own}
    if is_root:
        become(description["user"])
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # kernels before 6.3 do not know it
    filter_calls(description["calls"], description["families"])
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
