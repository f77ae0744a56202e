r"""The two halves of a card: a YAML head that the Hub reads, and a Markdown body in which texts stay texts.

The head is dumped by a YAML library, never pasted together, and every text in the body passes `escape`, so no name,
reason or note of a run can add a key to the head, a column to a table or HTML to the page::

    >>> escape("a|b <script>")
    'a\\|b &lt;script&gt;'

A card holds no time stamps: equal facts give equal bytes.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined


_MARKUP = re.compile(r"([\\`*_{}\[\]|#~$!])")


def one_line(text: Any) -> str:
    """A text without line breaks, runs of blanks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def escape(text: Any) -> str:
    """A text as one line of plain Markdown, in which nothing is markup, HTML or the end of a table cell."""
    plain = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", plain)


def code(text: Any) -> str:
    """A text as inline code; it loses its backticks and pipes."""
    return f"`{one_line(text).replace('`', '').replace('|', '/') or '?'}`"


def fenced(text: str, language: str) -> str:
    """A text as a block of code, whatever backticks it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def decimal(value: Any) -> str:
    """A number with three decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def dump_yaml(value: Any) -> str:
    """Plain data as YAML, in the order given."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1_000)


def templates(*, autoescape: bool, **options: Any) -> Environment:
    """The templates of cards and pages; a value that one of them lacks is an error.

    Args:
        autoescape: Whether texts are escaped for HTML.
        **options: Further options of Jinja's `Environment`.
    """
    environment = Environment(
        loader=PackageLoader("hf_lmmixup", "templates"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters["thousands"] = "{:,}".format
    return environment


def render_card(template: str, head: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """A whole README.md.

    Args:
        template: Name of the body's template.
        head: Metadata; entries without a value are left out.
        values: What the body needs.

    Returns:
        The text; a character that UTF-8 cannot write is a question mark.
    """
    # Markdown is not HTML: every text passes the `escape` filter instead.
    environment = templates(autoescape=False, keep_trailing_newline=True)
    environment.filters |= {"escape": escape, "code": code}
    known = {name: value for name, value in head.items() if value not in (None, [], "")}
    body = re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(**values))
    return f"---\n{dump_yaml(known)}---\n\n{body}".encode("utf-8", "replace").decode("utf-8")
