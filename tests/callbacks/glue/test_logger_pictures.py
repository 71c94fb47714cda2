"""Pictures in loggers that take them, by the interface each has, and as files beside the figures of those that do not."""

import importlib.util
import re
import zipfile
from types import SimpleNamespace

import pytest
import torch
from lit import Lit, fit
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger

from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.callbacks.glue.logger_pictures import send_picture


class Biases:
    """As Weights & Biases' logger."""

    experiment = object()

    def __init__(self):
        self.given = []

    def log_image(self, key, images, step=None, **kwargs):
        self.given.append((key, images, step))


class Board:
    """As TensorBoard's writer."""

    def __init__(self):
        self.given = []

    def add_image(self, tag, image, step):
        self.given.append((tag, image, step))


class Flow:
    """As MLflow's client, which is told the run."""

    def __init__(self):
        self.given = []

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None, timestamp=None, synchronous=None):
        self.given.append((run_id, image, artifact_file, key, step))


class Comet:
    """As Comet's experiment."""

    def __init__(self):
        self.given = []

    def log_image(self, image_data, name=None, overwrite=False, image_format="png", step=None):
        self.given.append((image_data, name, step))


@pytest.fixture
def trainer():
    return SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=7)))


def test_each_logger_gets_it_in_its_own_way(trainer):
    biases, board, flow, comet = Biases(), Board(), Flow(), Comet()
    others = [SimpleNamespace(experiment=object()), SimpleNamespace(experiment=object(), log_dir="s3://bucket/run")]
    trainer.loggers = [
        *others,
        biases,
        SimpleNamespace(experiment=board, log_dir="unused"),
        SimpleNamespace(experiment=flow, run_id="f00"),
        SimpleNamespace(experiment=comet),
    ]
    picture = Image.new("RGB", (6, 4), (255, 0, 0))
    send_picture(trainer, "groupcam/samples", picture)
    assert biases.given == [("groupcam/samples", [picture], 7)]
    ((tag, image, step),) = board.given
    assert (tag, step) == ("groupcam/samples", 7) and image.shape == (3, 4, 6) and image.dtype == torch.uint8
    assert flow.given == [("f00", picture, None, "groupcam/samples", 7)]
    assert comet.given == [(picture, "groupcam/samples", 7)]


def test_a_logger_of_tables_gets_files_beside_them_at_the_step_of_its_figures(tmp_path):
    logger = CSVLogger(tmp_path, name="run")
    fit(Lit(), [GroupCAMAugmentation(groups=2, p=1.0)], logger=logger, max_epochs=2, log_every_n_steps=1)
    files = sorted((tmp_path / "run" / "version_0" / "groupcam" / "pictures" / "groupcam_samples").glob("*.png"))
    assert [file.name for file in files] == ["step_000003.png", "step_000006.png"]
    assert Image.open(files[0]).width > 100


def test_without_loggers_nothing_happens(trainer):
    trainer.loggers = []
    send_picture(trainer, "a", Image.new("RGB", (6, 4)))


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="needs mlflow-skinny")
def test_a_real_run_of_mlflow_has_the_picture(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # folders in place of a data base: only newer versions ask
    logger = MLFlowLogger("shapes", tracking_uri=f"file:{tmp_path / 'mlruns'}")
    trainer.loggers = [logger]
    send_picture(trainer, "saliency/maps", Image.new("RGB", (6, 4), (255, 0, 0)))
    (artifact,) = (tmp_path / "mlruns").rglob("*.png")
    assert re.match("saliency.maps.step.7.", artifact.name) and Image.open(artifact).size == (6, 4)


@pytest.mark.skipif(not importlib.util.find_spec("comet_ml"), reason="needs comet_ml")
def test_comets_experiment_takes_what_is_sent(trainer, tmp_path):
    import comet_ml

    experiment = comet_ml.OfflineExperiment(project_name="shapes", offline_directory=str(tmp_path), log_code=False)
    trainer.loggers = [SimpleNamespace(experiment=experiment)]
    send_picture(trainer, "saliency/maps", Image.new("RGB", (6, 4), (255, 0, 0)))
    experiment.end()
    (archive,) = tmp_path.glob("*.zip")
    sent = zipfile.ZipFile(archive).read("messages.json").decode()
    assert '"figName":"saliency/maps"' in sent and '"step":7}' in sent
