"""What runs a generated program inside its process: `python guarded.py SECONDS MEGABYTES`.

Standard input has a secret, a line break and the program. The secret goes to standard output when
the program has come to its end. Nothing of fedsdr is imported here.
"""

import os
import posix
import resource
import sys

REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork",
           "os.kill", "signal.pthread_kill", "ctypes.")  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
           "os.chmod", "os.chown", "os.truncate", "os.utime", "os.setxattr",
           "os.removexattr", "shutil.")  # fmt: skip
# These functions of os make files without asking an audit hook.
UNASKED = ("mknod", "mkfifo")
# The C code of these opens files and starts programs without asking one.
MODULES = ("sqlite3", "_sqlite3", "_posixsubprocess", "_dbm", "_gdbm", "ctypes", "_ctypes")
FILE_BYTES = 1 << 20


def main() -> None:
    seconds, megabytes = int(sys.argv[1]), int(sys.argv[2])
    secret, _, program = sys.stdin.read().partition("\n")
    answer = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    bounds = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: megabytes << 20,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for what, bound in bounds.items():
        hard = resource.getrlimit(what)[1]
        lower = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (lower, lower))
    sys.argv[1:] = []
    for module in (os, posix):
        for name in UNASKED:
            delattr(module, name)
    sys.addaudithook(guard(os.getcwd()))
    exec(compile(program, "<answer>", "exec"), {"__name__": "__main__"})
    os.write(answer, secret.encode())


def guard(folder):  # type: ignore[no-untyped-def]
    """Return an audit hook that refuses network, processes, changes of files outside of `folder`,
    and reading outside of it and of Python's own library."""
    inside = os.path.realpath(folder) + os.sep
    library = os.path.realpath(sys.base_prefix) + os.sep

    def hook(event, arguments):  # type: ignore[no-untyped-def]
        if event.startswith(REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        if event == "import" and arguments[0] in MODULES:
            raise PermissionError(f"import {arguments[0]} is not allowed here")
        if event == "open":
            path, _, flags = arguments
            changing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            allowed = inside if changing else (inside, library)
            paths = [path]
        elif event.startswith(CHANGES):
            allowed, paths = inside, list(arguments[:2])
        else:
            return
        for path in paths:
            named = isinstance(path, str | bytes)  # else a number of an open file
            if named and not os.path.realpath(os.fsdecode(path)).startswith(allowed):
                raise PermissionError(f"{event} of {path!r} is not allowed here")

    return hook


if __name__ == "__main__":
    main()
