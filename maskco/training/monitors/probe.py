"""The online probe: how good the features are during a run, by nearest neighbours among labelled images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import Dataset, Subset

from maskco.data.sources import SourceError
from maskco.data.sources.demo import Scene
from maskco.data.views import Views
from maskco.devices import AMP_DTYPES
from maskco.errors import ConfigError, UserError, one_line
from maskco.evaluate.accuracy import chance
from maskco.evaluate.datasets import (
    Annotated,
    CutOuts,
    LabelledSet,
    Scenes,
    evenly_spaced,
    missing,
    open_labelled,
    some,
)
from maskco.evaluate.encoders import scene_size
from maskco.evaluate.errors import EvaluationError
from maskco.evaluate.features import Features, HeldScenes, Input
from maskco.evaluate.knn import knn_accuracy
from maskco.methods.base import encoders
from maskco.nn.encoder import Encoder
from maskco.nn.ranks import join_lists, rank, world_size
from maskco.runs.folder import CHANCE, KNN, REGION_KNN
from maskco.training.monitors.base import Monitor
from maskco.training.rehearsal import no_trace

if TYPE_CHECKING:
    from maskco.training.state import TrainState

SHARE = 0.015  # of the run's forward passes that the probe may take, so that it stays below 2% of the time
FORWARDS = 4  # that an image takes to learn from: a query's forward and backward pass (3), and a key's forward pass
FEWEST, MOST = 150, 4000  # images: the first whatever they cost, the second even if more cost little
TEST_SHARE = 3  # one image of so many is tested on, the others are neighbours
TOO_DEAR = 0.02  # share of the run's work from which on the log warns
NEIGHBOURS = 20


class Probe(Monitor):
    """`probe_knn` and, with boxes, `probe_regions`: kNN accuracy in per cent, each with the score of chance.

    The momentum encoder is probed, or the encoder of a method that has none, after every `probe_every` epochs and at
    the end of the run. Batch norms take their running statistics as they are. On the key side those are of whole views.
    To estimate them again, as `maskco eval` does, would double the cost. Nothing in the run changes, including buffers
    and random numbers.

    Rank 0 holds the images, which are read once before the run starts. It works while the others wait.
    """

    def __init__(self, state: TrainState) -> None:
        self.state, self.run = state, state.config.run
        self.failure: str | None = None
        self.changed = False
        self.set: ProbeSet | None = None
        if self.run.probe is not None and rank() == 0:
            self.set = ProbeSet.open(state)
            self._rehearse(self.set)

    def _rehearse(self, probe_set: ProbeSet) -> None:
        """Raises ConfigError if the encoder cannot take the images, which may be larger than the views."""
        try:
            with no_trace(self.state.method, self.state.device):
                for parts in probe_set.tasks.values():
                    self._features(parts[0].first(2))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # encoders are anyone's code
            raise ConfigError(
                f"probe: encoder {self.run.encoder} fails on images of {probe_set.size} pixels ({one_line(error)}). "
                "Leave the probe out, or choose another image_size or encoder"
            ) from error

    def _features(self, part: HeldScenes) -> Features:
        optim = self.state.config.optim
        batch_size = optim.batch_size // (optim.accumulate * world_size())  # what the memory can hold
        encoder = cast("Encoder", encoders(self.state.method)[-1])
        return part.features(encoder, batch_size=batch_size, amp=AMP_DTYPES.get(optim.amp))

    def lines(self) -> list[str]:
        return self.set.lines(self.run.probe_every) if self.set is not None else []

    @property
    def due(self) -> bool:
        step, every = self.state.step, self.run.probe_every * self.state.steps_per_epoch
        return self.run.probe is not None and (step % every == 0 or step == self.state.steps)

    def metrics(self) -> dict[str, float]:
        if not self.due:
            return {}
        return join_lists([self._scores()] if self.set is not None else [])[0]

    def _scores(self) -> dict[str, float]:
        """The scores, or {} if the encoder fails, which must not end a run."""
        assert self.set is not None
        scores: dict[str, float] = {}
        try:
            with no_trace(self.state.method, self.state.device):
                for name, parts in self.set.tasks.items():
                    train, test = map(self._features, parts)
                    rows = (train.x, train.labels, test.x, test.labels)
                    scores[name] = knn_accuracy(*rows, k=min(NEIGHBOURS, len(train.x)))
                    scores[name + CHANCE] = chance(train.labels, test.labels)
        except (UserError, MemoryError, RuntimeError) as error:
            self.failure = one_line(error)
            return {}
        return scores

    def warnings(self, step: int, row: Mapping[str, float], views: Views) -> dict[str, str]:
        found = {}
        if self.failure is not None:
            found["probe"] = (
                f"the probe failed: {self.failure.rstrip('.')}. The run continues, and tries again when the next probe "
                "is due. If it fails again, choose fewer probe_images for the next run"
            )
        if self.changed:
            found["probe changed"] = (
                "the probe's images are not those that the run had before: its figures do not compare with earlier "
                "ones, and best.pt of keep_best probe may be of an earlier one"
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.set.fingerprint} if self.set is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.changed = self.set is not None and state["images"] != self.set.fingerprint


@dataclass(frozen=True)
class ProbeSet:
    """The labelled images of a probe, in memory."""

    data: LabelledSet
    tasks: dict[str, tuple[HeldScenes, HeldScenes]]  # by metric: the parts to learn from and to test on
    size: int  # side of the images in pixels
    share: float  # of the run's forward passes that probing takes

    @classmethod
    def open(cls, state: TrainState) -> ProbeSet:
        """Raises ConfigError if the labelled data of `config.run.probe` cannot be opened, or no kNN could be right."""
        with _named(), torch.random.fork_rng(devices=[]):
            return cls._open(state)

    @classmethod
    def _open(cls, state: TrainState) -> ProbeSet:
        config, run = state.config, state.config.run
        size = scene_size(config, state.method.encoder)
        cost = (size / config.views.image_size) ** 2  # of an image, in forward passes of a view
        epochs = min(run.probe_every, config.optim.epochs)
        work = FORWARDS * state.images * epochs / world_size()  # between two probes, in the same
        wanted = run.probe_images or min(max(int(SHARE * work / cost), FEWEST), MOST)
        train, test = parts_of(wanted)
        data = open_labelled(run.probe or "", image_size=size, train=train, test=test)
        if data.has_boxes and run.probe_images is None:  # an image is seen twice: whole, and a box of it cut out
            train, test = parts_of(max(wanted // 2, FEWEST))
            if data.train.in_memory:  # drawn for the purpose, as many as are wanted
                data = open_labelled(run.probe or "", image_size=size, train=train, test=test)
            else:
                data = replace(data, train=some(data.train, train), test=some(data.test, test))
        check_classes(data)
        tasks = read_tasks(data, Input(size, workers=0 if data.train.in_memory else run.workers or 0))
        passes = sum(len(part.images) for parts in tasks.values() for part in parts)
        return cls(data, tasks, size, passes * cost / (work + passes * cost))

    def lines(self, every: int) -> list[str]:
        parts = zip((self.data.train, self.data.test), self.data.images, ("training", "test"), strict=True)
        counts = [f"{len(part):,}{f' of {whole:,}' if len(part) < whole else ''} {kind}" for part, whole, kind in parts]
        lines = [
            f"probe: {' and '.join(counts)} images of {self.data.name} at {self.size} pixels, every "
            f"{'epoch' if every == 1 else f'{every} epochs'} and at the end, for about {self.share:.1%} of the work"
        ]
        if self.share > TOO_DEAR:
            lines.append(
                f"warning: the probe takes about {self.share:.0%} of the run's work. Raise --probe-every, or lower "
                f"--probe-images, though fewer than {FEWEST} images say little"
            )
        if skipped := list(dict.fromkeys(s for parts in self.tasks.values() for part in parts for s in part.skipped)):
            lines.append(f"warning: {len(skipped)} images of the probe cannot be read. The first: {skipped[0]}")
        if unlearned := missing(self.data.classes, labels_of(self.data.test), labels_of(self.data.train)):
            lines.append(f"warning: the probe has no training images of {unlearned}. Their test images count as wrong")
        return [*lines, *(f"probe: {note}" for note in self.data.notes)]

    @property
    def fingerprint(self) -> str:
        """A hash of the data's name, image size and labels in their order. Equal for the same images."""
        digest = hashlib.sha256(f"{self.data.name} {self.size}".encode(errors="surrogateescape"))
        for name, parts in self.tasks.items():
            for part in parts:
                digest.update(f"{name} {[labels.tolist() for labels in part.labels]}".encode())
        return digest.hexdigest()[:16]


