"""Builds the C++ parts once per source version, into a cache directory outside the source tree."""

import contextlib
import ctypes
import fcntl
import glob
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile

from . import abi

HERE = os.path.dirname(os.path.abspath(__file__))
CORE, CUDART = os.path.join(HERE, "core"), os.path.join(HERE, "cudart")
FLAGS = [
    "-std=c++20",
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-ffp-contract=off",
    "-frounding-math",
    "-fwrapv",
    "-fno-math-errno",
    "-fvisibility-inlines-hidden",
    "-fno-semantic-interposition",
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


def digest(*parts):
    """A name for what these strings and bytes say."""
    h = hashlib.sha256()
    for part in parts:
        h.update((part if isinstance(part, bytes) else str(part).encode()) + b"\0")
    return h.hexdigest()[:20]


def read(path):
    with open(path, "rb") as f:
        return f.read()


@contextlib.contextmanager
def locked(path):
    """One process at a time: files in the cache are written once."""
    with open(path + ".lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def run(command):
    """Runs a command. Returns its stderr.

    Raises:
        RuntimeError: it failed. The message has the command and what it printed.
    """
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{r.stdout}{r.stderr}")
    return r.stderr


def build_once(path, command):
    """Makes a file with `command -o FILE`, unless it is there."""
    with locked(path):
        if not os.path.exists(path):
            temporary = f"{path}.{os.getpid()}"
            run([*command, "-o", temporary])
            os.replace(temporary, path)
    return path


def sources_in(folder):
    """C++ files and headers of a folder, and the header that the libraries share."""
    found = [glob.glob(os.path.join(folder, "**", kind), recursive=True) for kind in ("*.cpp", "*.h")]
    return [*sorted(found[0]), *sorted(found[1]), os.path.join(os.path.dirname(folder), "layout.h")]


def core():
    """The loaded core library. It is compiled at the first use, which takes some 15 s."""
    global _lib
    if _lib is None:
        command = ["g++", *FLAGS, f"-I{CORE}", os.path.join(CORE, "core.cpp")]
        # (-march=native: another CPU needs another build)
        key = digest(*FLAGS, platform.machine(), _cpu(), *[read(path) for path in sources_in(CORE)])
        _lib = ctypes.CDLL(build_once(os.path.join(cache_dir(), f"core-{key}.so"), command))
        _lib.ptxsim_decode.restype = ctypes.c_void_p
        abi.check_core(_lib)
    return _lib
