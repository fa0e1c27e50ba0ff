"""What of this machine will bite a run, and what to do about it; what of the installation: `installation.py`.

Each check takes what a run needs and looks at what there is. `dit doctor` makes all of them; whoever is about to train
or embed makes those whose numbers it knows, and raises what it finds: `raise StorageError(found.what, found.remedy)`.
Nothing heavy is imported before a check needs it.
"""

from __future__ import annotations

import fcntl
import locale
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dittool.shell import quoted
from dittool.storage import TEMPORARY_PREFIX, bytes_text

OK, NOTE, BITES = "ok", "note", "bites"

SHARED_MEMORY = Path("/dev/shm")
_DESCRIPTORS_AT_REST = 64  # libraries, log, sockets of torch
_TENSORS_OF_A_BATCH = 8  # each comes from a worker as a descriptor of its own
_THREADS = 8  # of the main process: log, pinned memory, autograd
_NARROW = 60  # columns below which tables fold every cell
_AMPERE = (8, 0)  # the first compute capability with bf16 products


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str  # a few words: what was looked at
    status: str  # "ok"; "note": worth knowing; "bites": a run will fail or be wrong
    what: str  # what is there, beside what is needed
    remedy: str = ""  # what to do; of everything that bites


# Limits of the system


def shared_memory_needed(batch_bytes: int, workers: int, ahead: int) -> int:
    """Bytes of /dev/shm when `workers` processes each keep `ahead` batches ready, and one is being used."""
    return batch_bytes * (workers * ahead + 1) if workers else 0


def shared_memory(needed: int, workers: int, folder: Path = SHARED_MEMORY) -> Finding:
    """Room for the batches that worker processes hand over. `needed`: bytes, as `shared_memory_needed` counts them."""
    name = str(folder)
    if not folder.is_dir():
        return Finding(name, OK, "not on this system; worker processes hand batches over in another way")
    status = os.statvfs(folder)
    free, size = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    there = f"{bytes_text(free)} free of {bytes_text(size)}"
    if not workers:
        return Finding(name, OK, f"{there}; without worker processes none of it is used")
    what = f"{workers} worker processes need about {bytes_text(needed)}, there is {there}"
    if needed <= free:
        return Finding(name, OK, what)
    remedy = (
        f"give it more (docker run --shm-size={_rounded_up(needed)} or --ipc=host; else, as root: mount -o"
        f" remount,size={_rounded_up(needed)} {folder}), or read without workers: -s train.workers=0"
    )
    return Finding(name, BITES, what, remedy)


def descriptors_needed(files: int, workers: int, ahead: int) -> int:
    """Descriptors of the training process with `files` open at a time and worker processes that hand over batches."""
    return _DESCRIPTORS_AT_REST + files + workers * (3 + ahead * _TENSORS_OF_A_BATCH)


def descriptors(needed: int) -> Finding:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    what = f"about {needed:,} files open at a time, the limit is {_limit(soft)}"
    if _within(needed, soft):
        return Finding("open files", OK, what)
    return Finding("open files", BITES, what, _lift("n", needed, hard, "or use fewer workers: -s train.workers=0"))


def file_size(largest: int) -> Finding:
    """How large a file may grow; `largest`: bytes of the largest that will be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    there = "no limit" if soft == resource.RLIM_INFINITY else f"the limit is {bytes_text(soft)}"
    what = f"the largest file, a checkpoint, has about {bytes_text(largest)}; {there}"
    if _within(largest, soft):
        return Finding("file size", OK, what)
    kilobytes = -(-largest // 1024)  # the unit of ulimit -f
    return Finding("file size", BITES, what, _lift("f", kilobytes, hard // 1024, "or choose a smaller preset"))


def processes(workers: int) -> Finding:
    """How worker processes start here, and how many there can be."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    cores, (soft, hard) = usable_cores(), resource.getrlimit(resource.RLIMIT_NPROC)
    how = "forked" if method == "fork" else f"started anew ({method})"
    what = f"{workers} worker processes, {how}; {cores} cores to use"
    needed = workers + cores + _THREADS
    if not _within(needed, soft):
        what = f"{what}, and the limit of processes and threads is {soft:,}"
        return Finding("processes", BITES, what, _lift("u", needed, hard, "or use fewer workers: -s train.workers=0"))
    if workers > cores:
        return Finding("processes", NOTE, what, f"more workers than cores only wait: -s train.workers={cores}")
    if workers and method != "fork":
        remedy = 'a script of your own that trains needs: if __name__ == "__main__":'
        return Finding("processes", NOTE, f"{what}; each imports torch again, some 300 MB and seconds", remedy)
    return Finding("processes", OK, what)


