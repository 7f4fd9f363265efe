"""Are the paper's claims true of this code? Trains MaskCo, its ablations and MoCo v2, and probes what they learnt.

    python -m benchmarks.claims --quick                                             # the demo's scenes, one seed
    python -m benchmarks.claims --images torchvision:DATA --json results.json     # all of it: hours
    python -m benchmarks.claims --images … --ablations --json results.json        # how the settings were chosen
    python -m benchmarks.claims --show results.json                                 # its tables and figure again
    python -m benchmarks.claims --scale large --sets COCO --images COCO           # ResNet-50 on real scenes: a GPU

Rows that the file holds already are not computed again, and a run that was interrupted goes on: give the same command.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks import harness
from benchmarks.claims.figure import draw
from benchmarks.claims.sets import DEMO, SCENES
from benchmarks.claims.settings import ABLATIONS, BOUNDS, MASKCO, METHODS, MOCO, NO_HEAD, SCALES, UNTRAINED
from benchmarks.claims.study import SEEDS, Job, ablations, comparison, compute, load
from benchmarks.claims.table import overview, tables, verdicts
from maskco.console import one_line_errors


@dataclass
class Options:
    images: str = "torchvision:data"
    """CIFAR-10: "torchvision:FOLDER" (downloaded if missing), or a folder or .tar.gz of CLASS/*.jpg or .png. At large
    scale the folder of STL-10 or COCO."""
    scale: Literal["laptop", "long", "large"] = "laptop"
    """Pictures of 32 pixels and a small ResNet; three times the steps; or ResNet-50 at 224 pixels, which has not been
    run yet. Each needs a --json of its own."""
    sets: tuple[str, ...] = ()
    """Some of the scale's sets; default: all, of --ablations the 2x2 scenes, of --quick the demo's."""
    methods: tuple[str, ...] = ()
    """Some of the methods, or of the --ablations; default: all, of --quick the four that claims 2 and 3 are about."""
    seeds: int | None = None
    """Runs of each method on each set, with seeds 0, 1, …; default: 3, of ablations 1."""
    ablations: bool = False
    """Not the comparison on the test parts, but tries on validation parts."""
    quick: bool = False
    """One seed only, and the demo's scenes (which need no pictures) or those of --sets: twelve minutes on two cores."""
    folder: Path = Path("runs/claims")
    """Takes the scenes as pictures, and the runs."""
    json: Path | None = None
    """Rows are added to this file; default: results.json in the folder."""
    jobs: int | None = None
    """Runs at a time, each on one thread; default: as many as cores."""
    show: Path | None = None
    """Print the tables of this file and draw its figure beside it; nothing is trained."""


def jobs(options: Options) -> list[Job]:
    scale = SCALES[options.scale]
    if options.ablations:
        return list(
            ablations(scale, options.sets or (SCENES,), options.methods or tuple(ABLATIONS), options.seeds or 1)
        )
    if options.quick:
        methods = options.methods or (MASKCO, NO_HEAD, MOCO, UNTRAINED)
        return list(comparison(scale, options.sets or (DEMO,), methods, options.seeds or 1))
    methods = options.methods or (*METHODS, *BOUNDS)
    return list(comparison(scale, options.sets or scale.sets, methods, options.seeds or SEEDS))


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, description=__doc__)
        harness.check_bounds(options, "seeds", "jobs")
        file = options.show or options.json or options.folder / "results.json"
        together = options.jobs or SCALES[options.scale].jobs or os.cpu_count() or 1
        if options.show is None:
            compute(jobs(options), options.images, options.folder, file, together)
        rows = load(file)
        figure = draw(rows, file.with_suffix(".png"))
        print(overview(rows), "", tables(rows), "", *verdicts(rows), f"\nfigure: {figure}", sep="\n")


if __name__ == "__main__":
    main()
