"""The filter of system calls of each architecture, run by a small interpreter of classic BPF."""

import errno
import struct

import pytest

from monet.eval.sandbox.launch import filter_program

# From the kernel's headers: asm/unistd_64.h for x86, asm-generic/unistd.h for arm64, and linux/audit.h.
ARCHITECTURES = {
    "x86_64": (0xC000003E, {
        "read": 0, "mmap": 9, "shmget": 29, "socket": 41, "socketpair": 53, "setsockopt": 54, "clone": 56, "fork": 57,
        "execve": 59, "semget": 64, "msgget": 68, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272,
        "setns": 308, "memfd_create": 319, "io_uring_setup": 425, "clone3": 435, "memfd_secret": 447,
    }),
    "aarch64": (0xC00000B7, {
        "read": 63, "unshare": 97, "msgget": 186, "semget": 190, "shmget": 194, "socket": 198, "socketpair": 199,
        "setsockopt": 208, "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220, "execve": 221, "mmap": 222,
        "setns": 268, "memfd_create": 279, "io_uring_setup": 425, "clone3": 435, "memfd_secret": 447,
    }),
}  # fmt: skip
ALLOW, ERROR = 0x7FFF0000, 0x00050000
LEAPS = {0x15: lambda a, k: a == k, 0x25: lambda a, k: a > k, 0x35: lambda a, k: a >= k, 0x45: lambda a, k: a & k != 0}
NEW_USER, THREAD, PRIVATE, ANONYMOUS_SHARED = 0x10000000, 0x003D0F00, 0x22, 0x21
UNIX, INET, INET6, NETLINK, KERNEL_CRYPTOGRAPHY, VSOCK = 1, 2, 10, 16, 38, 40


def answer(program: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int | None:
    """The filter's answer to a system call: an error number, or None if it allows the call."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    loaded, place = 0, 0
    instructions = list(struct.iter_unpack("<HBBI", program))
    while True:
        code, yes, no, value = instructions[place]
        place += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            loaded &= value
        elif code in LEAPS:
            place += yes if LEAPS[code](loaded, value) else no
        else:
            assert code == 0x06, f"instruction {code:#x}"
            assert value == ALLOW or value & 0xFFFF0000 == ERROR
            return None if value == ALLOW else value & 0xFFFF


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_of_an_architecture(machine):
    program = filter_program(machine)
    architecture, numbers = ARCHITECTURES[machine]

    def says(name: str, *arguments: int) -> int | None:
        return answer(program, architecture, numbers[name], arguments)

    memory = ("memfd_create", "memfd_secret", "shmget", "semget", "msgget")
    for name in (*memory, "clone3", "io_uring_setup", "add_key", "request_key", "keyctl"):
        assert says(name) == errno.ENOSYS, name
    assert says("setns", 3, NEW_USER) == errno.EPERM
    for name in ("clone", "unshare"):
        assert says(name, NEW_USER | 17) == errno.EPERM and says(name, THREAD) is None
    assert says("mmap", 0, 1 << 20, 3, ANONYMOUS_SHARED) == errno.ENOMEM
    assert says("mmap", 0, 1 << 20, 3, ANONYMOUS_SHARED | 0x4000) == errno.ENOMEM
    assert says("mmap", 0, 1 << 20, 3, PRIVATE) is None and says("mmap", 0, 1 << 20, 1, 0x01) is None
    for family in (INET, INET6, KERNEL_CRYPTOGRAPHY, VSOCK, 0):
        assert says("socket", family, 1) == errno.EAFNOSUPPORT, family
    for family in (UNIX, NETLINK):
        assert says("socket", family, 1) is None, family
    assert says("setsockopt", 3, 1, 7) == says("setsockopt", 3, 1, 8) == 0
    assert says("setsockopt", 3, 1, 2) is None and says("setsockopt", 3, 6, 7) is None
    for name in {"read", "execve", "fork", "socketpair"} & numbers.keys():
        assert says(name, UNIX) is None, name


def test_calls_of_other_architectures_are_refused():
    for machine, (architecture, numbers) in ARCHITECTURES.items():
        for other in (0x40000003, 0x40000028, *(found for found, _ in ARCHITECTURES.values() if found != architecture)):
            assert answer(filter_program(machine), other, numbers["read"]) == errno.ENOSYS
    x32 = 0x40000000
    assert answer(filter_program("x86_64"), 0xC000003E, x32 | 0) == errno.ENOSYS
    assert filter_program("riscv64") == b""
