import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hashing_encoder import HashingEncoder
from safetensors.numpy import load_file, save_file

from hf_lmmixup.datastore import ScoredDatastore, build
from hf_lmmixup.datastore_files import FACTS_FILE, TENSORS_FILE
from hf_lmmixup.tensor_files import MAX_FACTS_BYTES, TensorFileError


def scored(count, kind="qa"):
    """Long texts are good, short ones poor, whatever their subject."""
    texts, scores = [], []
    for number in range(count):
        good = number % 2
        words = " ".join(f"word{(number * 7 + place) % 50}" for place in range(30 if good else 5))
        texts.append(f"Q: subject{number} why\nA: {words}.")
        scores.append(5 if good else 1)
    return texts, scores, [kind] * count


@pytest.fixture(scope="module")
def datastore():
    texts, scores, kinds = scored(120)
    others = scored(20, "cs")
    return build([*texts, *others[0]], [*scores, *others[1]], [*kinds, *others[2]], HashingEncoder())


@pytest.fixture
def folder(datastore, tmp_path):
    return datastore.save(tmp_path / "store")


def test_a_datastore_comes_back_as_it_was_saved(datastore, folder):
    loaded = ScoredDatastore.load(folder)
    for mine, theirs in zip(datastore.design.arrays(), loaded.design.arrays(), strict=True):
        assert mine.dtype == theirs.dtype and (mine == theirs).all()
    assert (loaded.scores == datastore.scores).all() and len(loaded) == 140
    assert (loaded.encoder, loaded.encoder_revision, loaded.k_transition) == ("hashing", None, 3)
    assert loaded.report == datastore.report and loaded.floor == datastore.floor
    texts = ["Q: subject0 why\nA: word1", "Q: new\nA: " + "word2 " * 30]
    for judge in (None, "head", "neighbors"):
        found = [store.judge(texts, HashingEncoder(), "qa", judge=judge) for store in (datastore, loaded)]
        assert (found[0] == found[1]).all()


def test_the_same_rows_give_the_same_bytes(datastore, folder, tmp_path):
    again = datastore.save(tmp_path / "again")
    for name in (TENSORS_FILE, FACTS_FILE):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == [FACTS_FILE, TENSORS_FILE]


def test_who_may_read_one_file_may_read_the_other(folder):
    assert (folder / TENSORS_FILE).stat().st_mode == (folder / FACTS_FILE).stat().st_mode


def test_the_head_is_the_default_where_it_predicts_held_out_rows_better(datastore):
    report = datastore.report
    assert report["default"] == "head" and report["rows"] == 140
    assert repr(datastore) == "ScoredDatastore(140 texts, encoder 'hashing', judge 'head')"  # one line in a notebook
    assert report["head"]["auc"] > report["neighbors"]["auc"]
    poor, good = datastore.judge(["Q: x why\nA: no.", scored(4)[0][3]], HashingEncoder(), "qa")
    assert poor < 2 < 4 < good


def test_few_rows_leave_the_neighbors_as_only_judge():
    store = build(*scored(20), HashingEncoder())
    assert store.head is None and store.report == {"rows": 20, "default": "neighbors"}
    with pytest.raises(ValueError, match=r"no judge 'head', only \['neighbors'\]"):
        store.judge(["Q: a\nA: b"], HashingEncoder(), "qa", judge="head")


def test_neighbors_are_fewer_than_k_in_a_small_datastore():
    """Published code asks an index of fewer than 16 rows for 16 neighbors and fails for the whole batch."""
    store = build(*scored(3), HashingEncoder())
    posterior = store.posterior(HashingEncoder().encode(["Q: a\nA: b"]), "qa", k=16)
    assert posterior.shape == (1, 6) and posterior.sum() == pytest.approx(1)


def test_texts_are_compared_as_they_were_stored():
    """Published code strips the answer line from stored texts and keeps it in the texts it scores."""
    text = "Q: Which?\nA) one\nB) two\nC) three\nD) four\nAnswer: A) one."
    store = build([text, "Q: other\nA) x\nB) y\nC) z\nD) w\nAnswer: D) w."], [5, 1], ["mcq", "mcq"], HashingEncoder())
    assert store.nearest(HashingEncoder().encode([text]), "mcq")[0] == pytest.approx(1.0)


def test_a_text_far_from_everything_is_not_judged(datastore):
    class Elsewhere(HashingEncoder):
        def encode(self, texts):
            return -np.tile(datastore.embeddings[:1], (len(texts), 1))

    assert np.isnan(datastore.judge(["Q: a\nA: b"], Elsewhere(), "qa")).all()