def usable_cores() -> int:
    """Cores that this process may use: its affinity and its container's quota, not what the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def memory(needed: int) -> Finding:
    """Room for `needed` bytes in main memory, under whatever limit is the lowest."""
    limits = list(_memory_limits())
    if not limits:
        return Finding("memory", NOTE, "this system does not say how much is free")
    free, whose = min(limits)
    what = f"a run needs at least {bytes_text(needed)}, {whose} {bytes_text(free)}"
    if needed <= free:
        return Finding("memory", OK, what)
    return Finding("memory", BITES, what, "end other programs, raise that limit, or choose a smaller preset")


def disk(folder: Path, needed: int, what_for: str) -> Finding:
    """Whether `needed` bytes can be written under a folder that may not be there yet, and whether it can be locked."""
    name, there = f"disk: {folder}", _nearest_existing(folder)
    try:
        with tempfile.NamedTemporaryFile(prefix=TEMPORARY_PREFIX, dir=there) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        what = f"{there}: cannot be written to or locked: {error.strerror}"
        return Finding(name, BITES, what, "work in another folder, or correct its permissions")
    status = os.statvfs(there)
    free = status.f_bavail * status.f_frsize
    what = f"{what_for} about {bytes_text(needed)}, {bytes_text(free)} free"
    if status.f_files and not status.f_favail:
        what, needed = f"{there}: the file system has no room for another file (inodes)", free + 1
    if needed <= free:
        return Finding(name, OK, what)
    return Finding(name, BITES, what, f"free some space on it, or work on another disk; see: df -h {quoted(there)}")


# Device


def device(needed: int, bf16: bool) -> list[Finding]:
    """The device that a run will use. `needed`: bytes of weights, gradients, moments and average. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return [_no_gpu(torch.version.cuda, bf16)]
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability, known = (properties.major, properties.minor), torch.cuda.get_arch_list()
        name = f"device: cuda:{index}"
        what = (
            f"{properties.name}: at least {bytes_text(needed)} needed, {bytes_text(free)} of {bytes_text(total)} free"
        )
        if needed > free:
            remedy = (
                "end what else runs there (nvidia-smi), choose another with CUDA_VISIBLE_DEVICES, or a smaller preset"
            )
            found.append(Finding(name, BITES, what, remedy))
        elif known and not any(_runs_on(code, capability) for code in known):
            what = f"{properties.name} is of sm_{capability[0]}{capability[1]}, this torch is for {', '.join(known)}"
            found.append(Finding(name, BITES, what, "install a torch that is built for it: https://pytorch.org"))
        elif bf16 and capability < _AMPERE:
            what = f"{properties.name} has no bf16 products, and train.precision is bf16"
            found.append(Finding(name, NOTE, what, "it will be slow; compare: dit bench -s train.precision=fp32"))
        else:
            found.append(Finding(name, OK, what))
    return found


