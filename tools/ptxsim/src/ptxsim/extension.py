"""Compiles a CUDA extension against the simulated runtime, so that its host code launches into the simulator."""

import concurrent.futures
import ctypes
import os
import re
import shlex
import subprocess

from . import build
from .nvcc import nvcc_path
from .runtime import runtime


def _object(src, cmd, system):
    """Compiles one file unless an object of the same command, source and headers is in the cache; returns its path."""
    base = os.path.join(build.cache_dir(), f"obj-{build.digest(os.path.abspath(src), *cmd)}")
    obj, deps = base + ".o", base + ".d"

    def stamp():
        names = shlex.split(build.read(deps).decode().replace("\\\n", " ").split(":", 1)[1])
        return build.digest(*[x for n in names if not n.startswith(system) for x in (n, build.read(n))])

    with build.locked(base):
        try:
            if build.read(base + ".stamp").decode() == stamp():
                return obj
        except OSError:
            pass
        build.run([*cmd, "-MD", "-MF", deps, "-c", src, "-o", obj])
        with open(base + ".stamp", "w") as f:
            f.write(stamp())
    return obj


class Extension:
    """A loaded sim build. With torch: call torch.ops.<namespace>.<op>. Without: `lib` is a ctypes library."""

    def __init__(self, name, path, lib):
        self.name, self.path, self.lib = name, path, lib

    @staticmethod
    def device_ptr(array, writable=True):
        """Registers a numpy array until the device block ends.

        Returns its device address, for host functions called with ctypes.
        """
        return runtime().lib.ptxsim_register_buffer(array.ctypes.data, array.nbytes, int(writable))


def build_sim_extension(
    name,
    sources,
    include_dirs=(),
    cflags=(),
    nvcc_flags=(),
    file_flags=None,
    arch="sm_80",
    torch=True,
    jobs=2,
    verbose=False,
):
    """Compiles .cu and .cpp files with -DPTXSIM, links them with the simulated runtime, and loads the library.

    cflags are for the host compiler (all sources), nvcc_flags for the .cu files, file_flags by name for some of these.
    Objects are kept in the cache directory."""
    rt = runtime()
    cc = arch.replace("sm_", "compute_")
    dirs = [os.path.abspath(d) for d in include_dirs] + [os.path.join(build.HERE, "include")]
    # (unique symbols are one for the process: inline host code could share its caches with a libtorch_cuda that found
    # no device)
    host, libs, system = ["-fPIC", "-fno-gnu-unique", *cflags], [], ["/usr/include/", "/usr/lib/"]
    system.append(os.path.dirname(_cuda_header()) + "/")
    defs = ["-DPTXSIM"]
    if torch:
        import torch as t

        root = os.path.dirname(t.__file__)
        dirs += [os.path.join(root, "include"), os.path.join(root, "include/torch/csrc/api/include")]
        system.append(root + "/")
        defs += [f"-D_GLIBCXX_USE_CXX11_ABI={int(t._C._GLIBCXX_USE_CXX11_ABI)}", f'-DPTXSIM_TORCH="{t.__version__}"']
        libs = [f"-L{root}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root}/lib"]
    common = [
        nvcc_path(),
        "-std=c++20",
        "-O2",
        *defs,
        *[f"-I{d}" for d in dirs],
        *[x for h in host for x in ("-Xcompiler", h)],
    ]

    def compiled(src):
        cu = (
            ["-gencode", f"arch={cc},code={cc}", "-no-compress", "-lineinfo", *nvcc_flags]
            if str(src).endswith(".cu")
            else []
        )
        cu += (file_flags or {}).get(os.path.basename(src), ())
        if verbose:
            print("compiling", src)
        return _object(str(src), common + cu, tuple(system))

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        objs = list(pool.map(compiled, sources))
    cmd = ["g++", "-shared", "-Wl,-z,defs", "-Wl,--as-needed", *objs, rt.path, *libs]
    path = os.path.join(build.cache_dir(), f"{name}-{build.digest(*cmd, *[build.read(o) for o in objs])}.so")
    build.build_once(path, cmd)
    lib = ctypes.CDLL(path)
    if torch:
        t.ops.load_library(path)
    if rt.devices[0].arch != arch:  # outside of `with device`, the newest extension's
        rt.devices[0].arch = arch
        rt.configure()
    return Extension(name, path, lib)


def _cuda_header():
    r = subprocess.run(
        [nvcc_path(), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", "none.o"], capture_output=True, text=True
    )
    for d in re.findall(r'-I\s*"?([^"\s]+)', r.stderr):
        if os.path.exists(os.path.join(d, "cuda_runtime.h")):
            return os.path.realpath(os.path.join(d, "cuda_runtime.h"))
    return "/usr/include/cuda_runtime.h"
