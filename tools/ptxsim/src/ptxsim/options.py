"""Options of a launch."""

from dataclasses import dataclass, field

from . import abi

# What each adjustable check does by default: "raise", "warn" or "off".
DEFAULT_CHECKS = {
    "misaligned": "raise",
    "uninitialised-shared": "warn",
    "race": "warn",
    "barrier-after-exit": "warn",
    "barrier-mismatch": "warn",
    "shuffle": "warn",
    "async-in-flight": "warn",
    "warp-race": "off",
}
# The other kinds always raise.


@dataclass(kw_only=True)
class LaunchOptions:
    """Options of Module.launch, and of ptxsim.device for every launch in it.

    Raises:
        ValueError: `checks` names an unknown check, or `schedule` an unknown schedule.
    """

    checks: dict = field(default_factory=dict)  # kind -> "raise" | "warn" | "off", see DEFAULT_CHECKS
    strict: bool = False  # every finding raises, except for kinds that are off
    race: bool = True  # race detection in shared memory
    metrics: bool = True  # coalescing and bank conflicts
    workers: int | None = None  # host threads over blocks. The default is 1: deterministic
    resident: int = 1  # blocks run side by side by one worker
    cooperative: bool = False  # all blocks are resident: grid-wide barriers
    schedule: str = "forward"  # order of warps between barriers: "forward", "reverse" or "random"
    seed: int = 0  # of schedule="random"
    max_instr: int = 1 << 32  # warp instructions of the launch
    quantum: int = 1 << 22  # warp instructions before another warp has its turn
    printf: bool = True

    def __post_init__(self):
        self.checks = self.checks or {}
        for kind in self.checks:
            if kind not in DEFAULT_CHECKS:
                raise ValueError(f"unknown check {kind!r}; there are {sorted(DEFAULT_CHECKS)}")
        if self.schedule not in abi.SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; there are {sorted(abi.SCHEDULES)}")

    def level(self, kind):
        """What a finding of this kind does: "raise", "warn" or "off"."""
        level = {**DEFAULT_CHECKS, **self.checks}.get(kind, "raise")
        return "raise" if self.strict and level != "off" else level

    @property
    def race_detection(self):
        """0: off, 1: between warps, 2: between lanes of a warp as well."""
        if not self.race or self.level("race") == "off":
            return 0
        return 2 if self.level("warp-race") != "off" else 1
