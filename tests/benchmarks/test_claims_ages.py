"""The methods that measure contrast accuracy by the age of negatives, and wait for it to be equal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.claims.ages import ages_table, register
from maskco.config import find_method
from maskco.data.views import Views
from maskco.methods.base import Method, StepOutput
from maskco.nn import create_encoder

IMAGES, REGIONS, QUEUED = 4, 3, 48  # the queue is full after four steps of regions, twelve of images


def method(name: str, **options: object) -> Method:
    register()
    torch.manual_seed(0)
    encoder = create_encoder("resnet18", stage=2)  # a pixel for 8 × 8
    return find_method(name)(encoder, queue_size=QUEUED, dim=16, key_group=0, **options).train()


def views(seed: int) -> Views:
    draw = torch.Generator().manual_seed(seed)
    corner = 20 * torch.rand(IMAGES, REGIONS, 2, generator=draw)
    boxes = torch.cat([corner, corner + 12], dim=2)
    query, key = (torch.randn(IMAGES, 3, 32, 32, generator=draw) for _ in range(2))
    return Views(query, key, boxes, boxes)


def step(method: Method, number: int) -> StepOutput:
    method.start_step(number / 100)
    output = method(views(number))
    method.end_step([output])
    return output


@pytest.mark.parametrize("name", ["moco_v2", "maskco"])
def test_it_learns_what_the_method_itself_learns(name: str) -> None:
    plain, measured = method(name), method(f"{name}_ages")
    for number in range(3):
        one, other = step(plain, number), step(measured, number)
        torch.testing.assert_close(other.loss, one.loss)
        assert other.metrics["accuracy"] == one.metrics["accuracy"]
        torch.testing.assert_close(other.pushes["queue"], one.pushes["queue"])


def test_a_drift_that_gives_fresh_keys_away_shows_in_the_accuracies() -> None:
    measured = method("moco_v2_ages")
    query, drift = torch.eye(16)[0], torch.eye(16)[1]
    measured.encode_queries = lambda views: (query + drift).expand(IMAGES, -1)  # type: ignore[method-assign]
    age = iter(range(99, 0, -1))

    def keys(views: Views) -> torch.Tensor:  # a little more like the queries each step, image by image
        noise = 1e-3 * torch.randn(IMAGES, 16, generator=torch.Generator().manual_seed(0))
        return F.normalize(query + drift * (1 - next(age) / 100) + noise, dim=1)

    measured.encode_keys = keys  # type: ignore[method-assign]
    output = [step(measured, number) for number in range(13)][-1]
    newest, oldest = (output.metrics[f"accuracy_{name}"].item() for name in ("newest", "oldest"))
    assert newest == oldest == 100.0  # each key beats all keys of earlier steps,
    assert output.metrics["accuracy_fresh"].item() == 25.0  # but of one step only one is the nearest


@pytest.mark.parametrize(("name", "pushed"), [("moco_v2", IMAGES), ("maskco", IMAGES * REGIONS)])
def test_a_delayed_query_meets_its_key_once_among_older_and_newer_ones(name: str, pushed: int) -> None:
    delayed = method(f"{name}_ages", delay=2, **({"local_negatives": False} if name == "maskco" else {}))
    delayed.start_step(0.0)
    delayed(views(99))  # a rehearsal, which leaves no trace
    keys = []
    for number in range(5):
        queue, valid = delayed.queue.features.clone(), int(delayed.queue.valid)
        output = step(delayed, number)
        keys.append(output.pushes["queue"])
    queries = delayed.encode_queries(views(2)).detach()  # of the last step: its turn comes two steps later
    scores = queries @ queue[:valid].T / 0.2
    own = torch.arange(pushed) + 2 * pushed
    assert torch.equal(queue[own], keys[2])
    others = scores.scatter(1, own[:, None], -torch.inf)
    expected = F.cross_entropy(torch.cat([(queries * keys[2]).sum(1, keepdim=True) / 0.2, others], 1), own * 0)
    torch.testing.assert_close(output.loss, expected)


def test_the_table_shows_three_points_of_a_run() -> None:
    ages = [[100 * n, 10.0 + n, 20.0 + n, 30.0 + n] for n in range(1, 11)]
    run = {"set": "VOC", "method": "MoCo v2, keys measured by age", "seed": 0, "steps": 1000, "ages": ages}
    table = ages_table([run, {"set": "VOC", "method": "MoCo v2", "seed": 0}])
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == ["200", "500", "1000"]
    assert "| 1000 | 20.0 | 30.0 | 40.0 |" in table
    assert ages_table([]) == ""
