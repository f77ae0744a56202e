"""Real English that every Python installation has: the docstrings of installed packages, as articles.

One article is one module, one section is one docstring: its title is the qualified name, its text the prose before
parameter lists, examples and directives. Sources are parsed, never imported, so nothing of them is run.

    >>> next(read_docstrings(["json"])).title
    'json'
"""

import ast
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from hf_lmmixup.articles import Article


STANDARD_LIBRARY = "stdlib"
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "_vendor", "conftest"}

_SECTION = re.compile(
    r"^\s*(\w[\w ]*\n\s*[-=~]{3,}|\.\. |>>> |:\w+|Args?:|Parameters?:|Returns?:|Raises:|Examples?:)", re.M
)
_MARKUP = (
    (re.compile(r":\w+:`~?([^`]+)`"), r"\1"),
    (re.compile(r"``?([^`]+)``?"), r"\1"),
    (re.compile(r"\*\*?(\w+)\*\*?"), r"\1"),
)


def read_docstrings(packages: Iterable[str]) -> Iterator[Article]:
    """The docstrings of packages.

    Args:
        packages: Import names, or `stdlib` for the standard library.

    Yields:
        One article a module that has any, in the order of names and paths.

    Raises:
        ValueError: If a package is not installed, has no Python source, or states no license.
    """
    for package in packages:
        root, license_name = _locate(package)
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            module = _module_name(path, root, package)
            if SKIPPED & set(module.split(".")) or any(part.startswith("test_") for part in module.split(".")):
                continue
            sections = tuple(_sections(path, module))
            if sections:
                yield Article(module, sections, f"docstrings of {package}", license_name)


def _locate(package: str) -> tuple[Path, str]:
    """The folder of a package and its license."""
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib")), "PSF-2.0"
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise ValueError(f"No Python source of {package!r} here. Install it, or name stdlib or another package.")
    origin = Path(spec.origin)
    root = origin.parent if origin.name == "__init__.py" else origin
    return root, _license(package)


def _license(package: str) -> str:
    if package in sys.stdlib_module_names:
        return "PSF-2.0"
    distributions = importlib.metadata.packages_distributions().get(package, [])
    stated = _stated(importlib.metadata.metadata(distributions[0])) if distributions else ""
    if not stated:
        raise ValueError(f"{package!r} states no license, and nothing is taken without one. Leave it out.")
    return stated


def _stated(fields: importlib.metadata.PackageMetadata) -> str:
    """What the metadata of a distribution says: an expression, the first line of a text, or classifiers."""
    texts = [fields.get_all(name, [""])[0].partition("\n")[0].strip() for name in ("License-Expression", "License")]
    classes = [line for line in fields.get_all("Classifier", []) if line.startswith("License :: ")]
    known = (text for text in texts if text not in ("", "UNKNOWN"))
    return next(known, " and ".join(line.rpartition(" :: ")[2] for line in classes))


def _module_name(path: Path, root: Path, package: str) -> str:
    inside = path.relative_to(root).with_suffix("").parts if root.is_dir() else ()
    parts = [part for part in inside if part != "__init__"]
    return ".".join(parts if package == STANDARD_LIBRARY else [package, *parts])


def _sections(path: Path, module: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # templates and files of other Python versions are no sources
    yield from _walk(tree, module)


def _walk(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    text = prose(ast.get_docstring(node, clean=False) or "")
    if text:
        yield name, text
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _walk(child, f"{name}.{child.name}")


def prose(docstring: str) -> str:
    """The prose of a docstring: paragraphs before the first list of parameters, example or directive."""
    text = inspect.cleandoc(docstring)
    end = _SECTION.search(text)
    text = text[: end.start()] if end else text
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if not part.startswith((" ", "-", "*", "+", "|"))]
    return "\n\n".join(paragraphs).strip().rstrip(":")
