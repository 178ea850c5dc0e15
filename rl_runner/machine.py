"""What the numbers of a run depend on besides its config: threads, device, versions, processor."""

import ctypes
import os
import platform
import re
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import gymnasium as gym
import numpy
import torch

CPUINFO = Path("/proc/cpuinfo")
# An update needs the same memory again and again. Unasked, glibc gives what images take back to the system each time,
# and gets it zeroed, page by page: a third of the time. {M_TRIM_THRESHOLD: 512 MB, M_MMAP_THRESHOLD: 32 MB}
MALLOC = {-1: 2**29, -3: 2**25}
CORES = "RL_RUNNER_CORES"  # the variable that tells a run of a sweep its share of them


def resolve_device(device: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda[:N]` means here."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def set_up(device: str, threads: str | int, precision: str) -> torch.device:
    """Make PyTorch compute as configured; the device."""
    torch.set_num_threads(num_threads(threads))
    torch.set_flush_denormal(True)  # as for updates, in those threads that begin here: they keep it
    torch.ones(2**18).square_()
    torch.set_flush_denormal(False)
    with suppress(AttributeError, OSError, TypeError):  # glibc alone has it
        for option, size in MALLOC.items():
            ctypes.CDLL(None).mallopt(option, size)
    torch.set_float32_matmul_precision("highest" if precision == "bfloat16" else precision)
    resolved = resolve_device(device)
    if resolved.index is not None:
        torch.cuda.set_device(resolved)  # where streams and graphs are made
    return resolved


def available(precision: str, device: torch.device) -> str:
    """This precision, or `highest` where products in bfloat16 are no instructions and would be slower."""
    if device.type == "cuda":
        capable = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision if capable or precision != "bfloat16" else "highest"


def num_cores() -> int:
    """The cores that this run may use; of a sweep's run its share."""
    if share := os.environ.get(CORES):
        return int(share)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(threads: str | int) -> int:
    """One thread for `auto`: the products of networks of this size are too small to share out on a busy machine."""
    return 1 if threads == "auto" else int(threads)


def facts(device: torch.device, env: gym.Env) -> dict[str, str | int]:
    """All of it, to compare with the machine that continues a run."""
    return {"threads": torch.get_num_threads(), "device": device.type, "processor": processor(device), **versions(env)}


def versions(env: gym.Env) -> dict[str, str]:
    """The versions of everything that computes, the environment's own package included."""
    found = {"python": platform.python_version()}
    found |= {module.__name__: module.__version__ for module in (torch, gym, numpy)}
    root, *rest = type(env.unwrapped).__module__.split(".")
    package = rest[1] if root == "gymnasium" and len(rest) > 1 else root  # gymnasium.envs.mujoco, or the user's own
    with suppress(metadata.PackageNotFoundError):
        found[package] = metadata.version(package)
    return found


def processor(device: torch.device) -> str:
    """The processor that computes, and which of its instructions PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = CPUINFO.read_text() if CPUINFO.exists() else ""
    named = re.search(r"^model name\s*:(.*)", told, re.MULTILINE)
    return f"{named[1].strip() if named else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
