"""Limits that a process puts on itself before it runs untrusted code; none of them can be taken back.

Resource limits, and a filter of system calls (seccomp) below the namespaces: no new process, so that a memory limit
of one process is the limit of all, no socket, no signal to others, no memory outside the limits. Other calls that no
honest program makes end the process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from _pickle import load  # what pickle itself imports takes twice as long

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE_BYTES = 64 * 2**20  # largest file; the scratch directory's size too
OPEN_FILES = 64
THREADS = 64

# Refused with EPERM, which Python turns into PermissionError: a library may try and go on without.
REFUSED = {
    "x86_64": {
        "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "socket": 41, "kill": 62, "tkill": 200, "tgkill": 234,
        "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "pidfd_send_signal": 424, "shmget": 29, "memfd_create": 319,
        "memfd_secret": 447, "msgget": 68, "semget": 64, "mq_open": 240,
    },
    "aarch64": {
        "execve": 221, "execveat": 281, "socket": 198, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138,
        "rt_tgsigqueueinfo": 240, "pidfd_send_signal": 424, "shmget": 194, "memfd_create": 279, "memfd_secret": 447,
        "msgget": 186, "semget": 190, "mq_open": 180,
    },
}  # fmt: skip
# End the process (SIGSYS): other processes' memory, namespaces and mounts, and parts of the kernel known for their holes.
DEADLY = {
    "x86_64": {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_open": 434, "pidfd_getfd": 438,
        "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428,
        "move_mount": 429, "fsopen": 430, "mount_setattr": 442, "open_by_handle_at": 304, "bpf": 321, "userfaultfd": 323,
        "perf_event_open": 298, "io_uring_setup": 425, "add_key": 248, "request_key": 249, "keyctl": 250,
    },
    "aarch64": {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "pidfd_open": 434, "pidfd_getfd": 438,
        "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "open_tree": 428,
        "move_mount": 429, "fsopen": 430, "mount_setattr": 442, "open_by_handle_at": 265, "bpf": 280, "userfaultfd": 282,
        "perf_event_open": 241, "io_uring_setup": 425, "add_key": 217, "request_key": 218, "keyctl": 219,
    },
}  # fmt: skip
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
CLONE_THREAD = 0x00010000


def begin() -> dict[str, Any]:
    """Read this process's job from its input, which is empty from then on, and obey the job's limits."""
    with os.fdopen(0, "rb", closefd=False) as stream:
        job = load(stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path[:] = [*sys.path[1:], *job["packages"]]  # without these scripts
    confine(job["memory_bytes"], job["cpu_seconds"], job["isolated"])
    return job


def confine(memory_bytes: int, cpu_seconds: int, isolated: bool) -> None:
    """Limit this process for good; ``isolated``: it is in a user namespace of its own."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS does not keep it
        limits[resource.RLIMIT_AS] = memory_bytes
    if isolated:  # without a user namespace it would count all processes of the user
        limits[resource.RLIMIT_NPROC] = THREADS
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    if sys.platform == "linux" and os.uname().machine in AUDIT_ARCHITECTURE:
        _filter_system_calls(_filter_program(os.uname().machine))


def _filter_program(machine: str) -> list[tuple[int, int, int, int]]:
    """Classic BPF over ``struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}``."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCHITECTURE[machine]), (give, 0, 0, KILL), (load, 0, 0, 0)]
    if machine == "x86_64":
        program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, KILL)]  # the x32 calls: the same under other numbers
    for number in DEADLY[machine].values():
        program += [(equal, 0, 1, number), (give, 0, 0, KILL)]
    for number in REFUSED[machine].values():
        program += [(equal, 0, 1, number), (give, 0, 0, EPERM)]
    program += [(equal, 0, 1, CLONE3), (give, 0, 0, ENOSYS)]  # its flags cannot be seen here; libc then takes clone
    threads_only = [(load, 0, 0, 16), (any_bit, 1, 0, CLONE_THREAD), (give, 0, 0, EPERM)]
    return [*program, (equal, 0, len(threads_only), CLONE[machine]), *threads_only, (give, 0, 0, ALLOW)]


def _filter_system_calls(program: list[tuple[int, int, int, int]]) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    libc = ctypes.CDLL(None, use_errno=True)
    set_no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(set_no_new_privileges, 1, 0, 0, 0) or libc.prctl(
        set_seccomp, filter_mode, ctypes.byref(Program(len(program), code)), 0, 0
    ):
        raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")
