import errno
import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup import journal as journal_module
from hf_lmmixup.journal import SYNC_SECONDS, Journal, digest


SETTINGS = {"input": "abc", "model": "rater-8b", "temperature": 0.0}

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "answers.journal"


def test_answers_are_there_after_reopening(path):
    with Journal(path, SETTINGS) as journal:
        journal.add("a", {"overall": 7})
        journal.add("b", None)
        assert journal["a"] == {"overall": 7}
    with Journal(path, SETTINGS) as journal:
        assert list(journal) == ["a", "b"]
        assert (len(journal), "a" in journal, "c" in journal) == (2, True, False)
        assert journal["a"] == {"overall": 7} and journal["b"] is None
        with pytest.raises(KeyError):
            journal["c"]


def test_an_answer_is_recorded_once(path):
    with Journal(path, SETTINGS) as journal:
        journal.add("a", 1)
        with pytest.raises(ValueError, match="recorded .* already"):
            journal.add("a", 2)
        assert journal["a"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}], ids=repr)
def test_what_is_not_json_is_refused_and_leaves_no_trace(path, value):
    with Journal(path, SETTINGS) as journal:
        size = path.stat().st_size
        with pytest.raises((ValueError, TypeError)):
            journal.add("a", value)
        assert path.stat().st_size == size and "a" not in journal


@given(st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=8))
@settings(max_examples=25, deadline=None)
def test_any_json_value_and_any_key_come_back_the_same(tmp_path_factory, answers):
    path = tmp_path_factory.mktemp("journal") / "j"
    with Journal(path, {}) as journal:
        for key, value in answers.items():
            journal.add(key, value)
    with Journal(path, {}) as journal:
        assert {key: journal[key] for key in journal} == answers


def test_cut_at_every_byte_the_whole_lines_survive_and_the_rest_can_be_added_again(path, tmp_path):
    answers = {"a": None, "bc": {"é": 1}, "d": "x"}
    with Journal(path, {}) as journal:
        for key, value in answers.items():
            journal.add(key, value)
    whole = path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == 0x0A]
    for cut in range(len(whole) + 1):
        torn = tmp_path / "torn.journal"
        torn.write_bytes(whole[:cut])
        survivors = max(0, sum(end <= cut for end in ends) - 1)  # the first line is the header
        with Journal(torn, {}) as journal:
            assert list(journal) == list(answers)[:survivors]
            for key in list(answers)[survivors:]:
                journal.add(key, answers[key])
            # Nothing of the torn tail comes back, however much of it was read ahead.
            assert {key: journal[key] for key in journal} == answers
        assert torn.read_bytes() == whole


