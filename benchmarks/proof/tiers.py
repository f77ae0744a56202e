"""How large each tier is: `smoke` checks the machinery, `small` answers the question, `full` takes hours."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tier:
    """Sizes of one run.

    Attributes:
        seeds: Worlds, each with characters, noise and students of its own.
        characters: Characters of a world.
        rated: Teaching characters whose rows make the datastore.
        width: Of the distiller.
        layers: Of the distiller.
        documents: Short documents that the distiller reads.
        reading_steps: Optimizer steps of that.
        clusters: Teaching clusters.
        sft_steps: Steps of `trl sft`.
        grpo_steps: Steps of `trl grpo`; 0: none.
        student_width: Of the students.
        student_layers: Of the students.
        schooling: Characters that a student reads about before it is taught.
        pretraining_tokens: How much it reads of that.
        student_tokens: Budget of each arm.
        long_raw: The raw arm is also run with this multiple of the budget; 0: it is not.
        step_tokens: Tokens of an optimizer step.
        examinations: On the way, the last one included.
    """

    seeds: int = 3
    characters: int = 200
    rated: int = 100
    width: int = 128
    layers: int = 2
    documents: int = 6000
    reading_steps: int = 800
    clusters: int = 6000
    sft_steps: int = 600
    grpo_steps: int = 20
    student_width: int = 96
    student_layers: int = 2
    schooling: int = 150
    pretraining_tokens: int = 500_000
    student_tokens: int = 500_000
    long_raw: int = 3
    step_tokens: int = 1024
    examinations: int = 8


TIERS = {
    "smoke": Tier(
        seeds=1,
        characters=24,
        rated=24,
        width=64,
        documents=200,
        reading_steps=20,
        clusters=64,
        sft_steps=4,
        grpo_steps=0,
        student_width=64,
        schooling=24,
        pretraining_tokens=20_000,
        student_tokens=20_000,
        long_raw=0,
        examinations=2,
    ),
    "small": Tier(),
    "full": Tier(
        seeds=5,
        characters=260,
        width=192,
        layers=3,
        documents=20_000,
        reading_steps=4000,
        clusters=20_000,
        sft_steps=3000,
        grpo_steps=150,
        student_width=128,
        pretraining_tokens=2_000_000,
        student_tokens=2_000_000,
        long_raw=5,
        examinations=12,
    ),
}
