"""The same generator on the paged scheduler of `transformers` (`generate_batch`): for GPUs, where it fills the device.

Rows share one paged cache and enter and leave at every step without being moved. On a CPU that bookkeeping costs more
than it saves (benchmarks/generation.py prints both rates for the device it runs on), and the scheduler has no way to
settle near ties: **greedy text may depend on the other rows of a batch** in bfloat16. Take `LocalGenerator` where the
same bytes for any batch matter, and this one where only the rate does. One call::

    PagedGenerator("Qwen/Qwen2.5-1.5B-Instruct").generate(conversations)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_lmmixup.generation import LocalGenerator, Row


POLL_SECONDS = 1.0
"""How long to wait for a result before looking whether the scheduler still runs."""


CPU_BLOCKS = 16
"""Blocks of 256 tokens for a row, and no more rows than `batch_size`, on a CPU; the scheduler would otherwise take
most of the machine's memory, as it does with a GPU's."""


class PagedGenerator(LocalGenerator):
    """A `LocalGenerator` whose greedy calls run on the paged scheduler; arguments as there.

    Rows that are asked again with a seed are few, and the scheduler knows no seed of a row: those run as in
    `LocalGenerator`.

    Raises:
        ValueError: With `no_repeat_ngram_size`, which the scheduler does not know.
    """

    def __init__(self, model_path: str | Path, **options: Any) -> None:
        if options.get("no_repeat_ngram_size"):
            raise ValueError("The paged scheduler does not know no_repeat_ngram_size. Use LocalGenerator.")
        super().__init__(model_path, **options)

    def _write(self, waiting: list[Row], take: Callable[[int, str | None], None]) -> None:
        if not waiting or waiting[0].seed is not None:
            super()._write(waiting, take)
            return
        from transformers import ContinuousBatchingConfig, GenerationConfig

        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=sorted(self._ends),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        limits: dict[str, Any] = {}
        if self.device == "cpu":
            limits = {"num_blocks": CPU_BLOCKS * self.batch_size, "max_requests_per_batch": self.batch_size}
        scheduler = ContinuousBatchingConfig(**limits)
        by_name = {f"row-{row.place}": row for row in waiting}
        opened = self.model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=scheduler
        )
        with opened as manager:
            for name, row in by_name.items():
                manager.add_request(row.prompt, request_id=name, max_new_tokens=row.limit)
            while by_name:
                output = manager.get_result(timeout=POLL_SECONDS)
                if output is None and not manager.is_running():
                    raise RuntimeError("The paged scheduler stopped. Use LocalGenerator, which shows the cause.")
                if output is None or not output.is_finished():
                    continue
                if output.error:
                    raise RuntimeError(f"The paged scheduler failed on a row: {output.error}. Use LocalGenerator.")
                row = by_name.pop(output.request_id)
                row.written = list(output.generated_tokens)
                take(row.place, self._text(row))
