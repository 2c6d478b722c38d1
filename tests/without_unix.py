"""Run luthier as where only the names of Windows' Python exist: ``python without_unix.py CODE``.

Our modules, and they alone (libraries have their own ways per platform), get stand-ins of the standard
library's: without Unix's names, and failing where Windows fails. ``CODE`` runs as one of ours.
"""

import builtins
import errno
import fcntl
import os
import platform
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil

ABSENT = {
    *("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline"),
    *("curses", "nis", "spwd", "crypt"),
}
UNIX_NAMES = {
    "os": {
        *("fork", "forkpty", "wait", "wait3", "wait4", "waitid", "killpg", "nice", "uname", "sync"),
        *("sysconf", "confstr", "pathconf", "getuid", "geteuid", "getgid", "getegid", "getgroups"),
        *("setuid", "setgid", "setsid", "getsid", "setpgid", "getpgid", "getpgrp", "ttyname"),
        *("pread", "preadv", "pwrite", "pwritev", "readv", "writev", "sendfile", "fdatasync"),
        *("sched_getaffinity", "sched_setaffinity", "sched_yield", "getpriority", "setpriority"),
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "O_TMPFILE"),
        *("statvfs", "fstatvfs", "chown", "fchown", "lchown", "fchmod", "fchdir", "chroot"),
        *("mkfifo", "mknod", "openpty", "getloadavg", "register_at_fork", "memfd_create", "lockf"),
        *("posix_spawn", "posix_fadvise", "posix_fallocate", "WNOHANG", "WIFEXITED", "WEXITSTATUS"),
    },
    "signal": {
        *("SIGALRM", "SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGCONT"),
        *("SIGSTOP", "SIGTSTP", "SIGPIPE", "SIGWINCH", "alarm", "pause", "setitimer", "getitimer"),
        *("ITIMER_REAL", "pthread_kill", "pthread_sigmask", "sigwait", "siginterrupt"),
    },
    "socket": {"AF_UNIX"},
    "time": {"tzset"},
}


def _open(path: Any, flags: int, *rest: Any) -> int:
    if Path(path).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return os.open(path, flags, *rest)


def _fsync(descriptor: int) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    os.fsync(descriptor)


class _Process(psutil.Process):
    def memory_info(self) -> Any:
        info = super().memory_info()
        return SimpleNamespace(rss=info.rss, vms=info.vms, wset=info.rss, peak_wset=info.rss)


DIFFERENT: dict[str, dict[str, Any]] = {
    "os": {"name": "nt", "open": _open, "fsync": _fsync},
    "sys": {"platform": "win32"},
    "platform": {"libc_ver": lambda *_: ("", ""), "system": lambda: "Windows"},
    "psutil": {"Process": _Process},
}


class StandIn(ModuleType):
    """``module`` as Windows has it."""

    def __init__(self, module: ModuleType, absent: set[str], different: Mapping[str, Any]) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _absent=absent, **different)

    def __getattr__(self, name: str) -> Any:
        if name in self._absent:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return getattr(self._module, name)


def hide_unix() -> None:
    stand_ins = {
        module.__name__: StandIn(
            module, UNIX_NAMES.get(module.__name__, set()), DIFFERENT.get(module.__name__, {})
        )
        for module in (os, signal, sys, platform, psutil, *map(__import__, ("socket", "time")))
    }
    real = builtins.__import__

    def as_on_windows(name: str, globals: Any = None, *rest: Any, **named: Any) -> Any:
        if not ((globals or {}).get("__name__") or "").startswith("luthier"):
            return real(name, globals, *rest, **named)
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return stand_ins.get(name) or real(name, globals, *rest, **named)

    builtins.__import__ = as_on_windows


if __name__ == "__main__":
    hide_unix()
    exec(compile(sys.argv[1], "<ours>", "exec"), {"__name__": "luthier_as_on_windows"})
