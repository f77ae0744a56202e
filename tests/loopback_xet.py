"""Xet on loopback: `hf_xet` stores into a folder instead of a server, and the Hub reads what it stored.

The Hub answers `local://FOLDER` where a client asks for the address of the content store. At commit the SHA-256 of a
file is looked up in the uploaded shards, and the file is put together again with `hf_xet`.
"""

import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path


RECORD = 48
"""Bytes of a record in the file section of a shard, and of the shard's header."""

VERIFIED, DESCRIBED = 1 << 31, 1 << 30
"""Flags of a file: each segment has a second record; the last record holds the SHA-256."""


def store_folder(root: Path) -> Path:
    folder = (root / "xet").absolute()
    folder.mkdir(exist_ok=True)
    return folder


def materialize(root: Path, sha256: str, target: Path) -> str | None:
    """Write a file that came through Xet to `target`; returns its Xet hash, or None if it came another way."""
    store = store_folder(root)
    found = next((entry[1:] for entry in stored_files(store) if entry[0] == sha256), None)
    if found is None:
        return None
    if not target.exists():
        import hf_xet

        partial, view = target.with_suffix(".partial"), Path(tempfile.mkdtemp(dir=root))
        # the client still holds the lock of the store: read a copy
        shutil.copytree(store, view, dirs_exist_ok=True)
        with hf_xet.XetSession().new_file_download_group(
            endpoint=f"local://{view}",
            token="t",
            token_expiry_unix_secs=4_102_444_800,
            token_refresh_url=None,
            token_refresh_headers={},
            custom_headers={},
        ) as group:
            group.start_download_file(hf_xet.XetFileInfo(*found), str(partial))
        assert hashlib.sha256(partial.read_bytes()).hexdigest() == sha256
        os.replace(partial, target)
        shutil.rmtree(view)
    return found[0]


def stored_files(store: Path) -> Iterator[tuple[str, str, int]]:
    """SHA-256, Xet hash and size of every file in the shards of a store."""
    for path in sorted(store.glob("**/shards/*.mdb")):
        shard, place = path.read_bytes(), RECORD
        while place + RECORD <= len(shard) and shard[place : place + 32] != b"\xff" * 32:
            name = shard[place : place + 32]
            flags, segments = struct.unpack_from("<II", shard, place + 32)
            place += RECORD
            size = sum(struct.unpack_from("<I", shard, place + RECORD * i + 36)[0] for i in range(segments))
            place += RECORD * segments * (2 if flags & VERIFIED else 1)
            if flags & DESCRIBED:
                yield words(shard[place : place + 32]).hex(), words(name).hex(), size
                place += RECORD


def words(digest: bytes) -> bytes:
    """Xet writes a hash as four little-endian words."""
    return b"".join(digest[start : start + 8][::-1] for start in range(0, 32, 8))
