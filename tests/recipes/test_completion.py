"""Completion: a script that the shell takes, with every command, its options and its files."""

import shutil
import subprocess

import pytest

from groupcam_aug.recipes.cli import COMMANDS, main


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_options(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(*words):
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_groupcam_aug; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True)
        return done.stdout.split()

    assert set(completed("groupcam-aug", "''")) >= {command.name for command in COMMANDS}
    assert "explain" in completed("groupcam-aug", "exp")
    assert completed("groupcam-aug", "fit", "--data.ro") == ["--data.root"]
    assert "--mask-at" in completed("groupcam-aug", "explain", "--ma")
    assert completed("groupcam-aug", "explain", "--method", "gra") == ["gradcam", "gradcam-against"]


def test_other_shells(capsys):
    for shell in ("zsh", "tcsh"):
        assert main(["completion", shell]) == 0
        assert "--data.root" in capsys.readouterr().out
    assert main(["completion", "fish"]) == 2


def test_files_are_completed_where_files_are_meant(capsys):
    main(["completion", "bash"])
    script = capsys.readouterr().out
    for option in ("explain___checkpoint", "fit___config", "explain_pos_0", "fit___data_root", "fit___ckpt_path"):
        assert f"_shtab_groupcam_aug_{option}_COMPGEN=_shtab_compgen_" in script, option
