"""How large each tier is: `smoke` checks the machinery, `small` answers the question, `full` takes hours."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tier:
    """Sizes of one run.

    Attributes:
        seeds: Worlds, each with characters, noise and trainings of its own.
        characters: Characters of a world.
        rated: Teaching characters whose rows make the datastore.
        invented: Characters that nobody has defined, which the distiller reads about beside the others.
        width: Of the distiller.
        layers: Pairs of layers of the distiller.
        documents: Short documents that the distiller reads.
        reading_steps: Optimizer steps of that.
        clusters: Teaching clusters.
        sft_steps: Steps of `trl sft`.
        grpo_steps: Steps of `trl grpo`; 0: none.
        student_width: Of the students.
        student_layers: Pairs of layers of the students.
        schooling: Characters that the student reads about before it is taught.
        pretraining_tokens: How much it reads of that.
        student_tokens: Budget of each arm; in `small` three passes over the raw pool, as is usual.
        long_raw: The raw arm is also run with this multiple of the budget; 0: it is not.
        step_tokens: Tokens of an optimizer step.
        examinations: On the way, the last one included.
    """

    seeds: int = 5
    characters: int = 60
    rated: int = 100
    invented: int = 15_000
    width: int = 128
    layers: int = 2
    documents: int = 9000
    reading_steps: int = 900
    clusters: int = 6400
    sft_steps: int = 400
    grpo_steps: int = 30
    student_width: int = 96
    student_layers: int = 2
    schooling: int = 400
    pretraining_tokens: int = 1_500_000
    student_tokens: int = 64_000
    long_raw: int = 3
    step_tokens: int = 1024
    examinations: int = 6


TIERS = {
    "smoke": Tier(
        seeds=1,
        characters=24,
        rated=24,
        invented=100,
        width=64,
        documents=200,
        reading_steps=20,
        clusters=64,
        sft_steps=4,
        grpo_steps=1,
        student_width=64,
        schooling=24,
        pretraining_tokens=20_000,
        student_tokens=20_000,
        long_raw=0,
        examinations=2,
    ),
    "small": Tier(),
    "full": Tier(
        characters=120,
        invented=40_000,
        width=192,
        documents=30_000,
        reading_steps=4000,
        clusters=40_000,
        sft_steps=2500,
        grpo_steps=150,
        student_width=128,
        schooling=1000,
        pretraining_tokens=8_000_000,
        student_tokens=130_000,
        long_raw=5,
        examinations=12,
    ),
}
