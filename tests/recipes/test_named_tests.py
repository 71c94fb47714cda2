import pytest
import pytorch_lightning as pl
import torch
from own_project import Mine, MyData

from groupcam_aug.recipes.named_tests import named_loaders, run_tests


def trainer(tmp_path):
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path
    )


def test_every_data_set_is_tested_on_by_itself(tmp_path):
    torch.manual_seed(0)
    module, data, seen = Mine(), MyData(several=True), []
    results = run_tests(trainer(tmp_path), module, data, before=lambda name, loader: seen.append((name, len(loader.dataset))))
    assert seen == [("kept", 30), ("noisy", 12)]
    data.setup("test")
    module.eval()
    for name, loader in data.test_dataloader().items():  # the data module has its own method back
        rows = [(module(batch["image"]).argmax(1) == batch["label"]).float() for batch in loader]
        assert results[name] == {"test_right": pytest.approx(float(torch.cat(rows).mean()), abs=1e-6)}
    assert "test_dataloader" not in vars(data)


def test_one_loader_is_called_test(tmp_path):
    assert list(run_tests(trainer(tmp_path), Mine(), MyData())) == ["test"]


def test_the_data_module_gets_its_method_back_after_an_error(tmp_path):
    class Failing(Mine):
        def test_step(self, batch, batch_idx):
            raise RuntimeError("no")

    data = MyData()
    with pytest.raises(RuntimeError, match="no"):
        run_tests(trainer(tmp_path), Failing(), data)
    assert "test_dataloader" not in vars(data)


def test_a_trainer_that_tests_on_nothing_says_so(tmp_path):
    none = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, limit_test_batches=0)
    with pytest.raises(ValueError, match="tested on nothing, by limit_test_batches=0: give 1 or more"):
        run_tests(none, Mine(), MyData())


def test_names_of_loaders():
    assert named_loaders({"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert named_loaders([1, 2]) == {"test 0": 1, "test 1": 2} and named_loaders([1]) == named_loaders(1) == {"test": 1}
    with pytest.raises(ValueError, match="no loader"):
        named_loaders([])
