"""Which weight sites a stage works on: `targets` and `ignore`, as llm-compressor reads them."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

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
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], site.name) is not None
        except re.error as error:
            raise SecateurError(
                f"{pattern!r} is not a regular expression after `re:`: {error}"
            ) from None
    return pattern in (site.name, site.class_name, ANY_LINEAR)


def select_sites(
    sites: Sequence[WeightSite], targets: Iterable[str], ignore: Iterable[str]
) -> list[WeightSite]:
    """The sites that a target matches and no ignore does, in their order.

    Raises:
        SecateurError: a target or ignore matches nothing, or nothing is left to work on.
    """
    targets, ignore = list(targets), list(ignore)
    for kind, patterns in (("target", targets), ("ignore", ignore)):
        for pattern in patterns:
            require_match(sites, pattern, kind)
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


def require_match(sites: Sequence[WeightSite], pattern: str, kind: str) -> None:
    """Raise SecateurError, with what may have been meant, unless `pattern` matches some site."""
    if any(matches(site, pattern) for site in sites):
        return
    ends = [site.name for site in sites if site.name.endswith(f".{pattern}")]
    fault = f"{kind} {pattern!r} matches none of the model's {len(sites)} weight matrices"
    if ends:
        raise SecateurError(
            f"{fault}: names are whole, such as {ends[0]}; 're:.*{re.escape(pattern)}$' takes all "
            "that end so"
        )
    names = [site.name for site in sites] + sorted({site.class_name for site in sites})
    near = get_close_matches(pattern.removeprefix("re:"), names, n=3, cutoff=0.3) or names[:3]
    raise SecateurError(f"{fault}; nearest names: {', '.join(near)}")