def _no_gpu(built_for: str | None, bf16: bool) -> Finding:
    driver = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver and hidden in ("", "-1"):
        what = "there is an NVIDIA device, and CUDA_VISIBLE_DEVICES hides it"
        return Finding("device", BITES, what, "unset CUDA_VISIBLE_DEVICES")
    if driver and built_for is None:
        what = "there is an NVIDIA device, and this torch is built for CPUs"
        return Finding("device", BITES, what, "install the CUDA build of torch and torchvision: https://pytorch.org")
    if driver:
        what = f"there is an NVIDIA device, and this torch (CUDA {built_for}) cannot use it: mostly the driver is older"
        return Finding("device", BITES, what, "update the driver, or install a torch for its CUDA; see: nvidia-smi")
    slow = "; bf16 on a CPU can be slower than fp32: compare with dit bench" if bf16 else ""
    return Finding("device", OK, f"no GPU; the CPU does the work{slow}")


# Terminal


def terminal() -> Finding:
    """What can be shown: encoding, width, colours."""
    encoding = (getattr(sys.stdout, "encoding", None) or "unknown").lower()
    columns = shutil.get_terminal_size((100, 24)).columns
    what = f"{encoding}, {columns} columns, {'no colours' if os.environ.get('NO_COLOR') else 'colours on a terminal'}"
    if encoding.replace("-", "") != "utf8":
        what = f"{what}: signs are written as words, letters beyond it as \\x.."
        return Finding("terminal", NOTE, what, f"export PYTHONIOENCODING=utf-8, or a UTF-8 locale (now {_locale()})")
    if columns < _NARROW:
        return Finding("terminal", NOTE, f"{what}: tables fold", "widen it, or --json")
    return Finding("terminal", OK, what)


# What the checks look at


def _rounded_up(count: int) -> str:
    """A size as docker and mount read it, a quarter larger."""
    return f"{-(-count * 5 // 4 // 2**20)}m"


def _lift(flag: str, needed: int, hard: int, otherwise: str) -> str:
    """How a limit of the shell is raised; beyond the hard one only the administrator can."""
    if _within(needed, hard):
        return f"raise it in the shell that starts dit: ulimit -{flag} {needed}"
    who = f"who runs this machine can raise it (ulimit -H -{flag} {needed}: limits.conf, systemd, docker run --ulimit)"
    return f"{who}, {otherwise}"


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"


def _within(needed: int, limit: int) -> bool:
    return limit == resource.RLIM_INFINITY or needed <= limit


def _memory_limits() -> Iterator[tuple[int, str]]:
    """(bytes that are left, who says so) of each limit that this system names."""
    with suppress(OSError, ValueError, KeyError):
        yield _named_numbers(Path("/proc/meminfo"))["MemAvailable:"] * 1024, "the machine has free"
    for folder in _control_groups("memory"):
        for most, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # of older kernels
        ):
            with suppress(OSError, ValueError, KeyError):
                kept = int((folder / used).read_text()) - _named_numbers(folder / "memory.stat")[cache]
                yield int((folder / most).read_text()) - kept, "the job's or container's limit leaves"
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft, "the shell's limit (ulimit -v) is"


def _named_numbers(file: Path) -> dict[str, int]:
    """`NAME NUMBER` of each line."""
    return {words[0]: int(words[1]) for line in file.read_text().splitlines() if len(words := line.split()) > 1}


def _control_groups(controller: str) -> list[Path]:
    """The folders of this process's control group and of those around it: a batch system or a container sets its
    limits in one of them.
    """
    folders, root = [], Path("/sys/fs/cgroup")
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers in ("", controller):
                top = root / controllers
                inside = top / own.lstrip("/")
                folders += [path for path in (inside, *inside.parents) if path == top or top in path.parents]
    return folders


def temporary_folder() -> Path:
    """Where libraries put what they need for a while."""
    return Path(tempfile.gettempdir())


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _runs_on(code: str, capability: tuple[int, int]) -> bool:
    """Whether code such as sm_80 or compute_90 runs on a device: of the same major version, or made for any later."""
    match = re.match(r"(sm|compute)_(\d+)(\d)", code)
    if match is None:
        return False
    made_for = int(match[2]), int(match[3])
    return made_for <= capability and (match[1] == "compute" or made_for[0] == capability[0])


def _locale() -> str:
    return os.environ.get("LC_ALL") or os.environ.get("LANG") or locale.getlocale()[0] or "C"
