"""4-bit models (QLoRA, arXiv 2305.14314): right gradients after an evaluation, and adapters merged without loss.

Two traps of bitsandbytes and what is done about them:

* On processors with AVX512_BF16, the first forward pass in evaluation mode (bitsandbytes 0.50, `Linear4bit.forward`)
  lays the weights out anew, and training then goes on with that layout as if it were the old one: wrong gradients, a
  crash, or a merged model of noise. `keep_layout` switches this off, layer by layer.
* An adapter learns beside weights that were rounded to 4 bits. Merged into the weights as they were before, it meets
  others than it was trained with. `merge_adapter` undoes the rounding of exactly those values instead::

      largest difference of logits, tiny Qwen2:   merged here 1e-6    merged into the unrounded model 0.28
"""

from pathlib import Path
from typing import Any


QLORA_EXTRA = 'Models in 4 bits need bitsandbytes: pip install "hf-lmmixup[qlora]".'


def keep_layout(model: Any) -> int:
    """Keep the 4-bit layers of a model in the layout that training reads, whatever runs in between.

    Args:
        model: A torch module, before its first forward pass in evaluation mode.

    Returns:
        How many 4-bit layers there are; 0 for a model that is not quantized.

    Raises:
        ImportError: If bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError as error:
        raise ImportError(QLORA_EXTRA) from error
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def merge_adapter(
    adapter: str | Path, base: str, target: str | Path, *, quantization_config: Any = None, dtype: str = "float32"
) -> Path:
    """Write a whole model: the base as the adapter knew it, plus the adapter. Needs 4 bytes of RAM for each weight.

    Args:
        adapter: Folder of the adapter.
        base: Folder or Hub id of the model that it was trained on.
        target: The model folder to write.
        quantization_config: How the base was quantized in training; `None` for an adapter on unrounded weights.
        dtype: Of the weights that are written.

    Returns:
        The folder.

    Raises:
        ImportError: If torch, transformers, peft or bitsandbytes is not installed.
    """
    try:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError(QLORA_EXTRA) from error

    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization_config, dtype=torch.float32, device_map={"": "cpu"}
    )
    if quantization_config is not None:
        model = model.dequantize(dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, dtype)).save_pretrained(target)
    has_tokenizer = (Path(adapter) / "tokenizer_config.json").is_file()
    AutoTokenizer.from_pretrained(adapter if has_tokenizer else base).save_pretrained(target)
    return Path(target)
