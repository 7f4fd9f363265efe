"""How each method is trained, and how that was chosen.

All share encoder, augmentations, optimizer, pictures and steps (a Scale). What each has of its own (METHODS) was chosen
by validation scores of 2×2 scenes, a single run each: first results/claims_tries.json, most of which a prototype of
this benchmark made, then ABLATIONS, in results/claims.json. What was chosen is used on all sets, and scored on their
test parts once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from benchmarks.claims.encoder import NAME, PHOTOS
from benchmarks.claims.names import CALTECH, COCO, DEMO, NARROW_SCENES, OBJECTS, SCENES, SCENES_3, STL10, VOC

Options = dict[str, Any]  # of maskco.pretrain

MASKCO, NO_HEAD, ATTENTION, MOCO = "MaskCo", "MaskCo, no head", "MaskCo, attention head", "MoCo v2"
HIDDEN, HIDDEN_NO_HEAD = "MaskCo, regions all hidden", "the same, no head"
DENSECL, SIMCLR = "DenseCL", "SimCLR"
UNTRAINED, SUPERVISED = "untrained", "supervised"  # what the methods should lie between

REGIONS: Options = {
    "method": "maskco",
    "regions": 4,
    "region_scale": (0.25, 0.4),
    "mask_share": 0.3,
    "mask_fill": "mean",  # all rows of claims.json are of it, and a ResNet takes it
}
METHODS: dict[str, Options] = {
    MASKCO: REGIONS,
    NO_HEAD: REGIONS | {"mask_head": "none"},
    ATTENTION: REGIONS | {"mask_head": "attention"},
    HIDDEN: REGIONS | {"mask_share": 1.0},  # nothing of a region is seen but through its surroundings
    HIDDEN_NO_HEAD: REGIONS | {"mask_share": 1.0, "mask_head": "none"},
    MOCO: {"method": "moco_v2"},
    DENSECL: {"method": "densecl", "min_overlap": 0.25},
    SIMCLR: {  # the optimizer, crops and colors of the others in place of its own
        "method": "simclr",
        "optimizer": "sgd",
        "temperature": 0.2,
        "min_overlap": 0.25,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
    },
}
MAIN = (MASKCO, NO_HEAD, ATTENTION, HIDDEN, HIDDEN_NO_HEAD, MOCO)  # what the claims are about
BOUNDS: dict[str, Options] = {UNTRAINED: {}, SUPERVISED: {}}
SMALLER_CROPS: Options = {"crop_scale": (0.2, 1.0)}  # maskco's and MoCo v2's default
LARGER_CROPS: Options = {"crop_scale": (0.6, 1.0)}
ABLATIONS: dict[str, Options] = {
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
    MOCO: METHODS[MOCO],
    "MoCo v2, crops of 0.2 to 1": METHODS[MOCO] | SMALLER_CROPS,
    "MoCo v2, crops of 0.2 to 1, which may share nothing": METHODS[MOCO] | SMALLER_CROPS | {"min_overlap": 0.0},
    "MoCo v2, crops of 0.2 to 1, temperature 0.1": METHODS[MOCO] | SMALLER_CROPS | {"temperature": 0.1},
    "MoCo v2, crops of 0.2 to 1, lr 0.48": METHODS[MOCO] | SMALLER_CROPS | {"lr": 0.48},
    "MoCo v2, crops of 0.6 to 1": METHODS[MOCO] | LARGER_CROPS,
    "MoCo v2, lr 0.12": METHODS[MOCO] | {"lr": 0.12},
    "MoCo v2, lr 0.48": METHODS[MOCO] | {"lr": 0.48},
    "MoCo v2, momentum 0.95": METHODS[MOCO] | {"key_momentum": 0.95},
    "MoCo v2, momentum 0.996": METHODS[MOCO] | {"key_momentum": 0.996},
    "MoCo v2, temperature 0.1": METHODS[MOCO] | {"temperature": 0.1},
    "MoCo v2, temperature 0.4": METHODS[MOCO] | {"temperature": 0.4},
    "MoCo v2, queue of 1024": METHODS[MOCO] | {"queue_size": 1024},
    "MoCo v2, queue of 16384": METHODS[MOCO] | {"queue_size": 16384},
    "MoCo v2, crops which may share nothing": METHODS[MOCO] | {"min_overlap": 0.0},
    "MoCo v2, crops which share half": METHODS[MOCO] | {"min_overlap": 0.5},
    "MoCo v2, weight decay 1e-4": METHODS[MOCO] | {"weight_decay": 1e-4},
    "MoCo v2, projection of 512": METHODS[MOCO] | {"hidden": 512},
}


@dataclass(frozen=True)
class Scale:
    """What all methods share. `sets` and `methods` are the default ones; `more_sets` are run where they are asked for;
    `jobs` runs fit on a machine at a time, None: one a core; `probed` is the side in pixels of probed images, where the
    set does not say."""

    name: str
    sets: tuple[str, ...]
    steps: int
    batch_size: int
    options: Options
    jobs: int | None = None
    more_sets: tuple[str, ...] = ()
    methods: tuple[str, ...] = (*MAIN, *BOUNDS)
    probed: int | None = None


LAPTOP = Scale(
    "laptop",
    sets=(OBJECTS, SCENES, NARROW_SCENES, SCENES_3, DEMO),
    steps=1000,
    batch_size=64,
    options={
        "encoder": NAME,
        "stage": 2,
        "crop_scale": (0.4, 1.0),
        "hidden": 256,
        "queue_size": 4096,
        "key_momentum": 0.99,
        "key_group": 0,
        "lr": 0.24,
        "weight_decay": 5e-4,
        "warmup_steps": 50,
        "blur": 0.0,  # MoCo v2's would be less than half a pixel wide at this size
        "augment": "device",
        "threads": 1,
        "workers": 0,
    },
)
LONG = dataclasses.replace(LAPTOP, name="long", steps=3000)
PHOTOGRAPHS = Scale(
    "photos",
    sets=(VOC, CALTECH),
    more_sets=(COCO,),
    methods=(*METHODS, *BOUNDS),
    steps=1000,
    batch_size=64,
    probed=128,  # objects are about as large as in views, which show 0.83 of a photograph's side on average
    options=LAPTOP.options | {"encoder": PHOTOS, "stage": 3, "output_stride": 8, "image_size": 96},
)
PHOTOGRAPHS_LONG = dataclasses.replace(PHOTOGRAPHS, name="photos-long", steps=3000)
LARGE = Scale(  # MoCo v2's schedule on one GPU of 80 GB. It has not been run yet.
    "large",
    sets=(STL10, COCO),
    steps=90000,
    batch_size=256,
    options={"encoder": "resnet50", "amp": "bf16", "augment": "device", "image_size": 224},
    jobs=1,
    probed=448,
)
SCALES = {scale.name: scale for scale in (LAPTOP, LONG, PHOTOGRAPHS, PHOTOGRAPHS_LONG, LARGE)}
