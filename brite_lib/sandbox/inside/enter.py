"""Enters namespaces of its own and runs a command there: what bubblewrap does, for machines that lack it.

``enter.py scratch bytes source target source target … -- command …``; sources become read-only targets. Needs Linux 5.12
(mount_setattr) and user namespaces.
"""

import ctypes
import os
import signal
import sys

# From <sched.h>, <sys/mount.h>, <linux/mount.h>.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (1 << bit for bit in (17, 26, 27, 28, 29, 30))
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (1 << bit for bit in (0, 1, 2, 5, 12, 14, 18))
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_SETATTR = 442  # the same number on every architecture but alpha
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """End with one line if a call failed."""
    if result != 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    encoded = [text if text is None else text.encode() for text in (source, target, kind, options)]
    check(libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def make_read_only(target: str) -> None:
    """``target`` and all mounts below it, with the flags that they have."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID, 0, 0, 0)  # set, clear, propagation, user namespace
    arguments = ctypes.c_int(AT_FDCWD), target.encode(), ctypes.c_uint(AT_RECURSIVE), attributes, ctypes.c_size_t(32)
    check(libc.syscall(ctypes.c_long(MOUNT_SETATTR), *arguments), f"mount_setattr {target}")


def enter(binds: list[tuple[str, str]], scratch: str, scratch_bytes: int) -> None:
    """New namespaces whose root holds the binds (read-only; source, target), a scratch directory and nothing else."""
    user, group = os.getuid(), os.getgid()
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "unshare")
    for name, line in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID, "size=1m,mode=0755")
    os.mkdir("/tmp/old")
    check(libc.syscall(ctypes.c_long(PIVOT_ROOT[os.uname().machine]), b"/tmp", b"/tmp/old"), "pivot_root")
    os.chdir("/")
    for source, target in binds:
        if os.path.isdir(f"/old{source}"):
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT))
        mount(f"/old{source}", target, None, MS_BIND | MS_REC)
        make_read_only(target)
    os.mkdir(scratch)
    mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, f"size={scratch_bytes},mode=0700")
    check(libc.umount2(b"/old", MNT_DETACH), "umount2")
    os.rmdir("/old")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)


def main() -> None:
    """Never returns."""
    end = sys.argv.index("--")
    (scratch, size, *paths), command = sys.argv[1:end], sys.argv[end + 1 :]
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    enter(list(zip(paths[::2], paths[1::2], strict=True)), scratch, int(size))
    for _ in range(2):  # the first process of the namespace is an init that ends all others with itself
        child = os.fork()
        if child:
            os.closerange(3, 256)
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) and 1)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(scratch)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
