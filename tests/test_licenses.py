"""Which license covers what is made from several sources, and which sources cannot be combined."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup import licenses
from hf_lmmixup.licenses import IncompatibleLicenses, merge


def sources(*values):
    return {f"source-{number}": value for number, value in enumerate(values)}


@pytest.mark.parametrize(
    ("given_licenses", "expected"),
    [
        (["mit"], ["mit"]),
        (["MIT"], ["mit"]),  # ids are lower case
        (["mit", "mit"], ["mit"]),
        (["cc0-1.0", "mit"], ["mit"]),  # a dedication asks for nothing
        (["cc0-1.0"], ["cc0-1.0"]),
        (["cc0-1.0", "unlicense"], ["cc0-1.0"]),
        (["cc-by-4.0", "apache-2.0"], ["apache-2.0", "cc-by-4.0"]),  # both notices stay
        (["cc-by-4.0", "cc-by-sa-4.0"], ["cc-by-sa-4.0"]),  # share alike takes permissive ones in
        (["cc-by-sa-3.0", "cc-by-sa-4.0"], ["cc-by-sa-4.0"]),  # an adaptation may take the later version
        (["cc-by-sa-4.0", "gpl-3.0"], ["gpl-3.0"]),
        (["gpl-3.0", "apache-2.0"], ["gpl-3.0"]),
        (["cc-by-nc-4.0", "mit"], ["cc-by-nc-4.0"]),
        (["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], ["cc-by-nc-sa-4.0"]),
        (["llama3.1", "apache-2.0"], ["llama3.1"]),  # restrictions of use are passed on
        (["llama3.1", "cc-by-nc-4.0"], ["cc-by-nc-4.0", "llama3.1"]),
        (["mit", None], ["unknown"]),  # one unknown source makes the whole unknown
        (["mit", "unknown"], ["unknown"]),
        ([], ["unknown"]),
        (["other"], ["other"]),  # the only source's own word is kept
        (["other", "mit"], ["unknown"]),
        (["other:qwen-research"], ["other:qwen-research"]),
        (["Other:Qwen-Research", "apache-2.0"], ["other:qwen-research"]),  # its conditions are passed on
        (["other:b", "other:a", "cc0-1.0"], ["other:a", "other:b"]),
        (["other:a", "cc-by-sa-4.0"], ["unknown"]),  # nobody knows whether they agree
        (["other:a", None], ["unknown"]),
        (["GPL-3.0-or-later", "MIT"], ["gpl-3.0"]),  # as SPDX writes it
    ],
)
def test_merged(given_licenses, expected):
    assert list(merge(sources(*given_licenses))) == expected


@pytest.mark.parametrize(
    "given_licenses",
    [
        ["cc-by-nd-4.0"],  # distilling is adapting
        ["mit", "cc-by-nc-nd-4.0"],
        ["CC-BY-ND-3.0"],  # also versions that the Hub has no id for
        ["cc-by-nc-nd-2.5"],
        ["GPL-2.0-only", "Apache-2.0"],
        [None, "cc-by-nd-4.0"],  # an unknown one beside it does not help
        ["cc-by-sa-4.0", "cc-by-nc-4.0"],  # share alike accepts no further restriction
        ["cc-by-sa-4.0", "cc-by-nc-sa-4.0"],
        ["odbl", "cc-by-sa-4.0"],
        ["gpl-2.0", "apache-2.0"],
        ["cc-by-sa-4.0", "llama3"],
    ],
)
def test_refused_by_name(given_licenses):
    named = sources(*given_licenses)
    with pytest.raises(IncompatibleLicenses) as refusal:
        merge(named)
    said = str(refusal.value)
    assert any(value.lower().removesuffix("-only") in said and name in said for name, value in named.items() if value)


def test_the_classes_do_not_overlap():
    kinds = ("DEDICATED", "PERMISSIVE", "SHARE_ALIKE", "NONCOMMERCIAL", "RESTRICTED")
    for first, second in itertools.combinations([getattr(licenses, kind) for kind in kinds], 2):
        assert not first & second


EVERY = sorted(licenses.PERMISSIVE | licenses.SHARE_ALIKE | licenses.NONCOMMERCIAL | licenses.RESTRICTED)


@given(st.lists(st.sampled_from(EVERY), min_size=1, max_size=4), st.randoms())
def test_order_and_repetition_do_not_matter(values, random):
    def outcome(chosen):
        try:
            return merge(sources(*chosen))
        except IncompatibleLicenses:
            return "refused"

    shuffled = [*values, values[0]]
    random.shuffle(shuffled)
    assert outcome(values) == outcome(shuffled)
    if outcome(values) != "refused":
        assert merge(sources(*merge(sources(*values)))) == outcome(values)  # merging the result changes nothing


METADATA = [  # licenses, whether a card may list several, what it says
    (("mit",), True, {"license": "mit"}),
    (("apache-2.0", "mit"), True, {"license": ["apache-2.0", "mit"]}),
    (("apache-2.0", "mit"), False, {"license": "other", "license_name": "apache-2.0-and-mit"}),
    (("other:a",), True, {"license": "other", "license_name": "a"}),
    (("other:a", "other:b"), True, {"license": "other", "license_name": "a-and-b"}),
    (("unknown",), False, {"license": "unknown"}),
]


@pytest.mark.parametrize(("found", "several", "expected"), METADATA)
def test_metadata_is_one_id_a_list_or_a_name(found, several, expected):
    assert licenses.as_metadata(found, several=several) == expected