def test_add_encodes_only_the_new_rows_and_learns_from_all():
    texts, scores, kinds = scored(140)
    encoder = HashingEncoder()
    grown = build(texts[:120], scores[:120], kinds[:120], encoder).add(texts[120:], scores[120:], kinds[120:], encoder)
    assert encoder.encoded == texts
    whole = build(texts, scores, kinds, HashingEncoder())
    assert grown.report == whole.report and (grown.transitions["qa"].matrix == whole.transitions["qa"].matrix).all()
    assert (grown.head.dense == whole.head.dense).all()


@pytest.mark.parametrize(
    ("texts", "scores", "kinds", "message"),
    [
        ([], [], [], "at least one"),
        (["a"], [1, 2], ["qa"], "got 1, 2 and 1"),
        (["a"], [6], ["qa"], r"Scores \[6\] are not allowed"),
        (["a"], [1], ["essay"], "Unknown task type 'essay'"),
    ],
)
def test_rows_that_cannot_be_stored(texts, scores, kinds, message):
    with pytest.raises(ValueError, match=message):
        build(texts, scores, kinds, HashingEncoder())


def test_questions_that_cannot_be_asked(datastore):
    with pytest.raises(ValueError, match="built with the encoder 'hashing', not 'other'"):
        datastore.judge(["a"], HashingEncoder("other"), "qa")
    with pytest.raises(ValueError, match="built with the encoder"):
        datastore.add(["a"], [1], ["qa"], HashingEncoder("other"))
    with pytest.raises(ValueError, match=r"no rows of task type 'tfq', only \['cs', 'qa'\]"):
        datastore.judge(["a"], HashingEncoder(), "tfq")


def test_another_revision_of_the_encoder_is_refused(monkeypatch):
    monkeypatch.setattr(HashingEncoder, "revision", "old")
    datastore = build(["Q: a\nA: b"], [3], ["qa"], HashingEncoder())
    monkeypatch.setattr(HashingEncoder, "revision", "new")
    with pytest.raises(ValueError, match="is of revision 'old' of 'hashing', not 'new'"):
        datastore.judge(["Q: a\nA: b"], HashingEncoder(), "qa")


def alter_facts(folder, **changes):
    path = folder / FACTS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def alter_tensor(folder, name, change):
    tensors = load_file(folder / TENSORS_FILE)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / TENSORS_FILE)


def replaced(row, column, value):
    def change(tensor):
        copy = tensor.copy()
        copy[(row, column) if tensor.ndim == 2 else row] = value
        return copy

    return change


LIES = [
    # what the facts file says
    (lambda f: alter_facts(f, rows=10**12), "but must be .*1000000000000"),
    (lambda f: alter_facts(f, rows=139), "is .* but must be"),
    (lambda f: alter_facts(f, rows=-1), "at least 1"),
    (lambda f: alter_facts(f, rows=True), "rows is a bool"),
    (lambda f: alter_facts(f, width="64"), "width is a str"),
    (lambda f: alter_facts(f, format_version=2), "format version 2"),
    (lambda f: alter_facts(f, classes=[1, 2, 3]), "classes"),
    (lambda f: alter_facts(f, task_types=["qa", "cs"]), "sorted choice"),
    (lambda f: alter_facts(f, task_types=[]), "sorted choice"),
    (lambda f: alter_facts(f, task_types=["cs", "qa", "tfq"]), "tfq"),
    (lambda f: alter_facts(f, has_head=False), "head"),
    (lambda f: alter_facts(f, report={"default": "oracle"}), "default judge"),
    (lambda f: alter_facts(f, floor=3), "not a cosine"),
    (lambda f: alter_facts(f, surprise=1), "exactly the keys"),
    (lambda f: (f / FACTS_FILE).write_text("[" * 100_000), "not valid JSON"),
    (lambda f: (f / FACTS_FILE).write_text('{"rows": NaN}'), "NaN is not a number"),
    (lambda f: (f / FACTS_FILE).write_text('{"rows": 1, "rows": 2}'), "a key occurs twice"),
    (lambda f: (f / FACTS_FILE).write_bytes(b"\xff\xfe{"), "not valid JSON"),
    (lambda f: (f / FACTS_FILE).write_text(" " * (MAX_FACTS_BYTES + 1)), "At most"),
    # what the tensors hold
    (lambda f: alter_tensor(f, "embeddings", replaced(3, 0, np.nan)), "not finite"),
    (lambda f: alter_tensor(f, "embeddings", replaced(3, 0, 9)), "does not have length 1"),
    (lambda f: alter_tensor(f, "embeddings", lambda t: t.astype(np.float64)), "embeddings is .*F64"),
    (lambda f: alter_tensor(f, "scores", replaced(0, 0, 6)), "scores go from"),
    (lambda f: alter_tensor(f, "scores", lambda t: t[:-1]), "scores is"),
    (lambda f: alter_tensor(f, "task_types", replaced(0, 0, 7)), "task types"),
    (lambda f: alter_tensor(f, "buckets", replaced(0, 0, 65535)), "hashed word"),
    (lambda f: alter_tensor(f, "qa.matrix", lambda t: t[::-1] * 2), "chances that sum to 1"),
    (lambda f: alter_tensor(f, "qa.prior", replaced(0, 0, -1)), "chances that sum to 1"),
    (lambda f: alter_tensor(f, "head.scale", replaced(0, 0, 0)), "not positive"),
    (lambda f: alter_tensor(f, "head.dense", replaced(0, 0, np.inf)), "not finite"),
    (lambda f: save_extra(f), "extra"),
    (lambda f: (f / TENSORS_FILE).write_bytes((f / TENSORS_FILE).read_bytes()[:-100]), "not a valid safetensors"),
    (lambda f: (f / TENSORS_FILE).write_bytes(b"\xff" * 64), "not a valid safetensors"),
]


