"""Groups of test images from a table."""

import pytest

from groupcam_aug.recipes.image_groups import read_groups, sample_groups


def test_a_table_says_the_value_of_each_file(tmp_path):
    path = tmp_path / "index.csv"
    path.write_text('\ufefffile,place,other\ntest/ant/0.png,"sand, wet",1\ntest/bee/0.png,grass,2\n', encoding="utf-8")
    values = read_groups(path, "place")
    assert values == {"test/ant/0.png": "sand, wet", "test/bee/0.png": "grass"}
    samples = [(str(tmp_path / "test/bee/0.png"), 1), (str(tmp_path / "test/ant/0.png"), 0)]
    assert sample_groups(samples, tmp_path, ["ant", "bee"], values, path) == ["bee, grass", "ant, sand, wet"]


def test_a_file_that_is_not_listed_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'test/ant/1.png' is tested on, but '.*index.csv' does not list it"):
        sample_groups([(str(tmp_path / "test/ant/1.png"), 0)], tmp_path, ["ant"], {}, tmp_path / "index.csv")


def test_a_missing_table_or_column_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file: give a CSV table with the columns file and group"):
        read_groups(tmp_path / "index.csv", "group")
    (tmp_path / "index.csv").write_text("file,place\n")
    with pytest.raises(ValueError, match="has the columns file, place, not file and group"):
        read_groups(tmp_path / "index.csv", "group")
