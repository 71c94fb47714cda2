"""Text from elsewhere, made fit to be shown."""

import pytest

from groupcam_aug.printable import printable, without_secrets


def test_what_steers_a_terminal_is_written_out():
    assert printable("a\x1b[31m\x07\x7f\r\u2028\u2066\udc80") == "a\\x1b[31m\\x07\\x7f\\x0d\\u2028\\u2066\\udc80"
    assert printable("Grün\t猫 é \u200d 👩\u200d🔬\n") == "Grün\t猫 é \u200d 👩\u200d🔬\n"
    assert printable(ValueError("no\x1b")) == "no\\x1b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.py --api_key=abc --hub-token t0k", "train.py --api_key=*** --hub-token ***"),
        ("--data.image_key 0 PASSWORD=x", "--data.image_key 0 PASSWORD=***"),
        ("--url https://me:s3cret@host:80/x?a=1", "--url https://***@host:80/x?a=1"),
        ("s3://KEY:SECRET@bucket and git+ssh://git@host", "s3://***@bucket and git+ssh://***@host"),
        ("https://host/x?token=abc&b=1", "https://host/x?token=***&b=1"),
        ('{"init_args": {"password": "x", "a": 1}}', '{"init_args": {"password": "***", "a": 1}}'),
        ("https://host/a@b me@host", "https://host/a@b me@host"),
    ],
)
def test_secrets_are_not_shown(text, expected):
    assert without_secrets(text) == expected
