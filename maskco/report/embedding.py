"""Parts that show embeddings: keys over their dimensions, regions over the plane."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskco.data.sources.demo import CLASS_NAMES
from maskco.errors import UserError
from maskco.evaluate.datasets import cut_out
from maskco.nn.embeddings import effective_rank
from maskco.report.page import MARGIN, MUTED, WIDTH, Page, Part, grid, shortened
from maskco.report.runs import Regions, Run

PAIRS = 20_000  # random pairs of keys whose similarity is shown
LINES = ("-", (0, (5, 2)), (0, (1, 1)))  # of a run's queues in turn
CLASS_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee7733", "#332288",
                "#000000")  # fmt: skip


class ProjectionError(UserError, ValueError):
    """The projection asked for does not exist, or needs a package that is missing."""


def variances(keys: Tensor) -> Tensor:
    """Share of the keys' variance along each principal axis, largest first: [N, D] -> [min(N, D)], of sum 1."""
    squared = torch.linalg.svdvals((keys - keys.mean(0)).double()).square()
    return squared / squared.sum().clamp_min(1e-30)


class Spread(Part):
    """Keys in the queues. Those of a collapsed encoder lie along few axes and are all alike."""

    title = "Spread of the keys in the queue"
    height = 2.75

    def __init__(self, runs: list[Run]) -> None:
        self.runs = [run for run in runs if run.keys]
        self.remark = "left: flat uses all axes, steep is collapse · right: at 1 all keys are alike"
        if without := [run.name for run in runs if not run.keys]:
            self.remark += f" · without a queue: {', '.join(map(shortened, without))}"

    def draw(self, page: Page, top: float) -> None:
        axis, similarity = page.panels(("variance by axis", "similarity of keys"), top + 0.2, 1.95, 2)
        for run in self.runs:
            for (queue, keys), style in zip(run.keys.items(), cycle(LINES)):
                if len(keys) < 3:
                    continue
                shares, generator = variances(keys), torch.Generator().manual_seed(0)
                of = run.name if len(run.keys) == 1 else f"{run.name}, {queue.replace('_', ' ')}"
                line: dict[str, Any] = {"color": run.color, "linestyle": style}
                label = f"{of}: effective rank {effective_rank(keys):.1f} of {keys.shape[1]}"
                axis.plot(range(1, len(shares) + 1), 100 * shares.clamp_min(1e-8), linewidth=1.8, label=label, **line)
                axis.axhline(100 / keys.shape[1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
                first, second = torch.randint(len(keys), (2, PAIRS), generator=generator)
                unit = F.normalize(keys, dim=1)
                cosine = (unit[first] * unit[second]).sum(1)[first != second].numpy()
                bins: dict[str, Any] = {"bins": 80, "range": (-1, 1), "density": True}
                similarity.hist(cosine, histtype="stepfilled", color=run.color, alpha=0.25, **bins)
                similarity.hist(cosine, histtype="step", linewidth=1.4, **bins, **line)
        axis.set_title("Variance along each principal axis, %")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_xlabel("axis (dashed: all equal)")
        similarity.set_title("Cosine of two keys at random")
        similarity.set(xlim=(-1, 1), yticks=[])
        if axis.lines:
            axis.legend(loc="upper right")
        else:
            axis.text(0.5, 0.5, "the queue is empty", ha="center", color=MUTED, transform=axis.transAxes)


# --- regions in the plane -------------------------------------------------------------------------------------------


def project(features: Tensor, how: str) -> Tensor:
    """Unit-length features [M, C] -> [M, 2]. Raises ProjectionError.

    Args:
        how: "pca", the two axes of largest variance, or "tsne", for which scikit-learn is needed.
    """
    features = F.normalize(features.double(), dim=1)
    if how == "pca":
        centred = features - features.mean(0)
        axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]  # [2, C]
        axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # a sign that does not vary
        return F.pad(centred @ axes.T, (0, 2 - len(axes)))
    if how != "tsne":
        raise ProjectionError(f"projection must be pca or tsne, got {how!r}")
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ProjectionError("projection tsne needs scikit-learn. Run pip install 'maskco[eval]'") from error
    perplexity = min(30.0, (len(features) - 1) / 3)
    return torch.from_numpy(TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features.numpy()))


class RegionMaps(Part):
    """The regions of each run as dots in the plane, those with like features close together."""

    def __init__(self, found: list[tuple[Run, Regions]], how: str) -> None:
        self.found = found
        self.points = [project(regions.features, how) for _, regions in found]
        self.columns, self.side = grid(len(found), 3, 0.35)
        self.panel = min(self.side, 3.9) + 0.35
        labelled = [regions.labels is not None for _, regions in found]
        self.labelled = any(labelled)
        self.height = -(-len(found) // self.columns) * self.panel + (0.5 if self.labelled else 0.2)
        self.title = f"Features of regions, by {'t-SNE' if how == 'tsne' else 'principal components'}"
        own = [] if all(labelled) else ["the region's own mean color"]
        self.remark = "color: " + " or, without labels, ".join(["class"] * self.labelled + own)

    def draw(self, page: Page, top: float) -> None:
        for index, ((run, regions), points) in enumerate(zip(self.found, self.points, strict=True)):
            left = MARGIN + index % self.columns * (self.side + 0.35)
            y = top + 0.2 + index // self.columns * self.panel
            axes = page.axes(left, y, self.side, self.panel - 0.35, f"regions of {run.name}")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=9, c=_colors(regions), alpha=0.75, linewidths=0)
            for spine in axes.spines.values():
                spine.set(visible=True, edgecolor="#eceef2")
            if len(self.found) > 1:
                axes.set_title(run.name, fontsize=9, color=run.color, pad=4)
        if self.labelled:
            self._legend(page, top + self.height - 0.3)

    def _legend(self, page: Page, y: float) -> None:
        step = (WIDTH - 2 * MARGIN) / len(CLASS_NAMES)
        for index, (name, color) in enumerate(zip(CLASS_NAMES, CLASS_COLORS, strict=True)):
            page.text(MARGIN + index * step, y, "●", color=color, size=9)
            page.text(MARGIN + index * step + 0.16, y, name, color=MUTED, size=8)


def _colors(regions: Regions) -> list:
    if regions.labels is not None:
        return [CLASS_COLORS[label] for label in regions.labels.tolist()]
    scenes, places = regions.scenes, zip(regions.scene_of.tolist(), regions.boxes, strict=True)
    means = [cut_out(scenes[i].image, box, 8, context=1).mean((1, 2)).tolist() for i, box in places]
    return [tuple(channels) for channels in means]
