import types

import pytest

from hf_lmmixup.generation import LocalGenerator
from hf_lmmixup.paged_generation import PagedGenerator
from hf_lmmixup.prompts import distillation_messages
from hf_lmmixup.tiny_distiller import build_tiny_distiller


CONVERSATIONS = [distillation_messages([f"tides {'and the Moon ' * number}"]) for number in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny_distiller(tmp_path_factory.mktemp("model"), [turns[-1]["content"] for turns in CONVERSATIONS])


def test_greedy_text_is_that_of_the_local_generator(model):
    paged = PagedGenerator(model, max_new_tokens=4, batch_size=2)
    told = []
    texts = paged.generate(CONVERSATIONS, on_reply=lambda *reply: told.append(reply))
    assert texts == LocalGenerator(model, max_new_tokens=4).generate(CONVERSATIONS)
    assert sorted(told) == list(enumerate(texts))
    assert paged.generate([]) == []


def test_rows_with_a_seed_run_as_in_the_local_generator(model):
    paged, local = (kind(model, max_new_tokens=4) for kind in (PagedGenerator, LocalGenerator))
    assert paged.generate(CONVERSATIONS, seeds=[1, 2, 3]) == local.generate(CONVERSATIONS, seeds=[1, 2, 3])


def test_what_the_scheduler_does_not_know_is_refused(model):
    with pytest.raises(ValueError, match="does not know no_repeat_ngram_size"):
        PagedGenerator(model, max_new_tokens=4, no_repeat_ngram_size=3)


class Manager:
    """A scheduler that fails."""

    def __init__(self, results):
        self.results, self.asked = results, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def add_request(self, prompt, request_id, max_new_tokens):
        self.asked.append((request_id, max_new_tokens))

    def get_result(self, timeout):
        return self.results.pop(0) if self.results else None

    def is_running(self):
        return bool(self.results)


FAILED = types.SimpleNamespace(request_id="row-0", error="cache too small", is_finished=lambda: True)
HALFWAY = types.SimpleNamespace(request_id="row-0", error=None, is_finished=lambda: False)


@pytest.mark.parametrize(
    "results, message", [([HALFWAY, FAILED], "failed on a row: cache too small"), ([], "scheduler stopped")]
)
def test_a_scheduler_that_fails_is_an_error_and_no_missing_row(model, monkeypatch, results, message):
    paged = PagedGenerator(model, max_new_tokens=4)
    manager = Manager(list(results))
    monkeypatch.setattr(paged.model, "continuous_batching_context_manager", lambda **settings: manager)
    with pytest.raises(RuntimeError, match=message):
        paged.generate(CONVERSATIONS[:1])
    assert manager.asked == [("row-0", 4)]
