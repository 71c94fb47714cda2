import own_project
import pytest
import yaml

from groupcam_aug.recipes.trial.arms import read_arms
from groupcam_aug.recipes.trial.configured import prepare, read_config, resolve, settings_hash


@pytest.fixture
def files(tmp_path):
    return own_project.write(tmp_path)


def test_options_of_fit_change_the_config(files):
    tree = read_config(files[0], ["--trainer.max_epochs", "7", "--model.lr=0.25"])
    assert tree["trainer"]["max_epochs"] == 7 and tree["model"]["init_args"]["lr"] == 0.25
    assert tree["data"]["class_path"] == "own_project.MyData" and "ckpt_path" not in tree


def test_an_arm_becomes_a_config_that_the_parser_takes_again(files, tmp_path):
    tree = read_config(files[0], [])
    slow, cheap = read_arms(["slow", "cheap"], files[1])
    path = resolve(tree, slow, tmp_path / "arms")
    assert path == tmp_path / "arms" / "slow.yaml" and yaml.safe_load(path.read_text())["model"]["init_args"]["lr"] == 0.001
    path = resolve(tree, cheap, tmp_path / "arms")
    assert path.read_text().startswith("# arm cheap: a preset\n") and read_config(str(path), []) == yaml.safe_load(
        path.read_text()
    )
    assert sorted(found.name for found in path.parent.iterdir()) == ["cheap.yaml", "slow.yaml"]


@pytest.mark.parametrize("changes", ["{model.lrr: 1}", "{trainer.max_epochs: many}"])
def test_what_the_parser_refuses_in_an_arm_leaves_no_file(changes, files, tmp_path, capsys):
    (tmp_path / "arms.yaml").write_text(f"odd: {{set: {changes}}}")
    (odd,) = read_arms(["odd"], tmp_path / "arms.yaml")
    with pytest.raises(SystemExit) as stop:
        resolve(read_config(files[0], []), odd, tmp_path / "arms")
    assert stop.value.code == 2 and capsys.readouterr().err
    assert not list((tmp_path / "arms").iterdir())


def test_a_checkpoint_to_go_on_from_is_refused(files):
    with pytest.raises(ValueError, match="leave ckpt_path out"):
        read_config(files[0], ["--ckpt_path", "last.ckpt"])


def test_the_hash_tells_arms_apart_and_seeds_not(files, tmp_path):
    tree = read_config(files[0], [])
    paths = [resolve(tree, arm, tmp_path) for arm in read_arms(["cheap", "again", "slow"], files[1])]
    hashes = [settings_hash(path) for path in paths]
    assert hashes[0] == hashes[1] != hashes[2]
    paths[0].write_text(paths[0].read_text().replace("seed_everything: 0", "seed_everything: 3"))
    assert "seed_everything: 3" in paths[0].read_text() and settings_hash(paths[0]) == hashes[0]


def test_a_prepared_fit_writes_in_its_folder_and_keeps_no_checkpoints(files, tmp_path):
    (cheap,) = read_arms(["cheap"], files[1])
    path = resolve(read_config(files[0], []), cheap, tmp_path)
    made = prepare(path, 3, tmp_path / "run")
    assert type(made.model).__name__ == "Mine" and made.trainer.log_dir.rstrip("/") == str(tmp_path / "run")
    assert made.trainer.checkpoint_callback is None and made.trainer.progress_bar_callback is None
    assert made.config["fit"]["seed_everything"] == 3


def test_several_devices_are_refused(files, tmp_path):
    tree = read_config(files[0], ["--trainer.devices", "2"])
    with pytest.raises(ValueError, match="one device, the config asks for 2"):
        prepare(resolve(tree, read_arms(["none"])[0], tmp_path), 0, tmp_path / "run")
