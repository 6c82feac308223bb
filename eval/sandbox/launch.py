"""Starts a jail and ends with its last process. Blocks kernel features that namespaces do not isolate. Run as a file.

    python launch.py PARENT WORDS...

PARENT is the process that starts this one. WORDS start the jail. The jail gets its own session keyring, and finds the
filter of system calls at the file descriptor FILTER_FD. At SIGTERM, and when PARENT dies, this process kills the jail.
It ends only after the jail's last process has ended.

The filter refuses:
- user namespaces, which give a program mounts, and through them unlimited memory;
- keyrings;
- sockets except Unix and netlink, because the host of a virtual machine listens on other kinds;
- io_uring, which can make sockets without passing the filter;
- memory that belongs to no process: anonymous shared mappings, memfd and System V.
A program cannot change the buffer size of a socket.
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys

FILTER_FD = 9
_DIES_WITH_PARENT, _BECOMES_PARENT_OF_ORPHANS = 1, 36
_JOIN_SESSION_KEYRING = 1
_NEW_USER = 0x10000000
_ANONYMOUS_SHARED = 0x21
_SOCKETS = (1, 16)
# SOL_SOCKET, and its options SO_SNDBUF and SO_RCVBUF.
_OF_SOCKETS, _BUFFERS = 1, (7, 8)
_X32 = 0x40000000
# machine -> the kernel's number for it, and numbers of system calls
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBERS = {
    "x86_64": {"clone": 56, "unshare": 272, "setns": 308, "socket": 41, "setsockopt": 54, "mmap": 9, "shmget": 29,
               "semget": 64, "msgget": 68, "memfd_create": 319, "add_key": 248, "request_key": 249, "keyctl": 250},
    "aarch64": {"clone": 220, "unshare": 97, "setns": 268, "socket": 198, "setsockopt": 208, "mmap": 222, "shmget": 194,
                "semget": 190, "msgget": 186, "memfd_create": 279, "add_key": 217, "request_key": 218, "keyctl": 219},
}  # fmt: skip
_EVERYWHERE = {"clone3": 435, "io_uring_setup": 425, "memfd_secret": 447}
# The answer of a kernel without these calls; libraries then use older calls.
_REFUSED = {
    "clone3": errno.ENOSYS, "io_uring_setup": errno.ENOSYS, "memfd_secret": errno.ENOSYS, "memfd_create": errno.ENOSYS,
    "shmget": errno.ENOSYS, "semget": errno.ENOSYS, "msgget": errno.ENOSYS,
    "add_key": errno.ENOSYS, "request_key": errno.ENOSYS, "keyctl": errno.ENOSYS,
    "setns": errno.EPERM,
}  # fmt: skip

_LOAD, _AND, _EQUAL, _LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


def _code(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction of classic BPF; `yes` and `no` are the numbers of instructions to skip."""
    return struct.pack("=HBBI", code, yes, no, value)


def _argument(number: int) -> bytes:
    return _code(_LOAD, 16 + 8 * number)  # the lower half, on little-endian machines


def _rule(number: int, body: list[bytes]) -> list[bytes]:
    """Instructions for one system call; calls that they allow continue with the next rule."""
    return [_code(_LOAD, 0), _code(_EQUAL, number, 0, len(body)), *body]


def _unless(values: tuple[int, ...]) -> list[bytes]:
    """Skip the next instruction if the loaded number is one of these."""
    return [_code(_EQUAL, value, len(values) - place, 0) for place, value in enumerate(values)]


def filter_program(machine: str) -> bytes:
    """The filter in the kernel's form; empty if the system call numbers of this machine are unknown."""
    if machine not in _ARCHITECTURES:
        return b""
    numbers = {**_NUMBERS[machine], **_EVERYWHERE}
    refuse = {error: _code(_RETURN, _ERROR | error) for error in (*_REFUSED.values(), errno.ENOMEM, errno.EAFNOSUPPORT)}
    program = [_code(_LOAD, 4), _code(_EQUAL, _ARCHITECTURES[machine], 1, 0), refuse[errno.ENOSYS]]
    if machine == "x86_64":  # the same calls under other numbers
        program += [_code(_LOAD, 0), _code(_LEAST, _X32, 0, 1), refuse[errno.ENOSYS]]
    for name, error in _REFUSED.items():
        program += _rule(numbers[name], [refuse[error]])
    for name in ("clone", "unshare"):
        program += _rule(numbers[name], [_argument(0), _code(_ANY_BIT, _NEW_USER, 0, 1), refuse[errno.EPERM]])
    shared = [_argument(3), _code(_AND, _ANONYMOUS_SHARED), _code(_EQUAL, _ANONYMOUS_SHARED, 0, 1)]
    program += _rule(numbers["mmap"], [*shared, refuse[errno.ENOMEM]])
    program += _rule(numbers["socket"], [_argument(0), *_unless(_SOCKETS), refuse[errno.EAFNOSUPPORT]])
    # Report success, because programs do not expect this call to fail.
    sizes = [_argument(2), _code(_EQUAL, _BUFFERS[0], 1, 0), _code(_EQUAL, _BUFFERS[1], 0, 1), _code(_RETURN, _ERROR)]
    program += _rule(numbers["setsockopt"], [_argument(1), _code(_EQUAL, _OF_SOCKETS, 0, len(sizes)), *sizes])
    return b"".join([*program, _code(_RETURN, _ALLOW)])


def _die_with(parent: int, by: int) -> None:
    """Get a signal when the parent dies."""
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, by, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the request reached the kernel
        os._exit(128 + signal.SIGKILL)


def main(parent: int, words: list[str]) -> int:
    """Run words in a separate process; return its exit code after it and all its descendants have ended."""
    library, machine, own = ctypes.CDLL(None, use_errno=True), platform.machine(), os.getpid()
    _die_with(parent, signal.SIGTERM)
    library.prctl(_BECOMES_PARENT_OF_ORPHANS, 1, 0, 0, 0)
    if machine in _NUMBERS:
        library.syscall(_NUMBERS[machine]["keyctl"], _JOIN_SESSION_KEYRING, None)
    stopping = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # until the group exists and can be killed
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
        os.setpgid(0, 0)
        _die_with(own, signal.SIGKILL)
        reading, writing = os.pipe()
        os.write(writing, filter_program(machine))
        os.close(writing)
        os.dup2(reading, FILTER_FD)
        os.execvp(words[0], words)
    with contextlib.suppress(PermissionError):  # the child was faster, and already runs the jail
        os.setpgid(child, child)

    def stop(*_: object) -> None:
        # The jail's group holds the first process of the namespace from the start. All others die with that one.
        # A program that signals its own group does not reach this process.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
    code = 1
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.wait()
            if pid == child:
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
