"""The command, on a real checkpoint."""

import json

import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1


def test_command(tmp_path, capsys):
    from torchvision.transforms.v2.functional import to_pil_image

    from groupcam_aug.recipes.cli import main

    torch.manual_seed(0)
    save_file(squeezenet1_1(num_classes=10).state_dict(), tmp_path / "w.safetensors")
    for i in range(5):
        folder = tmp_path / "images" / f"class {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        to_pil_image(torch.rand(3, 32, 32)).save(folder / f"{i}.png")
    (tmp_path / "images" / "class 1" / "broken.png").write_bytes(b"nothing")
    words = ["fidelity", str(tmp_path / "images"), "--model", "torchvision/squeezenet1_1", "--weights"]
    words.append(str(tmp_path / "w.safetensors"))
    status = main([*words, "--size", "64", "--groups", "4", "--modes", "target, zero", "--json", str(tmp_path / "f.json")])
    told = capsys.readouterr().out
    assert status == 1 and "broken.png" in told
    assert "| fast |" in told and "GroupCAMAugmentation(mask_at=" in told and "5 images" in told
    record = json.loads((tmp_path / "f.json").read_text())
    assert [row["mode"] for row in record["rows"]] == ["paper", "fast"] and 0 < record["floor"] <= 1
    assert main([*words, "--limit", "0"]) == 2
    assert "groups=4)" in told
    assert main([*words, "--size", "64", "--groups", "4", "--modes", "target, zero", "--importance", "gradient"]) == 1
    assert 'weights="gradient")' in capsys.readouterr().out
    capsys.readouterr()
    assert main(["fidelity", str(tmp_path / "images")]) == 1
    assert "say which network" in capsys.readouterr().err
