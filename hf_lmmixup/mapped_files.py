"""Files mapped into memory, whose pages are let go of between steps.

Whatever was looked at counts as memory of the process until the system needs the room, so a run over millions of rows
looks larger than it is, to a scheduler that kills jobs by their resident size too. Pages that were let go of come back
from the system's page cache, or from the disk, when they are looked at again::

    table = pa.ipc.open_stream(pa.py_buffer(map_file(path))).read_all()
    ...
    let_go_of_pages()       # the table stays as it is
"""

import mmap
from pathlib import Path
from weakref import WeakSet


_maps: WeakSet[mmap.mmap] = WeakSet()


def map_file(path: Path) -> mmap.mmap:
    """A file's bytes, for reading; they stay what they are when the file is deleted or replaced.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is empty.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _maps.add(mapped)
    return mapped


def let_go_of_pages() -> None:
    """Of all mapped files."""
    for mapped in list(_maps):
        mapped.madvise(mmap.MADV_DONTNEED)
