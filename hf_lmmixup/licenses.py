"""Licenses of sources, and the license of what is made from all of them.

A distilled row is made from several rows, so a distilled dataset is an adaptation of every source. Its license must
allow that, and must pass on what each source asks for::

    >>> merge({"a": "mit", "b": "cc-by-sa-4.0"})
    ('cc-by-sa-4.0',)
    >>> merge({"a": "cc-by-4.0", "b": "apache-2.0"})
    ('apache-2.0', 'cc-by-4.0')

Identifiers are the Hub's (https://huggingface.co/docs/hub/repositories-licenses); a license that has none is `other:`
and the `license_name` of its card, such as `other:qwen-research`. The table is a careful reading of the licenses, not
legal advice; what is not in it counts as unknown.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any


UNKNOWN = "unknown"

OTHER = "other"
"""The Hub's id of all licenses that have none of their own."""

DEDICATED = frozenset(["cc0-1.0", "pddl", "unlicense", "wtfpl", "0bsd"])
"""Nothing is asked for."""

PERMISSIVE = frozenset(
    """afl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc-by-2.0
    cc-by-2.5 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0 cdla-permissive-2.0 ecl-2.0 isc mit ms-pl ncsa odc-by postgresql
    zlib""".split()
)
"""Naming the authors and keeping the notices is asked for."""

SHARE_ALIKE = frozenset(
    """agpl-3.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-sharing-1.0 gfdl gpl-2.0 gpl-3.0 lgpl-2.1 lgpl-3.0 mpl-2.0 odbl
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0""".split()
)
"""The same license is asked for."""

CONVERTIBLE = frozenset(
    [
        ("cc-by-sa-3.0", "cc-by-sa-4.0"),
        ("cc-by-sa-4.0", "gpl-3.0"),
        ("cc-by-nc-sa-2.0", "cc-by-nc-sa-4.0"),
        ("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
        ("gpl-3.0", "agpl-3.0"),
        ("lgpl-2.1", "gpl-2.0"),
        ("lgpl-2.1", "gpl-3.0"),
        ("lgpl-3.0", "gpl-3.0"),
        ("lgpl-3.0", "agpl-3.0"),
        ("mpl-2.0", "gpl-3.0"),
        ("mpl-2.0", "agpl-3.0"),
    ]
)
"""Adaptations of the first may be given under the second."""

REFUSED_BY = {"gpl-2.0": frozenset(["apache-2.0"])}
"""Permissive licenses that a share-alike license does not accept beside itself."""

NONCOMMERCIAL = frozenset(["cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"])
"""Commercial use is not allowed."""

NO_ADAPTATIONS = re.compile(r"cc-by-(?:nc-)?nd-.*")
"""Adaptations may not be shared at all."""

RESTRICTED = frozenset(
    """bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m creativeml-openrail-m deepfloyd-if-license
    gemma llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 openrail openrail++ apple-amlr intel-research""".split()
)
"""Uses are restricted, and the restrictions must be passed on."""


LISTED = DEDICATED | PERMISSIVE | SHARE_ALIKE | NONCOMMERCIAL | RESTRICTED


class IncompatibleLicenses(ValueError):
    """No license would honor what all sources ask for."""


def merge(sources: Mapping[str, str | None]) -> tuple[str, ...]:
    """The licenses that together cover what is made from all sources.

    Args:
        sources: Name of each source -> its Hub license id; `None` where nobody knows.

    Returns:
        Ids in alphabetical order: one where it covers all, several where each must be honored, and `unknown` as soon
        as one source is not known.

    Raises:
        IncompatibleLicenses: If a source forbids adaptations, or two ask for what excludes each other; names both.
    """
    plain = {name: _plain(value) for name, value in sources.items()}
    known = {name: value for name, value in plain.items() if value != UNKNOWN}
    for name, value in known.items():
        if NO_ADAPTATIONS.fullmatch(value):
            raise IncompatibleLicenses(
                f"{name} is licensed {value}, which allows no adaptations, and distilled rows are adaptations. "
                "Leave this source out."
            )
    result = _strongest(known)
    distinct = set(plain.values())
    if distinct <= LISTED and distinct:
        return result
    named = {value for value in distinct if value.startswith(f"{OTHER}:")}
    if named and distinct - named <= DEDICATED | PERMISSIVE:
        return tuple(sorted(named))
    return tuple(distinct) if len(distinct) == 1 else (UNKNOWN,)


def _plain(value: str | None) -> str:
    """An id as the Hub writes it; SPDX adds to some whether later versions will do."""
    return (value or UNKNOWN).lower().removesuffix("-only").removesuffix("-or-later")


def _strongest(known: Mapping[str, str]) -> tuple[str, ...]:
    """What remains of the licenses that the table knows."""
    by_license = {value: name for name, value in known.items()}
    sharing = _sharing({value: name for value, name in by_license.items() if value in SHARE_ALIKE})
    binding = sorted(set(by_license) & (NONCOMMERCIAL | RESTRICTED))
    if sharing is not None:
        for other in [*binding, *sorted(REFUSED_BY.get(sharing, frozenset()) & set(by_license))]:
            if not (other in NONCOMMERCIAL and "-nc-sa-" in sharing):
                raise _conflict(by_license, sharing, other)
        return (sharing,)
    if binding:
        newest = [value for value in binding if value in NONCOMMERCIAL][-1:]
        return tuple(sorted([*newest, *(value for value in binding if value in RESTRICTED)]))
    asking = sorted(set(by_license) & PERMISSIVE)
    return tuple(asking) or tuple(sorted(set(by_license) & DEDICATED))[:1]


def _sharing(asked: Mapping[str, str]) -> str | None:
    """The one share-alike license under which everything may be given."""
    for target in sorted(asked):
        if all(value == target or (value, target) in CONVERTIBLE for value in asked):
            return target
    if asked:
        raise _conflict(asked, *sorted(asked)[:2])
    return None


def _conflict(by_license: Mapping[str, str], *values: str) -> IncompatibleLicenses:
    first, second = (f"{by_license.get(value, 'another source')} ({value})" for value in values)
    return IncompatibleLicenses(
        f"{first} and {second} cannot be combined: each asks for conditions that the other excludes. "
        "Distil them in separate runs, or leave one out."
    )


def as_metadata(licenses: Sequence[str], *, several: bool = True) -> dict[str, Any]:
    """The entries of a card's head: `license`, and `license_name` where the Hub has no id.

    Args:
        licenses: What `merge` returned.
        several: Whether the card may list several ids, as that of a dataset; others join them to one name.
    """
    names = [value.removeprefix(f"{OTHER}:") for value in licenses]
    if tuple(names) != tuple(licenses) or (len(names) > 1 and not several):
        return {"license": OTHER, "license_name": "-and-".join(names)}
    return {"license": names[0] if len(names) == 1 else names}
