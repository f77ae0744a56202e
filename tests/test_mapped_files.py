import re
from pathlib import Path

import numpy as np
import pytest

from hf_lmmixup.mapped_files import let_go_of_pages, map_file


def resident_mb(of: str) -> float:
    """Megabytes of this process in memory: `RssFile` of mapped files, `RssAnon` of its own."""
    return int(re.search(rf"{of}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


def test_pages_are_let_go_of_and_come_back(tmp_path):
    content = np.random.default_rng(0).bytes(64 * 2**20)
    (tmp_path / "file").write_bytes(content)
    mapped = map_file(tmp_path / "file")
    before = resident_mb("RssFile")
    assert bytes(mapped) == content
    assert resident_mb("RssFile") > before + 60
    let_go_of_pages()
    assert resident_mb("RssFile") < before + 4
    assert bytes(mapped) == content


def test_a_file_that_was_deleted_or_replaced_stays_what_it_was(tmp_path):
    (tmp_path / "file").write_bytes(b"one" * 10_000)
    mapped = map_file(tmp_path / "file")
    (tmp_path / "other").write_bytes(b"two" * 10_000)
    (tmp_path / "other").replace(tmp_path / "file")
    let_go_of_pages()
    assert bytes(mapped) == b"one" * 10_000
    (tmp_path / "file").unlink()
    let_go_of_pages()
    assert bytes(mapped) == b"one" * 10_000


def test_nothing_to_map_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty"):
        map_file(tmp_path / "empty")
