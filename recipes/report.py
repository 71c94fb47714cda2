"""``groupcam-aug report``: the report of a run, written again from its records alone."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from rich.console import Console

from groupcam_aug.files import inside, put_file
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.image_files import shown
from groupcam_aug.recipes.terminal import say
from groupcam_aug.recipes.unknown_names import nearest

__all__ = ["find_records", "run"]


def run(command: str, words: list[str]) -> int:
    """The command: find the records, render, write; exit status 1 if something in them could not be read."""
    options = parsers.report(command).parse_args(words)
    from groupcam_aug.callbacks.report import read_records, render_records

    with refusing():
        folder = find_records(options.run_dir)
        out = folder / "report.html" if options.out is None else Path(options.out).expanduser()
        out = out / "report.html" if out.is_dir() else out
        records = read_records(folder)
        page = render_records(records)
        put_file(out.parent, out.name, page)
    say(console := Console(), f"wrote {shown(out)} ({len(page.encode()) / 1000:.0f} kB) from {shown(folder)}")
    for problem in records.problems.values():
        say(Console(stderr=True), problem, mark="left out:")
    if options.open and not webbrowser.open(out.resolve().as_uri()):
        say(console, "no web browser found: open the file yourself")
    return 1 if records.problems else 0


def find_records(path: str | Path) -> Path:
    """The folder with the records of a run.

    Args:
        path: that folder, the log directory around it, a file in either (a checkpoint), or a folder of runs: then the newest.

    Raises:
        FileNotFoundError: no such path, or no records; near names are suggested.
        OSError: the records are behind a link that leaves the folder.
    """
    path = Path(path).expanduser()
    if not path.exists():
        parent = next(folder for folder in path.absolute().parents if folder.is_dir())
        names = [item.name for item in parent.iterdir()]
        wanted = path.absolute().relative_to(parent).parts[0]
        raise FileNotFoundError(f"no folder {str(path)!r}{nearest(wanted, names)}")
    above = [path, *path.absolute().parents[:2]] if path.is_file() or path.name == "checkpoints" else [path]
    for folder in above:
        for records in (folder, folder / "groupcam"):
            if _age(records):
                return inside(folder, records)
    runs = [records for pattern in ("*", "*/*", "*/*/*") for records in path.glob(f"{pattern}/groupcam") if _age(records)]
    if runs:
        return inside(path, max(runs, key=_age))
    raise FileNotFoundError(
        f"{str(path)!r} holds no records of a run: no folder `groupcam` in it or up to three levels below. They are written by "
        "GroupCAMAugmentation, SaliencyMonitor and SaliencyReport (groupcam_aug.callbacks), each for itself, while a Trainer fits"
    )


def _age(folder: Path) -> float:
    """When the newest record of a folder was written, in seconds since 1970; 0 if it holds none."""
    from groupcam_aug.callbacks.report import FILES

    return max(((folder / name).stat().st_mtime for name in FILES if (folder / name).is_file()), default=0.0)
