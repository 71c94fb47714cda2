"""Files of network weights: what is read, under which names, and what is refused with a way out."""

import pytest
import torch
from models import PooledNet
from safetensors.torch import save_file

from groupcam_aug.checkpoints import read_checkpoint, read_state_dict, state_dict_of


@pytest.fixture
def state():
    torch.manual_seed(3)
    return PooledNet().state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "model.", "module.network."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_state_dict_is_found_without_its_prefix(state, tmp_path, prefix, key):
    content = {prefix + name: value for name, value in state.items()}
    torch.save(content if key is None else {key: content, "epoch": 3}, tmp_path / "w.ckpt")
    assert equal(read_state_dict(tmp_path / "w.ckpt"), state)
    assert equal(read_state_dict(str(tmp_path / "w.ckpt")), state)


def test_safetensors(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    assert equal(read_checkpoint(tmp_path / "w.safetensors"), state) and equal(read_state_dict(tmp_path / "w.safetensors"), state)


def test_a_network_is_found_among_other_things(state, tmp_path):
    other = {f"teacher.{name}": value + 1 if value.is_floating_point() else value for name, value in state.items()}
    content = {**other, **{f"student.net.{name}": value for name, value in state.items()}, "criterion.weight": torch.ones(2)}
    torch.save({"state_dict": content}, tmp_path / "both.ckpt")
    assert equal(state_dict_of(PooledNet(), tmp_path / "both.ckpt"), {k.removeprefix("teacher."): v for k, v in other.items()})
    del content["teacher.fc.weight"]
    torch.save({"state_dict": content}, tmp_path / "one.ckpt")
    assert equal(state_dict_of(PooledNet(), tmp_path / "one.ckpt"), state), "the one that is whole"
    with pytest.raises(ValueError, match="one.ckpt' does not hold the weights of PooledNet .* the same classes"):
        state_dict_of(PooledNet(classes=9), tmp_path / "one.ckpt")


def test_counters_of_batch_norm_may_be_missing(tmp_path):
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    network[0].num_batches_tracked += 7
    held = {name: value + 1 for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(held, tmp_path / "w.pt")
    found = state_dict_of(network, tmp_path / "w.pt")
    assert found["0.num_batches_tracked"] == 7 and torch.equal(found["0.weight"], held["0.weight"])


def test_what_is_no_file_of_tensors_is_refused(state, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt': no such file .looked in"):
        read_checkpoint(tmp_path / "nowhere.pt")
    for name, content in (("list", [1, 2]), ("empty", {}), ("words", {"a": "b"})):
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=f"{name}.pt' holds .*, not names and tensors; save model.state_dict"):
            read_state_dict(tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match="does not hold the weights"):
            state_dict_of(PooledNet(), tmp_path / f"{name}.pt")
    save_file(state, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for name, content in (("torn", whole[: len(whole) // 2]), ("pointer", b"version https://git-lfs.github.com/spec/v1\n")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.safetensors' is no whole safetensors file"):
            read_state_dict(tmp_path / f"{name}.safetensors")
    torch.save(PooledNet(), tmp_path / "module.pt")  # a pickled object would run code
    (tmp_path / "noise.pt").write_bytes(b"hello, this is no file of torch")
    whole = (tmp_path / "module.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    for name in ("module.pt", "noise.pt", "torn.pt"):
        with pytest.raises(ValueError, match=rf"{name}' is no file of tensors .*save model.state_dict\(\), not the model"):
            read_state_dict(tmp_path / name)


def test_what_is_odd_among_the_weights_is_no_weight(state, tmp_path):
    """Keys that are no text and values that are no tensors, as files of other tools hold them."""
    torch.save({"state_dict": {**state, 3: torch.ones(1), "lr": 0.1, "none": None}}, tmp_path / "odd.pt")
    assert equal(state_dict_of(PooledNet(), tmp_path / "odd.pt"), state)
    torch.save({**state, next(iter(state)): None}, tmp_path / "gap.pt")
    with pytest.raises(ValueError, match="gap.pt' does not hold the weights"):
        state_dict_of(PooledNet(), tmp_path / "gap.pt")
    for name in ("odd.pt", "gap.pt"):
        with pytest.raises(ValueError, match=f"{name}' holds .*, not names and tensors"):
            read_state_dict(tmp_path / name)
    (tmp_path / "none.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="none.pt' is no file of tensors"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_state_dict(tmp_path)
