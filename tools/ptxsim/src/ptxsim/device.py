"""`with ptxsim.device(...)`: the device on which host code runs."""

import contextlib
from dataclasses import fields

from .options import LaunchOptions
from .runtime import DeviceState, runtime


class device(DeviceState, contextlib.AbstractContextManager):
    """`with ptxsim.device(arch='sm_80', strict=True) as dev:` — the device on which ops of sim builds run meanwhile.

    Args:
        arch, sms: what the host code is told, and the limits of launches. The default is the architecture for which
            the newest extension was built.
        poison: torch.empty and the like are filled with NaN (integers: the greatest), so that what no kernel writes
            shows.
        options: those of LaunchOptions, except for `cooperative`, which the host code says.

    `launches` has a Launch for every launch, `leaked` the bytes of cudaMalloc that were not freed, `errors` the
    findings and API errors. The first one is raised at the end of the block, whatever the op made of it.
    `take_error()` removes and returns it.
    """

    def __init__(self, arch=None, sms=None, poison=True, **options):
        unknown = set(options) - {f.name for f in fields(LaunchOptions)} | set(options) & {"cooperative"}
        if unknown:
            raise TypeError(f"unknown options {sorted(unknown)}")
        super().__init__(arch, sms, poison, options=LaunchOptions(**options))

    def __enter__(self):
        rt = runtime()
        self.arch = self.arch or rt.devices[0].arch
        rt.devices.append(self)
        rt.configure()
        rt.lib.ptxsim_unchecked()  # an old error is not this block's
        self._before = rt.allocated()
        if self.poison:
            import torch

            self._torch = (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.utils.deterministic.fill_uninitialized_memory,
            )
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = True
        return self

    def __exit__(self, kind, exc, tb):
        rt = runtime()
        rt.devices.remove(self)
        rt.configure()
        rt.lib.ptxsim_unchecked()
        rt.lib.ptxsim_forget()
        self.leaked = rt.allocated() - self._before
        if self.poison:
            import torch

            torch.use_deterministic_algorithms(self._torch[0], warn_only=self._torch[1])
            torch.utils.deterministic.fill_uninitialized_memory = self._torch[2]
        if self.errors and exc is not self.errors[0]:
            raise self.errors[0] from exc

    def take_error(self):
        """Removes and returns the first error, or None."""
        return self.errors.pop(0) if self.errors else None

    def count(self, name):
        """How many launches were of kernels whose name contains this."""
        return sum(name in x.kernel for x in self.launches)
