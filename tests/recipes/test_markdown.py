from groupcam_aug.recipes.markdown import markdown_table


def test_a_table():
    text = markdown_table(["name", "a|b"], [["x", "1"], ("y|z", "22")], right=[1])
    assert text == "| name | a\\|b |\n| --- | ---: |\n| x | 1 |\n| y\\|z | 22 |"
    assert markdown_table(["a"], iter(())) == "| a |\n| --- |"
