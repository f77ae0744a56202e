"""Which files leave, under which names, and what stays secret."""

import hashlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup.publication import Publication, gather, published_file
from hf_lmmixup.secrecy import environment_secrets, holds_secret, public_name, public_settings, without_secrets


HF = "hf_" + "aB3" * 8


def test_digests_are_those_of_git_and_sha256(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0" * 3_000_000)
    from_path, from_bytes = published_file("a.bin", tmp_path / "a.bin"), published_file("a.bin", b"\0" * 3_000_000)
    assert (from_path.sha256, from_path.blob) == (from_bytes.sha256, from_bytes.blob)
    assert from_path.sha256 == hashlib.sha256(b"\0" * 3_000_000).hexdigest()
    git = subprocess.run(["git", "hash-object", tmp_path / "a.bin"], capture_output=True, text=True, check=True)
    assert from_path.blob == git.stdout.strip()


@pytest.mark.parametrize(
    ("blob", "sha256", "same"),
    [
        ("own", None, True),  # a small file is known by its blob
        ("other", None, False),
        ("pointer", "own", True),  # a large one by its SHA-256; its blob is a pointer
        ("own", "other", False),
    ],
)
def test_sameness(blob, sha256, same):
    file = published_file("a.txt", b"text")
    mine = {"own": file.blob}.get(blob, blob), {"own": file.sha256}.get(sha256, sha256)
    assert file.same_as(*mine) is same


@given(
    st.text(st.characters(categories=["L", "N", "P", "Z", "C"]), max_size=12)
    | st.sampled_from(["..", "a/../b", "C:\\x"])
)
def test_names_are_plain_or_refused(name):
    try:
        file = published_file(name, b"")
    except ValueError as refusal:
        assert repr(name) in str(refusal)
    else:
        parts = file.name.split("/")
        assert all(part.isascii() and part.strip(".") for part in parts)
        assert not set(file.name) & set("\\:\0\n <>|*?\"'")


def test_only_regular_files_of_the_patterns_are_gathered(tmp_path):
    outside = tmp_path / "outside"
    (outside / "data").mkdir(parents=True)
    (outside / "data" / "a.json").write_text("private")
    folder = tmp_path / "folder"
    (folder / "data").mkdir(parents=True)
    for name in ("data/a.json", "data/b.json.tmp", "data/.env", "a.json", ".env"):
        (folder / name).write_text("{}")
    (folder / "data" / "link.json").symlink_to(outside / "data" / "a.json")
    (folder / "more").symlink_to(outside)
    (folder / "data" / "dir.json").mkdir()
    assert [file.name for file in gather(folder, [r"data/\w+\.json", r"more/data/a\.json"])] == ["data/a.json"]


def test_a_link_put_in_the_place_of_a_file_is_not_read(tmp_path):
    (tmp_path / "secret").write_text("private")
    (tmp_path / "a.json").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        published_file("a.json", tmp_path / "a.json")


def test_the_digest_names_content_and_not_order():
    first, second = published_file("a", b"1"), published_file("b", b"2")
    digests = [
        Publication("report", "ada/x", "space", files).digest
        for files in [(first, second), (second, first), (first,), (first, published_file("b", b"3"))]
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token={HF}", "token=[secret]"),
        ("key sk-proj-" + "a" * 30, "key [secret]"),
        ("Authorization: Bearer abc.def-ghi_jkl012", "Authorization: [secret]"),
        ("https://ada:s3cret@host:8000/v1?key=abc#top", "https://host:8000/v1#top"),
        ("see https://host/a?b=1 and http://u@h", "see https://host/a and http://h"),
        ("hf_lmmixup and sk-learn and Bearer of news", "hf_lmmixup and sk-learn and Bearer of news"),  # no tokens
        ("the value of MY_TOKEN", "the value of MY_TOKEN"),
        ("it is hunter2hunter2!", "it is [secret]!"),  # by its exact value
    ],
)
def test_secrets_are_hidden(text, shown):
    assert without_secrets(text, ["hunter2hunter2"]) == shown
    assert holds_secret(text.encode(), ["hunter2hunter2"]) == ("[secret]" in shown)


def test_secrets_of_the_environment():
    environment = {
        "HF_TOKEN": "tokentoken",
        "OPENAI_API_KEY": "keykeykey",
        "SHORT_TOKEN": "abc",  # occurs anywhere
        "SSH_KEY": "/home/ada/.ssh/id",  # a path
        "TOKENIZERS_PARALLELISM": "falsefalse",
        "HOME": "/home/ada/long/enough",
    }
    assert environment_secrets(environment) == {"tokentoken", "keykeykey"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/client/pile.jsonl", "pile.jsonl"),
        ("~/pile.jsonl", "pile.jsonl"),
        ("../pile.jsonl", "pile.jsonl"),
        ("C:\\Users\\ada\\pile.jsonl", "pile.jsonl"),
        ("quickstart/sft.yaml", "quickstart/sft.yaml"),
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B"),
        ("A text / with a slash.", "A text / with a slash."),
    ],
)
def test_paths_lose_their_folders(text, shown):
    assert public_name(text) == shown
    assert public_settings({"a": [text, 1, None, {"b": text}]}) == {"a": [shown, 1, None, {"b": shown}]}
