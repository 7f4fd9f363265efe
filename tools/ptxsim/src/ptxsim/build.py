"""Builds the C++ core once per source version, into a cache directory outside the source tree."""

import ctypes
import fcntl
import hashlib
import os
import platform
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
CORE = os.path.join(HERE, "core")
FLAGS = [
    "-std=c++20",
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-ffp-contract=off",
    "-frounding-math",
    "-fwrapv",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-pthread",
]
_lib = None


def _cpu():
    try:
        with open("/proc/cpuinfo") as f:
            return next((line for line in f if line.startswith("flags")), "")
    except OSError:
        return platform.processor()


def cache_dir():
    """$PTXSIM_CACHE, or ptxsim under $XDG_CACHE_HOME or the temporary directory."""
    root = os.environ.get("PTXSIM_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(tempfile.gettempdir(), f"ptxsim-{os.getuid()}"), "ptxsim"
    )
    os.makedirs(root, mode=0o700, exist_ok=True)
    return root


def core():
    """The loaded core library (compiled at the first use, some 15 s)."""
    global _lib
    if _lib is not None:
        return _lib
    h = hashlib.sha256((" ".join(FLAGS) + platform.machine() + _cpu()).encode())
    for name in ("core.cpp", "decode.inc", "engine.inc"):
        with open(os.path.join(CORE, name), "rb") as f:
            h.update(f.read())
    path = os.path.join(cache_dir(), f"core-{h.hexdigest()[:16]}.so")
    if not os.path.exists(path):
        with open(path + ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(path):
                tmp = f"{path}.{os.getpid()}"
                r = subprocess.run(
                    ["g++", *FLAGS, os.path.join(CORE, "core.cpp"), "-o", tmp], capture_output=True, text=True
                )
                if r.returncode:
                    raise RuntimeError("ptxsim: building the core failed:\n" + r.stderr[-4000:])
                os.replace(tmp, path)
    _lib = ctypes.CDLL(path)
    _lib.ps_prog.restype = ctypes.c_void_p
    return _lib