@contextmanager
def _named() -> Iterator[None]:
    """Errors of a labelled set name the option that it came by."""
    try:
        yield
    except (SourceError, EvaluationError) as error:
        raise ConfigError(f"probe: {str(error).removeprefix('data: ')}") from error


def parts_of(images: int) -> tuple[int, int]:
    """How many of so many images to learn from, and to test on. The first is a multiple of the second, so that both
    parts of a set that is sorted by class show the same classes."""
    test = max(images // TEST_SHARE, 1)
    return (TEST_SHARE - 1) * test, test


def labels_of(part: Annotated) -> set[int]:
    return {int(label) for labels in part.labels for label in labels}


def check_classes(data: LabelledSet) -> None:
    """Raises ConfigError unless some test image can be classified rightly, and some wrongly."""
    learned, tested = labels_of(data.train), labels_of(data.test)
    if not learned & tested:
        raise ConfigError(
            f"probe: no class of the test images of {data.name} has training images, so that no image could be "
            "classified rightly. Name data whose parts share classes"
        )
    if len(learned) < 2:
        raise ConfigError(f"probe: the training images of {data.name} are all of one class. Name data of several")


def read_tasks(data: LabelledSet, form: Input) -> dict[str, tuple[HeldScenes, HeldScenes]]:
    """Training and test images by metric. From a set with boxes, as many boxes are cut out as images of their own as
    there are images, evenly chosen. Raises EvaluationError if more than half of the images cannot be read."""
    whole = form._replace(whole=True)
    kinds: dict[str, tuple[Scenes, Scenes, Input]] = {KNN: (data.train, data.test, whole)}
    if data.has_boxes:
        learn, ask = (_cut_out(part, form.image_size or 0) for part in (data.train, data.test))
        kinds = {REGION_KNN: (data.train, data.test, form), KNN: (learn, ask, whole)}
    return {
        name: (
            HeldScenes.read(learn, how._replace(noun="training images")),
            HeldScenes.read(ask, how._replace(noun="test images")),
        )
        for name, (learn, ask, how) in kinds.items()
    }


def _cut_out(part: Annotated, size: int) -> Scenes:
    cut_outs = CutOuts(part, size)
    return cast("Scenes", Subset(cast("Dataset[Scene]", cut_outs), evenly_spaced(len(cut_outs), len(part))))
