"""An encoder, a judge and a writer for runs in tests: deterministic, without torch, and they count what they do."""

from datasets import Dataset
from hashing_encoder import HashingEncoder

from hf_lmmixup.preparation import Tools
from hf_lmmixup.prompts import format_completion
from hf_lmmixup.records import RATED, Outcome, pair_text
from hf_lmmixup.writers import Writer


TOPICS = ("tides of the sea", "bread from yeast", "heat of engines", "roots of trees")


def raw_rows(numbers, topics=TOPICS):
    """Weak pairs on a few topics: rows of a topic share most of their words."""
    return [
        {
            "prompt": f"Tell me something about {topics[number % len(topics)]} please, case {number}",
            "completion": f"The {topics[number % len(topics)]} have number {number} and a cause.",
        }
        for number in numbers
    ]


def judge(rows: Dataset) -> Outcome:
    """Score 5 where the pair says `excellent`, no score where it says `unclear`, else 1."""
    texts = [pair_text(*pair) for pair in zip(rows["prompt"], rows["completion"], strict=True)]
    scores = [5 if "excellent" in text else None if "unclear" in text else 1 for text in texts]
    for name, values in (
        ("rating", [None] * len(rows)),
        ("score", scores),
        ("rating_error", [None if score else "unclear" for score in scores]),
    ):
        rows = rows.add_column(name, values, feature=RATED[name])
    return Outcome(rows)


class CopyingWriter:
    """Writes the first pair of a prompt down again; `asked` holds the prompts."""

    def __init__(self, answer=None):
        self.asked, self.answer = [], answer

    def generate(self, conversations, *, seeds=None, on_reply=None):
        replies = []
        for place, messages in enumerate(conversations):
            text = messages[-1]["content"]
            self.asked.append(text)
            start = text.index("Q: ")
            question, _, rest = text[start + 3 :].partition("\nA: ")
            answer = f"Q: {question}\nA: {rest.splitlines()[0]} excellent"
            replies.append(self.answer or format_completion("All ask the same.", answer))
            if on_reply is not None:
                on_reply(place, replies[-1])
        return replies


def tools(writer=None):
    """Encoder, judge and writer; `writer` is a `CopyingWriter` of which the calls shall be seen."""
    return Tools(HashingEncoder(), judge=judge, writer=Writer("copying", (writer or CopyingWriter()).generate))
