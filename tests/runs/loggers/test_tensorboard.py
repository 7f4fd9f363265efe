"""What TensorBoard shows of a run."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from logged_runs import BAD_ROW, LAST_ROW, ROWS, config_of
from maskco.runs.loggers import Past
from maskco.runs.loggers.tensorboard import TensorBoardLogger


def test_tensorboard_keeps_rows_and_pictures_and_hides_those_made_again(tmp_path, png):
    for step in (0, 4):
        logger = TensorBoardLogger()
        assert logger.begin(tmp_path, config_of(tmp_path), Past(None, 0, step)).last_step == step
        logger.add([row for row in [*ROWS, BAD_ROW, LAST_ROW] if row["step"] > step])
        logger.add_picture(png, 12)
        logger.close("finished")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 12]
    assert events.Tags()["images"] == ["report"]
