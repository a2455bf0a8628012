"""Find and read config files. Knows nothing about options."""

from __future__ import annotations

from pathlib import Path

import yaml

from gpt2kit import files
from gpt2kit.errors import UserError, nearest
from gpt2kit.yaml_reader import Mapping, parse

_MAX_CHARACTERS = 1 << 22


def folder() -> Path:
    """Return the folder of gpt2kit's own config files: in the installed package, else in the clone."""
    package = Path(__file__).resolve().parent
    return package / "configs" if (package / "configs").is_dir() else package.parents[1] / "configs"


def locate(name: str) -> str:
    """Return the path of one of gpt2kit's config files by its name, such as recipe/poems; else the name as it is.

    A file in the current folder comes first.
    """
    own = folder() / f"{name.removesuffix('.yaml')}.yaml"
    is_own = "/" in name and ".." not in name and not Path(name).is_file() and own.is_file()
    return str(own) if is_own else name


def load(path: str) -> Mapping:
    """Read a config file, which must be a mapping."""
    try:
        if files.is_named_pipe(Path(path)):
            raise UserError(f"{path}: a named pipe, which may wait forever. Name a file")
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
        if len(text) > _MAX_CHARACTERS:
            raise UserError(f"{path}: more than {_MAX_CHARACTERS:,} characters, so not a config file. Check the path")
        value = parse(text, path)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so not a config file. Check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        own = (file.relative_to(folder()).with_suffix("").as_posix() for file in folder().glob("*/*.yaml"))
        advice = nearest(path.removesuffix(".yaml"), own) or ". Check the path"
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}){advice}") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{place}: {' '.join(problem.split())}. Is this a config file?") from None
    if not isinstance(value, Mapping):
        kind = "empty" if value is None else "not a mapping of options"
        raise UserError(f"{path}: {kind}. See --print_config")
    return value
