"""What was tried on validation parts, to choose settings and to find where the mask head matters.

On photographs MaskCo and MoCo v2 have equally many tries: `budgets` counts them. MaskCo without its head is no
candidate. Each of its tries is the counterpart of one with a head.
"""

from __future__ import annotations

from collections import Counter

from benchmarks.claims.encoder import NARROW
from benchmarks.claims.settings import (
    BOUNDS,
    DENSECL,
    HIDDEN,
    HIDDEN_NO_HEAD,
    MASKCO,
    METHODS,
    MOCO,
    NO_HEAD,
    PHOTOGRAPHS,
    REGIONS,
    SIMCLR,
    Options,
    Scale,
)

SMALLER_CROPS: Options = {"crop_scale": (0.2, 1.0)}  # maskco's and MoCo v2's default
LARGER_CROPS: Options = {"crop_scale": (0.6, 1.0)}
NARROW_ENCODER: Options = {"encoder": NARROW, "stage": 2}  # its map is as fine as PHOTOS', but sees 23 pixels, not 95
BASE: Options = METHODS[MOCO]
LAPTOP_TRIES: dict[str, Options] = {
    MASKCO: REGIONS,
    NO_HEAD: METHODS[NO_HEAD],
    HIDDEN: METHODS[HIDDEN],
    HIDDEN_NO_HEAD: METHODS[HIDDEN_NO_HEAD],
    "mask share 0.5": REGIONS | {"mask_share": 0.5},
    "masks of grey": REGIONS | {"mask_fill": "grey"},
    "masks of noise": REGIONS | {"mask_fill": "noise"},
    "1 region": REGIONS | {"regions": 1},
    "1 region of 0.25 to 0.5, mask share 1": REGIONS | {"regions": 1, "region_scale": (0.25, 0.5), "mask_share": 1.0},
    "8 regions of 0.2 to 0.3": REGIONS | {"regions": 8, "region_scale": (0.2, 0.3)},
    "regions of 0.35 to 0.55": REGIONS | {"region_scale": (0.35, 0.55)},
    "keys through the head": REGIONS | {"key_head": True},
    "no negatives of the same picture": REGIONS | {"local_negatives": False},
    "temperature 0.1": REGIONS | {"temperature": 0.1},
    "lr 0.48": REGIONS | {"lr": 0.48},
    "momentum 0.95": REGIONS | {"key_momentum": 0.95},
    "queue of 1024": REGIONS | {"queue_size": 1024},
    "head of one block": REGIONS | {"mask_head_depth": 1},
    "crops which may share nothing": REGIONS | {"min_overlap": 0.0},
    "crops of 0.2 to 1": REGIONS | SMALLER_CROPS,
    "crops of 0.6 to 1": REGIONS | LARGER_CROPS,
    MOCO: BASE,
    "MoCo v2, crops of 0.2 to 1": BASE | SMALLER_CROPS,
    "MoCo v2, crops of 0.2 to 1, which may share nothing": BASE | SMALLER_CROPS | {"min_overlap": 0.0},
    "MoCo v2, crops of 0.2 to 1, temperature 0.1": BASE | SMALLER_CROPS | {"temperature": 0.1},
    "MoCo v2, crops of 0.2 to 1, lr 0.48": BASE | SMALLER_CROPS | {"lr": 0.48},
    "MoCo v2, crops of 0.6 to 1": BASE | LARGER_CROPS,
    "MoCo v2, lr 0.12": BASE | {"lr": 0.12},
    "MoCo v2, lr 0.48": BASE | {"lr": 0.48},
    "MoCo v2, momentum 0.95": BASE | {"key_momentum": 0.95},
    "MoCo v2, momentum 0.996": BASE | {"key_momentum": 0.996},
    "MoCo v2, temperature 0.1": BASE | {"temperature": 0.1},
    "MoCo v2, temperature 0.4": BASE | {"temperature": 0.4},
    "MoCo v2, queue of 1024": BASE | {"queue_size": 1024},
    "MoCo v2, queue of 16384": BASE | {"queue_size": 16384},
    "MoCo v2, crops which may share nothing": BASE | {"min_overlap": 0.0},
    "MoCo v2, crops which share half": BASE | {"min_overlap": 0.5},
    "MoCo v2, weight decay 1e-4": BASE | {"weight_decay": 1e-4},
    "MoCo v2, projection of 512": BASE | {"hidden": 512},
}

