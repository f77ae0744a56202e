import json

import pytest
import torch
from datasets import Dataset

from hf_lmmixup.chat_model import ChatRequest
from hf_lmmixup.digit_model import DigitModel, common_start, digit_tokens
from hf_lmmixup.dispatch import TooManyRejects
from hf_lmmixup.generation import LocalGenerator
from hf_lmmixup.local_model import GeneratorModel
from hf_lmmixup.rating import rate
from hf_lmmixup.rating_prompt import FOUR_AXES, ONE_DIGIT, parse_digit
from hf_lmmixup.records import LOADED
from hf_lmmixup.tiny_distiller import build_tiny_distiller


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with random weights, whose tokenizer knows digits and words."""
    words = [f"{digit} question answer tides moon sun {digit}" for digit in range(10)]
    return build_tiny_distiller(tmp_path_factory.mktemp("tiny"), words)


@pytest.fixture(scope="module")
def model(folder):
    made = DigitModel(folder, batch_size=4)
    with torch.no_grad():  # spread the logits, so that rows differ and half of the mass lies on digits
        made.model.model.norm.weight.mul_(4)
    return made


def requests(count):
    texts = [f"Q: question {number} {'tides ' * (number * 7 % 23)}\nA: moon" for number in range(count)]
    return [ChatRequest(str(number), ONE_DIGIT.messages(text)) for number, text in enumerate(texts)]


def plainly(model, request):
    """The expected digit by one full forward pass of one row, with a loop over the vocabulary."""
    text = model.tokenizer.apply_chat_template(list(request.messages), add_generation_prompt=True, tokenize=False)
    tokens = model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        probabilities = model.model(tokens).logits[0, -1].double().softmax(-1)
    mass = total = 0.0
    for token, probability in enumerate(probabilities.tolist()):
        written = model.tokenizer.decode([token]).strip()
        if len(written) == 1 and written in "123456789":
            mass += probability
            total += int(written) * probability
    return total / mass, mass


def test_the_expected_digit_is_that_of_a_plain_forward_pass(model):
    replies = {reply.key: json.loads(reply.text) for reply in model.replies(requests(10))}
    assert len(replies) == 10
    for request in requests(10):
        expected, mass = plainly(model, request)
        assert replies[request.key]["expected"] == pytest.approx(expected, abs=0.0051)
        assert replies[request.key]["mass"] == pytest.approx(mass, abs=0.0051)
    assert len({reply["expected"] for reply in replies.values()}) > 3


def test_batches_and_order_do_not_change_the_replies(folder, model):
    whole = {reply.key: reply.text for reply in model.replies(requests(12))}
    alone = {reply.key: reply.text for one in requests(12)[::-1] for reply in model.replies([one])}
    assert alone == whole


def test_the_shared_beginning_is_computed_once(model, monkeypatch):
    lengths = []
    forward = model.model.forward

    def counting(*arguments, **settings):
        lengths.append((arguments or (settings["input_ids"],))[0].shape)
        return forward(*arguments, **settings)

    model._shared = ([], None)
    monkeypatch.setattr(model.model, "forward", counting)
    list(model.replies(requests(12)))
    alone = [shape for shape in lengths if shape[0] == 1]
    assert len([shape for shape in lengths if shape[0] == 4]) == 3
    prompt = len(model._tokens(requests(1)[0].messages))
    assert max(shape[1] for shape in lengths if shape[0] == 4) < prompt  # rows bring only what is their own
    assert len(alone) <= 2  # the shared part, and perhaps one row that was close to a rounding border


def test_a_prompt_beyond_the_window_is_set_aside_and_the_others_are_not(folder):
    model = DigitModel(folder, batch_size=2)
    model.longest = 700
    long = ChatRequest("long", ONE_DIGIT.messages("tides " * 2000))
    replies = {reply.key: reply for reply in model.replies([*requests(3), long])}
    assert replies["long"].error == "longer than the model's window" and not replies["long"].answered
    assert all(replies[str(number)].text for number in range(3))


@pytest.mark.parametrize("said", ["CUDA out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"])
def test_out_of_memory_halves_the_batch_and_loses_no_row(model, monkeypatch, said):
    whole = {reply.key: reply.text for reply in model.replies(requests(9))}
    judged = model._judged

    def short_of_memory(texts):
        if len(texts) > 1:
            raise RuntimeError(said)
        return judged(texts)

    monkeypatch.setattr(model, "_judged", short_of_memory)
    monkeypatch.setattr(model, "batch_size", 4)
    assert {reply.key: reply.text for reply in model.replies(requests(9))} == whole
    assert model.batch_size == 1


def test_an_illegal_access_is_no_lack_of_memory(model, monkeypatch):
    def broken(texts):
        raise RuntimeError(f"CUDA error: an illegal memory access was encountered, {len(texts)} texts")

    monkeypatch.setattr(model, "_judged", broken)
    with pytest.raises(RuntimeError, match=f"{model.batch_size} texts"):
        list(model.replies(requests(model.batch_size)))


def test_a_model_that_does_not_answer_with_digits_is_not_believed():
    assert parse_digit('{"expected": 6.22, "mass": 0.9}') == 6.22
    for reply, reason in [
        ('{"expected": 6.22, "mass": 0.49}', "does not answer with a digit"),
        ('{"expected": 9.5, "mass": 0.9}', "outside 1 to 9"),
        ('{"expected": 7, "mass": 0.9}', "needs a DigitModel"),
        ('{"overall": 7}', "needs a DigitModel"),
        ("7", "not a JSON object"),
    ]:
        with pytest.raises(ValueError, match=reason):
            parse_digit(reply)


class Tokenizer:
    """Writes the texts it is made of."""

    name_or_path = "toy"

    def __init__(self, *texts):
        self.texts = texts

    def get_vocab(self):
        return {text: number for number, text in enumerate(self.texts)}

    def decode(self, tokens):
        return "".join(self.texts[token] for token in tokens).replace("_", " ")


def test_every_token_that_writes_a_single_digit_counts():
    digits = [str(digit) for digit in range(1, 10)]
    assert digit_tokens(Tokenizer(*digits, "_7", "77", "a7", "0")) == [[0], [1], [2], [3], [4], [5], [6, 9], [7], [8]]


def test_refusals_name_what_was_wrong(folder):
    with pytest.raises(ValueError, match="Unknown dtype 'int8'"):
        DigitModel(folder, dtype="int8")
    with pytest.raises(ValueError, match="'toy' has no token for a single digit"):
        digit_tokens(Tokenizer("1", "23"))


def test_a_model_that_knows_nothing_gives_reasons_and_no_scores(folder, tmp_path):
    rows = {"id": ["a", "b"], "prompt": ["tides?", "moon?"], "completion": ["moon", "sun"], "source": ["x", "x"]}
    generator = LocalGenerator(folder, max_new_tokens=4)
    writing = GeneratorModel(generator.generate, generator.name, settings={"max_new_tokens": 4})
    for model, rubric in [(writing, FOUR_AXES), (DigitModel(folder), ONE_DIGIT)]:
        with pytest.raises(TooManyRejects) as caught:
            rate(Dataset.from_dict(rows, features=LOADED), model, tmp_path / rubric.name, rubric=rubric)
        rated = caught.value.outcome.dataset
        reason = "reply is not JSON" if rubric is FOUR_AXES else "the model does not answer with a digit"
        assert rated["score"][:] == [None, None] and rated["rating_error"][:] == [reason] * 2


@pytest.mark.parametrize(
    ("texts", "length"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),  # one token is left over
        ([[1, 2, 3], [1]], 0),
        ([[1, 2, 3]], 0),  # a single text shares nothing
        ([[1, 5], [2, 5], [1, 6]], 0),
    ],
)
def test_common_start(texts, length):
    assert common_start(texts) == length
