"""How each method is trained, and how that was chosen.

All share encoder, augmentations, optimizer, pictures and steps (a Scale). What each has of its own (METHODS) was chosen
by validation scores of 2×2 scenes, a single run each: first results/claims_tries.json, most of which a prototype of
this benchmark made, then those of tries.py, in results/claims.json. What was chosen is used on all sets, and scored on
their test parts once.
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
MOCO_TUNED = "MoCo v2, projection of MoCo v3"  # the best of its tries on photographs' validation part
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
    MOCO_TUNED: {"method": "moco_v2", "projection": "moco_v3"},
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
PHOTOGRAPHS_QUICK = dataclasses.replace(PHOTOGRAPHS, name="photos-quick", steps=350)
GPU = Scale(  # one GPU of 80 GB, each run in less than eight minutes: an estimate. It has not been run, nor tuned.
    "gpu",
    sets=(VOC, CALTECH),
    more_sets=(SCENES, SCENES_3, DEMO, COCO),
    methods=(MASKCO, NO_HEAD, HIDDEN, HIDDEN_NO_HEAD, MOCO, DENSECL, UNTRAINED),
    steps=1000,
    batch_size=256,
    probed=160,
    jobs=3,
    options={
        "encoder": "resnet18",
        "output_stride": 16,
        "image_size": 128,
        "crop_scale": (0.4, 1.0),
        "hidden": 512,
        "queue_size": 4096,
        "key_momentum": 0.99,
        "key_group": 0,
        "lr": 0.12,
        "weight_decay": 5e-4,
        "warmup_steps": 50,
        "device": "cuda",
        "amp": "bf16",
        "augment": "device",
        "threads": 2,
        "workers": 4,
    },
)
GPU_RESNET50 = dataclasses.replace(
    GPU,
    name="gpu-resnet50",
    steps=600,
    probed=192,
    options=GPU.options | {"encoder": "resnet50", "image_size": 160, "hidden": 2048},
)
LARGE = Scale(  # MoCo v2's schedule on one GPU of 80 GB. It has not been run yet.
    "large",
    sets=(STL10, COCO),
    steps=90000,
    batch_size=256,
    options={"encoder": "resnet50", "device": "cuda", "amp": "bf16", "augment": "device", "image_size": 224},
    jobs=1,
    probed=448,
)
SCALES = {
    scale.name: scale
    for scale in (LAPTOP, LONG, PHOTOGRAPHS, PHOTOGRAPHS_LONG, PHOTOGRAPHS_QUICK, GPU, GPU_RESNET50, LARGE)
}
