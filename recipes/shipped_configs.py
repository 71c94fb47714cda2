"""``groupcam-aug recipes``: the configs that come with the package, and where a command line names one."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from groupcam_aug.files import put_file
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.cli import Refused, refusing, table
from groupcam_aug.recipes.unknown_names import full_name, nearest

__all__ = ["find_recipe", "recipe_names", "run", "shipped_arms", "with_recipes"]


def recipe_names() -> list[str]:
    """Names of the configs in the package, without ``.yaml``, sorted; those in a subfolder as ``folder/name``."""
    root = _configs()
    paths = [path for path in root.rglob("*.yaml") if path != shipped_arms()]
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in paths)


def shipped_arms() -> Path:
    """The file of arms for `groupcam-aug trial`, which is no recipe."""
    return _configs() / "arms.yaml"


def find_recipe(name: str) -> Path:
    """Path of a config: a file if there is one, else the shipped recipe of that name, with or without ``.yaml``.

    Raises:
        FileNotFoundError: neither; near names are suggested.
    """
    if Path(name).is_file():
        return Path(name)
    bare = name.removesuffix(".yaml")
    if bare in recipe_names():
        return _configs() / f"{bare}.yaml"
    raise FileNotFoundError(
        f"no file and no recipe {name!r}{nearest(bare, recipe_names())} (recipes: {', '.join(recipe_names())})"
    )


def run(command: str, words: list[str]) -> int:
    """``recipes list | show NAME | copy NAME [DEST]``."""
    options = parsers.recipes(command).parse_args(words)
    if options.action == "list":
        print(table([(name, _claim(_configs() / f"{name}.yaml")) for name in recipe_names()]))
        return 0
    with refusing():
        source = shipped_arms() if options.name in ("arms", "arms.yaml") else find_recipe(options.name)
    if options.action == "show":
        print(source.read_text(encoding="utf-8"), end="")
        return 0
    target = Path(options.destination)
    target = target / source.name if target.is_dir() or not target.suffix else target
    if target.exists() and not options.force:
        raise Refused(f"{str(target)!r} exists; give another destination, or --force to overwrite it")
    with refusing():
        put_file(target.parent, target.name, source.read_bytes())
    print(f"wrote {target}")
    return 0


def with_recipes(words: list[str]) -> list[str]:
    """The words with their configs in front, so that what the line says holds wherever it stands.

    The value of ``--config`` becomes an absolute path: of the file, or of the shipped recipe of that name.
    """
    configs, rest = [], []
    remaining = iter(words)
    for word in remaining:
        flag, equals, value = word.partition("=")
        if full_name(flag) != "--config":
            rest.append(word)
        elif (name := value if equals else next(remaining, None)) is not None:
            configs += ["--config", str(_text_file(find_recipe(name).absolute()))]
        else:
            rest.append(word)  # without a value, which the parser says
    return [*configs, *rest]


def _text_file(path: Path) -> Path:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--config {str(path)!r} is no text ({error}): give a YAML file; a checkpoint is for --ckpt_path"
        ) from error
    return path


def _configs() -> Path:
    return Path(str(files("groupcam_aug.recipes").joinpath("configs")))


def _claim(path: Path) -> str:
    """The first comment line of a config: what it is."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").rstrip()