def test_longer_answers_than_the_torn_ones_are_read_back_at_once(path):
    with Journal(path, {}) as journal:
        journal.add("a", 1)
        journal.add("b", "torn")
    path.write_bytes(path.read_bytes()[:-3])
    with Journal(path, {}) as journal:
        journal.add("c", "longer than what was torn")
        assert (journal["a"], journal["c"], "b" in journal) == (1, "longer than what was torn", False)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_damaged_byte_costs_at_most_the_answers_of_its_line_and_the_next(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "j"
    with Journal(path, SETTINGS) as journal:
        for number in range(5):
            journal.add(f"key {number}", number)
    whole = bytearray(path.read_bytes())
    body = whole.index(b"\n") + 1
    position = data.draw(st.integers(body, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with Journal(path, SETTINGS) as journal:
        assert len(journal) >= 3  # a damaged line break joins two lines
        assert all(journal[key] == int(key[-1]) for key in journal)
        for number in range(5):
            if f"key {number}" not in journal:
                journal.add(f"key {number}", number)
    with Journal(path, SETTINGS) as journal:
        assert sorted(journal) == [f"key {number}" for number in range(5)]


@pytest.mark.parametrize(
    "content",
    [
        b"hello",  # no line break, no header either
        b"hello\n",
        b'{"prompt": "someone\'s data"}\n{"prompt": "more"}\n',
        b'00000000 {"journal":1,"settings":{}}\n',  # checksum of another line
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a journal"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "rater-70b"}, "model was 'rater-8b' and is 'rater-70b'"),
        ({"input": "xyz"}, "input was 'abc' and is 'xyz'"),
        ({"temperature": 0.7, "model": "m"}, "model was 'rater-8b' and is 'm'; temperature was 0.0 and is 0.7"),
        ({"seed": 3}, "seed was None and is 3"),  # a setting that did not exist then
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_written(path, changed, message):
    with Journal(path, SETTINGS) as journal:
        journal.add("a", 1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        Journal(path, {**SETTINGS, **changed})
    assert path.read_bytes() == before


def test_a_journal_without_answers_takes_other_settings(path):
    Journal(path, SETTINGS).close()
    with Journal(path, {**SETTINGS, "max_tokens": 2048}) as journal:
        journal.add("a", 1)
    with pytest.raises(ValueError, match="max_tokens was 2048 and is None.*; to ask everything anew, name another"):
        Journal(path, SETTINGS)
    with Journal(path, {**SETTINGS, "max_tokens": 2048}) as journal:
        assert journal["a"] == 1


def test_settings_are_compared_as_json(path):
    Journal(path, {"axes": ("rarity", "overall"), "b": 1}).close()
    Journal(path, {"b": 1, "axes": ["rarity", "overall"]}).close()


def test_a_second_writer_is_refused_before_it_writes(path):
    with Journal(path, SETTINGS) as journal:
        before = path.read_bytes()
        code = (
            "import sys; from hf_lmmixup.journal import Journal\n"
            f"try: Journal({str(path)!r}, {{}})\nexcept ValueError as error: sys.exit(str(error))"
        )
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert second.returncode == 1 and "in use by another run" in second.stderr
        assert path.read_bytes() == before
        journal.add("a", 1)


def test_a_killed_writer_leaves_no_lock_and_loses_nothing_that_add_returned_for(path):
    code = (
        "import os, signal; from hf_lmmixup.journal import Journal\n"
        f"journal = Journal({str(path)!r}, {SETTINGS!r})\n"
        "for number in range(200): journal.add(str(number), number)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    with Journal(path, SETTINGS) as journal:
        assert [journal[str(number)] for number in range(200)] == list(range(200))


def test_a_file_system_without_locks_is_told_as_what_it_is(path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(journal_module.fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks available"):
        Journal(path, SETTINGS)


def test_a_full_disk_stops_without_half_a_record_and_a_rerun_completes(path):
    code = (
        "import resource, sys; from hf_lmmixup.journal import Journal\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))\n"
        f"journal = Journal({str(path)!r}, {SETTINGS!r})\n"
        "try:\n    for number in range(200): journal.add(str(number), 'x' * 70)\n"
        "except OSError as error: sys.exit(f'{error.errno} {len(journal)} {error}')"
    )
    full = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    recorded = int(full.stderr.split()[1])
    assert full.returncode == 1 and 0 < recorded < 200 and full.stderr.endswith(f": '{path}'\n")
    assert path.read_bytes().endswith(b"\n")
    with Journal(path, SETTINGS) as journal:
        assert len(journal) == recorded
        journal.add("next", 1)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4000


def test_syncs_are_shared_while_answers_come_in_and_complete_at_the_end(path, monkeypatch):
    synced, now = [], [0.0]
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(journal_module.os, "fsync", lambda descriptor: synced.append(now[0]))
    journal = Journal(path, SETTINGS)
    synced.clear()
    for number in range(100):  # 100 answers in 1.5 seconds
        now[0] = number * 15 / 1000
        journal.add(str(number), number)
    assert len(synced) == 1 and synced[0] == pytest.approx(SYNC_SECONDS, abs=0.015)
    journal.flush()
    journal.flush()
    assert synced[1:] == [now[0]]
    journal.close()
    assert len(synced) == 2


def test_a_journal_tells_when_it_cuts_or_skips(path, caplog):
    with Journal(path, SETTINGS) as journal:
        for number in range(3):
            journal.add(str(number), number)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1], b"junk\n", lines[3], b"12ab"]))
    with Journal(path, SETTINGS) as journal:
        assert list(journal) == ["0", "2"]
    assert "1 damaged lines" in caplog.text and "torn tail of 4 bytes" in caplog.text


def test_closing_twice_is_harmless_and_a_closed_journal_says_so(path):
    journal = Journal(path, SETTINGS)
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="is closed"):
        journal.add("a", 1)


def test_the_lines_can_be_read_without_this_package(path):
    with Journal(path, SETTINGS) as journal:
        journal.add("a", {"overall": 7})
    header, line = path.read_text(encoding="ascii").splitlines()
    assert json.loads(header[9:]) == {"journal": 1, "settings": SETTINGS}
    assert json.loads(line[9:]) == ["a", {"overall": 7}]
    assert os.path.getsize(path) == len(header) + len(line) + 2


def test_digest_depends_on_texts_order_and_boundaries():
    texts = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], []]
    assert len({digest(each) for each in texts}) == len(texts)
    assert digest(["a", "\ud800"]) == digest(iter(["a", "\ud800"]))
