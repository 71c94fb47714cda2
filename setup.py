"""What pyproject.toml cannot say: the README's links on its page on PyPI, and the links to folders in the sdist."""

import re
import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
absolute = runpy.run_path(str(ROOT / "scripts" / "links.py"))["absolute"]
(repository,) = re.findall(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)


class SdistWithLinks(sdist):
    """Makes `groupcam_aug/callbacks` and `groupcam_aug/recipes` again, which setuptools leaves out.

    With them the package can be imported from the unpacked folder, as from a clone.
    """

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """The files, then the links."""
        super().make_release_tree(base_dir, files)
        for folder in ("callbacks", "recipes"):
            (Path(base_dir) / "groupcam_aug" / folder).symlink_to(f"../{folder}", target_is_directory=True)


setup(
    long_description=absolute((ROOT / "README.md").read_text(encoding="utf-8"), repository),
    long_description_content_type="text/markdown",
    cmdclass={"sdist": SdistWithLinks},
)
