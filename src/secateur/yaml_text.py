"""YAML as people mean it: `2:4` is text, `1e-3` is a number, and a key stands once.

PyYAML reads YAML 1.1, where `2:4` is the number 124 in base 60. This is its safe loader with the
numbers of YAML 1.2.
"""

import re
from typing import Any

import yaml

from secateur.errors import SecateurError

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_REPLACED = ("int", "float", "timestamp")


class _Loader(yaml.SafeLoader):
    """Safe, and no key twice in a mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"the key {twice[0]} stands twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` or a reader of YAML 1.1 would take for something else than text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(text: str, source: str) -> object:
    """Plain values from YAML text.

    Raises:
        SecateurError: it is not YAML; names `source`.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # values too deep
        raise SecateurError(f"{source} is neither YAML nor JSON: {error}") from None


def write_yaml(values: dict[str, Any]) -> str:
    """YAML text that `read_yaml` reads back, keys in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
