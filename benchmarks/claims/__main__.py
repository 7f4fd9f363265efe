"""Are the paper's claims true of this code? Trains MaskCo, its ablations and MoCo v2, and probes what they learnt.

    python -m benchmarks.claims --quick                                             # the demo's scenes, one seed
    python -m benchmarks.claims --images torchvision:DATA --json results.json     # all of it: hours
    python -m benchmarks.claims --images … --ablations --json results.json        # how the settings were chosen
    python -m benchmarks.claims --show results.json                                 # its tables and figure again
    python -m benchmarks.claims --sets voc --images voc=VOC --quick                 # photographs with boxes, one seed
    python -m benchmarks.claims --scale photos --images voc=VOC caltech101=CALTECH --json photos.json
    python -m benchmarks.claims --scale large --sets coco --images coco=COCO      # ResNet-50 on real scenes: a GPU

Rows that the file holds already are not computed again, and a run that was interrupted goes on: give the same command.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks import harness
from benchmarks.claims.figure import draw
from benchmarks.claims.head import draw_head, head_worth
from benchmarks.claims.names import DEMO, SCENES, find_sets
from benchmarks.claims.row_file import load
from benchmarks.claims.settings import (
    MASKCO,
    MOCO,
    NO_HEAD,
    PHOTOGRAPHS,
    PHOTOGRAPHS_QUICK,
    SCALES,
    UNTRAINED,
    Scale,
)
from benchmarks.claims.study import SEEDS, Job, ablations, comparison, compute
from benchmarks.claims.table import report
from maskco.console import one_line_errors
from maskco.devices import usable_cores, usable_device
from maskco.errors import UserError


@dataclass
class Options:
    images: tuple[str, ...] = ()
    """Where images are: one place for all sets, or SET=PLACE for some of them. Of CIFAR-10's pictures
    "torchvision:FOLDER" (downloaded if missing), or a folder or .tar.gz of CLASS/*.jpg or .png. Of photographs a folder
    in COCO's layout, one with train/CLASS and val/CLASS, VOCdevkit, or what benchmarks.claims.pack wrote. Default:
    torchvision:data, data/voc, data/caltech101 …"""
    scale: Literal["laptop", "long", "photos", "photos-long", "photos-quick", "gpu", "gpu-resnet50", "large"] | None = (
        None
    )
    """laptop: pictures of 32 pixels and a small ResNet. photos: photographs in views of 96 pixels. long, photos-long:
    three times the steps. photos-quick: a third of them, which --quick takes. gpu, gpu-resnet50: photographs and a
    ResNet-18 at 128 or a ResNet-50 at 160 pixels. large: ResNet-50 at 224 pixels. These three need a GPU and have not
    been run yet. Each needs a --json of its own. Default: the first that has the --sets."""
    sets: tuple[str, ...] = ()
    """Some of the scale's sets, such as scenes2x2 demo-scenes voc caltech101 coco; default: all, of --ablations the 2x2
    scenes or VOC, of --quick the demo's or VOC."""
    methods: tuple[str, ...] = ()
    """Some of the methods, or of the --ablations; default: all, of --quick the four that claims 2 and 3 are about."""
    seeds: int | None = None
    """Runs of each method on each set, with seeds 0, 1, …; default: 3, of ablations 1."""
    ablations: bool = False
    """Not the comparison on the test parts, but tries on validation parts."""
    quick: bool = False
    """One seed only, and the demo's scenes (which need no pictures) or those of --sets, on photographs with a third of
    the steps: a quarter of an hour on two cores."""
    folder: Path = Path("runs/claims")
    """Takes the scenes as pictures, and the runs."""
    json: Path | None = None
    """Rows are added to this file; default: SCALE.json in the folder."""
    jobs: int | None = None
    """Runs at a time, each on one thread; default: as many as cores."""
    show: Path | None = None
    """Print the tables of this file and draw its figure beside it; nothing is trained."""


def scale_of(options: Options) -> Scale:
    """The scale that is asked for, or the first that has the sets; of --quick a third of the steps on photographs.

    Raises UserError if none has all of the sets, or only one that needs a GPU.
    """
    scale = _scale_of(options)
    return PHOTOGRAPHS_QUICK if options.quick and scale is PHOTOGRAPHS else scale


def _scale_of(options: Options) -> Scale:
    if options.scale is not None:
        return SCALES[options.scale]
    sets = set(find_sets(options.sets))
    for scale in SCALES.values():
        if sets <= {*scale.sets, *scale.more_sets}:
            if scale.options.get("device") == "cuda":
                raise UserError(
                    f"sets: the first scale that has all of {', '.join(options.sets)} needs a GPU. Name it with "
                    f"`scale={scale.name}`, or run the sets one after the other"
                )
            return scale
    raise UserError(f"sets: no scale has all of {', '.join(options.sets)}. Run them one after the other")


def jobs(options: Options, scale: Scale) -> list[Job]:
    sets, photos = find_sets(options.sets), DEMO not in scale.sets
    if options.ablations:
        sets = sets or (scale.sets[:1] if photos else (SCENES,))
        return list(ablations(scale, sets, options.methods, options.seeds or 1))
    if options.quick:
        methods = options.methods or (MASKCO, NO_HEAD, MOCO, UNTRAINED)
        sets = sets or (scale.sets[:1] if photos else (DEMO,))
        return list(comparison(scale, sets, methods, options.seeds or 1))
    return list(comparison(scale, sets or scale.sets, options.methods or scale.methods, options.seeds or SEEDS))


def main() -> None:
    with one_line_errors(flags={field.name for field in dataclasses.fields(Options)}):
        options = tyro.cli(Options, description=__doc__)
        harness.check_bounds(options, "seeds", "jobs")
        scale = scale_of(options)
        file = options.show or options.json or options.folder / f"{scale.name}.json"
        if file.suffix != ".json":  # (figures are written beside it, with another suffix)
            raise UserError(f"{'show' if options.show else 'json'}: {file} must end with .json")
        together = options.jobs or scale.jobs or usable_cores()
        if options.show is None:
            usable_device(scale.options.get("device", "auto"))
            compute(jobs(options, scale), options.images, options.folder, file, together)
        if not (rows := load(file)):
            raise UserError(f"{file} holds no rows. Train something first")
        figures = [draw(rows, file.with_suffix(".png"))]
        if pairs := head_worth(rows):
            figures.append(draw_head(pairs, file.with_name(f"{file.stem}_head.png")))
        print(report(rows), "figures: " + ", ".join(map(str, figures)), sep="\n\n")


if __name__ == "__main__":
    main()