BOTH: dict[str, Options] = {  # on photographs, of either method
    "temperature 0.1": {"temperature": 0.1},
    "temperature 0.3": {"temperature": 0.3},
    "projection of MoCo v3": {"projection": "moco_v3"},
    "queue of 1024": {"queue_size": 1024},
    "queue of 16384": {"queue_size": 16384},
    "momentum 0.99 to 1": {"key_momentum_end": 1.0},
    "momentum 0.996": {"key_momentum": 0.996},
    "lr 0.12": {"lr": 0.12},
    "lr 0.48": {"lr": 0.48},
    "crops of 0.2 to 1": SMALLER_CROPS,
    "crops of 0.6 to 1": LARGER_CROPS,
}
OF_MOCO: dict[str, Options] = {
    "crops which may share nothing": {"min_overlap": 0.0},
    "crops which share half": {"min_overlap": 0.5},
    "crops of 0.2 to 1, which may share nothing": SMALLER_CROPS | {"min_overlap": 0.0},
    "temperature 0.07": {"temperature": 0.07},
    "temperature 0.4": {"temperature": 0.4},
    "momentum 0.95": {"key_momentum": 0.95},
    "momentum 0.95 to 1": {"key_momentum": 0.95, "key_momentum_end": 1.0},
    "momentum 0.996 to 1": {"key_momentum": 0.996, "key_momentum_end": 1.0},
    "queue of 256": {"queue_size": 256},
    "lr 0.06": {"lr": 0.06},
    "lr 0.96": {"lr": 0.96},
    "weight decay 1e-4": {"weight_decay": 1e-4},
    "weight decay 2e-3": {"weight_decay": 2e-3},
    "projection of 512": {"hidden": 512},
    "warm-up of 200 steps": {"warmup_steps": 200},
    "warm-up of 10 steps": {"warmup_steps": 10},
    "narrow encoder": NARROW_ENCODER,
}
REGIMES: dict[str, Options] = {  # with head and without
    "mask share 0.15": {"mask_share": 0.15},
    "mask share 0.5": {"mask_share": 0.5},
    "mask share 0.75": {"mask_share": 0.75},
    "masks twice as large as regions": {"mask_share": 2.0},
    "regions of 0.15 to 0.25": {"region_scale": (0.15, 0.25)},
    "regions of 0.4 to 0.6": {"region_scale": (0.4, 0.6)},
    "regions of 0.15 to 0.25, all hidden": {"region_scale": (0.15, 0.25), "mask_share": 1.0},
    "regions of 0.4 to 0.6, all hidden": {"region_scale": (0.4, 0.6), "mask_share": 1.0},
    "1 region": {"regions": 1},
    "1 region of 0.4 to 0.6, all hidden": {"regions": 1, "region_scale": (0.4, 0.6), "mask_share": 1.0},
    "narrow encoder": NARROW_ENCODER,
    "narrow encoder, all hidden": NARROW_ENCODER | {"mask_share": 1.0},
}
OF_MASKCO: dict[str, Options] = {
    "2 regions": {"regions": 2},
    "8 regions of 0.15 to 0.25, which hardly overlap": {
        "regions": 8,
        "region_scale": (0.15, 0.25),
        "max_region_overlap": 0.05,
    },
    "no negatives of the same picture": {"local_negatives": False},
    "no overlapping negatives": {"local_overlap": 0.0},
}
PHOTOGRAPH_TRIES: dict[str, Options] = {name: METHODS[name] for name in (MASKCO, NO_HEAD, HIDDEN, HIDDEN_NO_HEAD)}
PHOTOGRAPH_TRIES |= {DENSECL: METHODS[DENSECL], SIMCLR: METHODS[SIMCLR]} | BOUNDS  # as they are: not tuned
for _name, _own in REGIMES.items():
    PHOTOGRAPH_TRIES[_name] = REGIONS | _own
    PHOTOGRAPH_TRIES[f"{_name}, no head"] = REGIONS | _own | {"mask_head": "none"}
PHOTOGRAPH_TRIES |= {name: REGIONS | own for name, own in (OF_MASKCO | BOTH).items()}
PHOTOGRAPH_TRIES |= {  # see ages.py; half a queue's time is 8 steps of 256 regions, or 32 of 64 images
    "keys measured by age": REGIONS | {"method": "maskco_ages"},
    "keys of equal age": REGIONS | {"method": "maskco_ages", "delay": 8},
}
BASE_AGES: Options = BASE | {"method": "moco_v2_ages"}
PHOTOGRAPH_TRIES |= {MOCO: BASE} | {f"{MOCO}, {name}": BASE | own for name, own in (BOTH | OF_MOCO).items()}
PHOTOGRAPH_TRIES |= {
    f"{MOCO}, keys measured by age": BASE_AGES,
    f"{MOCO}, keys of equal age": BASE_AGES | {"delay": 32},
}


def tries_of(scale: Scale) -> dict[str, Options]:
    return PHOTOGRAPH_TRIES if scale.sets == PHOTOGRAPHS.sets else LAPTOP_TRIES


def budgets(tries: dict[str, Options]) -> dict[str, int]:
    """How many of these each method has, by its name. What is no method, such as no training, is not counted."""
    named = {METHODS[name]["method"]: name for name in (MASKCO, MOCO, DENSECL, SIMCLR)}
    named |= {f"{method}_ages": name for method, name in named.items()}
    learned = [own for own in tries.values() if "method" in own]
    return dict(Counter(NO_HEAD if own.get("mask_head") == "none" else named[own["method"]] for own in learned))
