"""Public names of a package that load what they need when first used.

__getattr__, __dir__ = load_when_used(__name__, {"rate": "rating"}, __all__)   # in a package's __init__.py
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def load_when_used(
    package: str, module_of: Mapping[str, str], offered: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: Its `__name__`.
        module_of: Public name -> the module of the package that it lives in.
        offered: Its `__all__`.

    Returns:
        Both functions; the first also finds the package's modules, such as `hf_lmmixup.hub` after a mere `import
        hf_lmmixup`, and raises an `AttributeError` that lists the public names.
    """

    def find(name: str) -> Any:
        if name in module_of:
            return getattr(import_module(f"{package}.{module_of[name]}"), name)
        if find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}. It offers {sorted(module_of)}.")
        return import_module(f"{package}.{name}")

    return find, lambda: sorted(offered)