def save_extra(folder):
    save_file(load_file(folder / TENSORS_FILE) | {"extra": np.zeros(1)}, folder / TENSORS_FILE)


@pytest.mark.parametrize("lie", range(len(LIES)))
def test_a_folder_that_lies_is_refused(folder, lie):
    spoil, message = LIES[lie]
    spoil(folder)
    with pytest.raises(TensorFileError, match=message):
        ScoredDatastore.load(folder)


@pytest.mark.parametrize("name", [TENSORS_FILE, FACTS_FILE])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        ScoredDatastore.load(folder)


def test_a_full_disk_leaves_the_datastore_that_was_there(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = (
        "import resource, sys; import numpy as np; from pathlib import Path\n"
        "from hf_lmmixup.datastore_files import write_datastore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))\n"
        "try:\n    write_datastore(Path(sys.argv[1]), {'embeddings': np.zeros(10_000)}, {})\n"
        "except OSError as error: sys.exit(str(error))"
    )
    full = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert full.stderr.startswith(f"{folder / TENSORS_FILE} cannot be written: ")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_crash_amid_writing_leaves_no_pair_that_does_not_belong_together(datastore, folder, monkeypatch):
    replace = Path.replace

    def crash(path, target):
        if target.name == FACTS_FILE:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        datastore.save(folder)
    with pytest.raises(FileNotFoundError, match=FACTS_FILE):
        ScoredDatastore.load(folder)
    monkeypatch.undo()
    assert len(ScoredDatastore.load(datastore.save(folder))) == len(datastore)
    assert sorted(path.name for path in folder.iterdir()) == [FACTS_FILE, TENSORS_FILE]


@pytest.mark.parametrize("source", ["nobody/nothing", "./no/such/folder", "nothing at all"])
def test_what_is_neither_a_folder_nor_on_the_hub_is_named(source):
    with pytest.raises(FileNotFoundError, match=f"No datastore at {source}: there is no such folder.*OWNER/NAME"):
        ScoredDatastore.from_pretrained(source)


def test_nothing_else_in_the_folder_is_opened(folder, tmp_path):
    """A planted pickle would write a marker; the audit hook would see it opened, or a process or a socket."""
    marker = tmp_path / "marker"
    hostile = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    for name in ("nn_index.pkl", "datastore.pkl", "model.joblib", "pytorch_model.bin"):
        (folder / name).write_bytes(hostile)
    seen: list[str] = []
    watching = [True]

    def hook(event, arguments):
        if not watching[0]:
            return
        if event in ("pickle.find_class", "os.system", "subprocess.Popen", "socket.connect", "exec"):
            seen.append(event)
        if event == "open" and str(arguments[0]).startswith(str(folder)):
            seen.append(str(arguments[0]).rsplit("/", 1)[1])

    sys.addaudithook(hook)
    ScoredDatastore.load(folder)
    watching[0] = False
    assert set(seen) <= {FACTS_FILE, TENSORS_FILE} and not marker.exists()
