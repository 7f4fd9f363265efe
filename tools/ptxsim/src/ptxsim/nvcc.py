"""nvcc, ptxas and c++filt: compiles to PTX, and says what ptxas makes of a kernel."""

import os
import re
import shutil
import subprocess
import tempfile


def nvcc_path():
    """$NVCC, or nvcc on the PATH, or /usr/local/bin/nvcc."""
    return os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/bin/nvcc"


def compile_flags(arch, include_dirs, defines, extra):
    """Flags of nvcc. `defines`: names, "NAME=VALUE" strings, or a dict in which None is a name without a value."""
    f = [f"-arch={arch}", "-std=c++17"]
    f += [f"-I{d}" for d in include_dirs or ()]
    if isinstance(defines, dict):
        defines = [k if v is None else f"{k}={v}" for k, v in defines.items()]
    f += [f"-D{d}" for d in defines or ()]
    return f + list(extra or ())


def run_nvcc(source, args, suffix):
    """Compiles a .cu path or source text.

    Returns (path of the output in a temporary folder, stderr, that TemporaryDirectory).

    Raises:
        FileNotFoundError: the path does not exist.
        RuntimeError: nvcc failed. The message has what it printed.
    """
    tmp = tempfile.TemporaryDirectory(prefix="ptxsim-")
    if "\n" in str(source) or not os.path.exists(source):
        if "\n" not in str(source) and str(source).endswith((".cu", ".cuh", ".cpp")):
            raise FileNotFoundError(source)
        path = os.path.join(tmp.name, "kernel.cu")
        with open(path, "w") as f:
            f.write(source)
    else:
        path = os.path.abspath(source)
    out = os.path.join(tmp.name, "out" + suffix)
    r = subprocess.run([nvcc_path(), *args, path, "-o", out], capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(f"nvcc failed ({' '.join(args)}):\n{r.stdout}{r.stderr}")
    return out, r.stderr, tmp


def demangle(names):
    """{mangled name: demangled name}. Without c++filt and cu++filt the names stay as they are."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if not tool or not names:
        return {n: n for n in names}
    r = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True)
    out = r.stdout.splitlines()
    return dict(zip(names, out, strict=False)) if len(out) == len(names) else {n: n for n in names}


def parse_ptxas(err):
    """The lines of `ptxas -v` as a list of dicts."""
    out, cur, last = [], None, None
    for line in err.splitlines():
        m = re.search(r"Compiling entry function '([^']+)' for '([^']+)'", line)
        if m:
            cur = {
                "name": m[1],
                "arch": m[2],
                "registers": 0,
                "spill_stores": 0,
                "spill_loads": 0,
                "stack": 0,
                "shared": 0,
                "const": 0,
                "barriers": 0,
            }
            out.append(cur)
            continue
        m = re.search(r"Function properties for (\S+)", line)
        if m:
            last = m[1]
            continue
        m = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if m and cur is not None and last in (None, cur["name"]):
            cur["stack"], cur["spill_stores"], cur["spill_loads"] = int(m[1]), int(m[2]), int(m[3])
        m = re.search(r"Used (\d+) registers", line)
        if m and cur is not None:
            cur["registers"] = int(m[1])
            for key, pat in (
                ("shared", r"(\d+) bytes smem"),
                ("barriers", r"used (\d+) barriers"),
                ("const", r"(\d+) bytes cmem\[0\]"),
            ):
                q = re.search(pat, line)
                if q:
                    cur[key] = int(q[1])
    return out


def resources(source, arch="sm_80", include_dirs=(), defines=(), flags=()):
    """Per kernel, what ptxas reports.

    A list of dicts: name, pretty, registers, spill_stores, spill_loads, stack, shared, barriers.
    """
    args = ["-cubin", "-Xptxas", "-v", *compile_flags(arch, include_dirs, defines, flags)]
    _, err, tmp = run_nvcc(source, args, ".cubin")
    tmp.cleanup()
    out = parse_ptxas(err)
    pretty = demangle([k["name"] for k in out])
    for k in out:
        k["pretty"] = pretty[k["name"]]
    return out
