import pytest
import torch
from cifar_like import make_folder

from groupcam_aug.recipes.trial import finetune
from groupcam_aug.recipes.trial.cifar import cifar10
from groupcam_aug.recipes.trial.stock import Stock


def test_a_piece_is_made_once_and_whole(tmp_path):
    stock, made = Stock(tmp_path / "starts"), []

    def make():
        made.append(1)
        return {"x": torch.ones(2)}

    assert torch.equal(stock.get("a", make)["x"], stock.get("a", make)["x"]) and len(made) == 1
    with pytest.raises(RuntimeError, match="no"):
        stock.get("b", lambda: (_ for _ in ()).throw(RuntimeError("no")))
    assert sorted(path.name for path in stock.folder.iterdir()) == ["a.pt"]
    stock.drop("a")
    stock.drop("a")
    stock.get("a", make)
    assert len(made) == 2


def test_files_that_are_missing_are_told_with_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match="set GROUPCAM_DATA, or give --data FOLDER .*YoongiKim"):
        cifar10(Stock(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"holds neither cifar10\.zip nor cifar-10-batches-py"):
        cifar10(Stock(tmp_path, tmp_path))
    make_folder(tmp_path, 1, weights=False)
    with pytest.raises(FileNotFoundError, match=r"finetune resnet20-50: .*resnet20_cifar10\.safetensors' is not there"):
        finetune.regimes("smoke")["resnet20-50"].check(Stock(tmp_path, tmp_path))
