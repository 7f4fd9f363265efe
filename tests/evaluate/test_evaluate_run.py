"""Evaluating a whole run: the same treatment for both encoders, the file, the table, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import maskco.evaluate
from maskco.checkpoint import CheckpointError
from maskco.config import PretrainConfig, UserError
from maskco.data.demo import Scene
from maskco.evaluate import evaluate_run, scene_size
from maskco.methods import build_method

COLOURS = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200]])


def coloured(count: int, seed: int, *, boxes: int = 2) -> list[Scene]:
    """Noise with boxes of a colour: the class is which of the three colours it is."""
    generator = torch.Generator().manual_seed(seed)
    scenes = []
    for _ in range(count):
        image = torch.randint(256, (3, 32, 32), generator=generator)
        labels = torch.randint(3, (boxes,), generator=generator)
        corners = torch.tensor([[2.0, 2.0], [16.0, 16.0]])[:boxes]
        for (x, y), label in zip(corners.int().tolist(), labels.tolist(), strict=True):
            image[:, y : y + 14, x : x + 14] = COLOURS[label][:, None, None]
        scenes.append(Scene(image.byte(), torch.cat([corners, corners + 14], 1), labels))
    return scenes


class Run:
    """A run that `load_run` gives without a file; `trained` may change its encoder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.config = PretrainConfig(
            data="demo", out=str(folder), encoder="test_resnet", stage=2, image_size=32, dim=8, queue_size=8, seed=5
        )
        torch.manual_seed(self.config.seed)
        self.method = build_method(self.config)
        monkeypatch.setattr(maskco.evaluate, "load_run", lambda run: (self.config, self.method, 12))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, monkeypatch)


def test_a_run_that_learned_nothing_scores_as_untrained_even_with_other_statistics(run: Run) -> None:
    """Both encoders get the same treatment: only weights can make a difference, not what BatchNorm happened to see."""
    for layer in run.method.encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 9)
    torch.manual_seed(123)  # whatever the caller's random numbers are
    state = torch.random.get_rng_state()
    result = evaluate_run(run.folder, train_scenes=60, test_scenes=40, verbose=False)
    assert {score.difference for score in result.scores.values()} == {0}
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_encoder_that_sees_nothing_is_at_chance_and_the_untrained_one_above(run: Run) -> None:
    """The trained side is the run's: with its last layer at zero it must fall, and only it."""
    with torch.no_grad():
        for parameter in run.method.encoder.parameters():
            parameter.zero_()
    result = evaluate_run(run.folder, data=(coloured(60, 0), coloured(40, 1)), verbose=False)
    probe = result.scores["regions"]
    assert probe.trained == pytest.approx(result.chance)
    assert probe.untrained > 90  # three flat colours are easy, once BatchNorm has statistics
    assert probe.difference == probe.trained - probe.untrained < 0


def test_the_file_and_the_table_say_the_same(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = coloured(30, 0), coloured(20, 1)
    result = evaluate_run(run.folder, data=(train, test), kinds=["knn"])
    table = capsys.readouterr().out
    assert f"{result.scores['knn'].trained:.1f}" in table and "linear probe" not in table
    assert len({len(line) for line in table.splitlines()[:2]}) == 1  # the rule is as wide as the head
    saved = json.loads((run.folder / "evaluation.json").read_text())
    assert saved["scores"] == {
        "knn": {
            "trained": result.scores["knn"].trained,
            "untrained": result.scores["knn"].untrained,
            "difference": result.scores["knn"].difference,
        }
    }
    assert (saved["step"], saved["regions"], saved["scenes"]) == (12, [60, 40], [30, 20])
    assert saved["versions"]["torch"] == torch.__version__ and len(saved["config_sha256"]) == 64
    assert "commit" in saved
    most = torch.cat([scene.labels for scene in train]).bincount().argmax()
    guessed = (torch.cat([scene.labels for scene in test]) == most).double().mean()
    assert result.chance == pytest.approx(100 * float(guessed))


def test_bad_input_is_one_line_and_writes_nothing(run: Run) -> None:
    for options, message in (
        ({"data": "imagenet"}, "data: expected 'demo'"),
        ({"kinds": ["regions", "detection"]}, "kinds: expected some of regions, knn, got detection"),
        ({"kinds": []}, "kinds: expected some of"),
        ({"data": (coloured(3, 0, boxes=0), coloured(3, 1))}, "scenes: expected labelled boxes"),
        ({"data": ([], [])}, "scenes: expected labelled boxes"),
    ):
        with pytest.raises(UserError, match=message) as error:
            evaluate_run(run.folder, verbose=False, **options)
        assert "\n" not in str(error.value)
    assert not list(run.folder.iterdir())


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        evaluate_run(tmp_path)


@pytest.mark.parametrize(
    "image_size, crop_scale, fixed, expected",
    [(64, (0.15, 1.0), None, 96), (224, (0.2, 1.0), None, 320), (64, (1.0, 1.0), None, 64), (64, (0.2, 1.0), 64, 64)],
)
def test_whole_pictures_are_seen_larger_than_views(image_size, crop_scale, fixed, expected) -> None:
    """A crop of 57.5 % of a picture enlarges what it shows by 1.32: 64 pixels become 84, and 96 is a multiple of 32."""
    config = PretrainConfig(data="demo", out="run", image_size=image_size, crop_scale=crop_scale)
    encoder = nn.Identity()
    encoder.image_size = fixed
    assert scene_size(config, encoder) == expected
