"""Which weight sites a stage works on: `targets` and `ignore`, as llm-compressor reads them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType

from secateur.errors import SecateurError
from secateur.models.sites import WeightSite

ANY_LINEAR = "Linear"


def matches(site: WeightSite, pattern: str) -> bool:
    """Whether `pattern` names the site.

    Args:
        site: the weight site.
        pattern: a full module name, a class name (`Linear` stands for every weight site), or a
            regular expression after `re:`, matched from the start of the name.

    Raises:
        SecateurError: the regular expression cannot be compiled.
    """
    return _names(pattern, site.name) or pattern in (site.class_name, ANY_LINEAR)


def _names(pattern: str, name: str) -> bool:
    if not pattern.startswith("re:"):
        return pattern == name
    try:
        return re.match(pattern[3:], name) is not None
    except re.error as error:
        raise SecateurError(
            f"{pattern!r} is not a regular expression after `re:`: {error}"
        ) from None


def select_sites(
    sites: Sequence[WeightSite],
    targets: Iterable[str],
    ignore: Iterable[str],
    left_alone: Mapping[str, str] = MappingProxyType({}),
) -> list[WeightSite]:
    """The sites that a target matches and no ignore does, in their order.

    Args:
        sites: those to choose from.
        targets: patterns; see `matches`.
        ignore: patterns. One may name what is left alone anyway, as `lm_head` is: recipes say so.
        left_alone: by module name, why no stage touches it.

    Raises:
        SecateurError: a target or ignore matches nothing, or nothing is left to work on.
    """
    targets, ignore = list(targets), list(ignore)
    for pattern in targets:
        require_match(sites, pattern, "target", left_alone)
    for pattern in ignore:
        if not any(_names(pattern, name) for name in left_alone):
            require_match(sites, pattern, "ignore")
    selected = [
        site
        for site in sites
        if any(matches(site, target) for target in targets)
        and not any(matches(site, pattern) for pattern in ignore)
    ]
    if not selected:
        raise SecateurError(
            f"targets {targets} less ignore {ignore} leave none of the model's {len(sites)} "
            "weight matrices to work on"
        )
    return selected


def require_match(
    sites: Sequence[WeightSite],
    pattern: str,
    kind: str,
    left_alone: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise SecateurError, with what may have been meant, unless `pattern` matches some site."""
    if any(matches(site, pattern) for site in sites):
        return
    ends = [site.name for site in sites if site.name.endswith(f".{pattern}")]
    fault = f"{kind} {pattern!r} matches none of the model's {len(sites)} weight matrices"
    for name, reason in left_alone.items():
        if _names(pattern, name):
            raise SecateurError(f"{fault}: {name} is left alone ({reason})")
    if ends:
        raise SecateurError(
            f"{fault}: names are whole, such as {ends[0]}; 're:.*{re.escape(pattern)}$' takes all "
            "that end so"
        )
    names = [site.name for site in sites] + sorted({site.class_name for site in sites})
    near = get_close_matches(pattern.removeprefix("re:"), names, n=3, cutoff=0.3) or names[:3]
    raise SecateurError(f"{fault}; nearest names: {', '.join(near)}")
