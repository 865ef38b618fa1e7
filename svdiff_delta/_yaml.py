"""Strict YAML: plain values only, and no key twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import InputError


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        InputError: it cannot be read, or is not YAML of that kind; the message names the file.
    """
    try:
        return yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror})") from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, a NUL in the path, a date such as 2000-99-99
        raise InputError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice: the last one would count in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
