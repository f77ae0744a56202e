"""Cross-entropy of mixed hidden states against two targets each, without the logits of all positions at once.

For one mixed state z = lambda*h_c + (1-lambda)*h_u with targets y_c and y_u, the loss against the mixed one-hot label
is linear in the label, so no soft label over the vocabulary is ever built (SFTMix, arXiv 2410.05248)::

    lambda*CE(z, y_c) + (1-lambda)*CE(z, y_u)  =  logsumexp(Wz) - lambda*(Wz)[y_c] - (1-lambda)*(Wz)[y_u]

Example: with logits Wz = [2, 0, 1], lambda = 0.75, y_c = 0 and y_u = 2 the loss is
2.4076 - 0.75*2 - 0.25*1 = 0.6576.

The gradient is known as soon as the logits of a chunk are, so it is taken in the same pass: three matrix products per
chunk instead of the four of a recomputing backward, and no logits outlive their chunk. With a frozen head (LoRA) it is
two.
"""

import torch
from torch import Tensor


CHUNK_ELEMENTS, CHUNK_ELEMENTS_CUDA = 1 << 25, 1 << 27
"""Logits held at once: 128 MiB in float32. On a GPU four times as many (880 positions of a vocabulary of 152,000):
every chunk reads and writes the whole gradient of the head, so there should be few. TRL's own tiles are as large."""

WIDE_PRODUCTS = torch.torch_version.TorchVersion(torch.__version__) >= "2.8"
"""Whether `torch.addmm` knows `out_dtype`: products of bfloat16 summed in float32 without a copy."""


def mixed_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_elements: int | None = None,
) -> Tensor:
    """Sum over positions of the cross-entropy against two targets.

    Args:
        hidden: (m, h) mixed hidden states.
        weight: (v, h) language-model head.
        bias: (v,) or `None`.
        targets: (m, 2) token ids.
        shares: (m, 2) shares of the two targets, [lambda, 1 - lambda] per position; no gradient flows into them.
        scale: Factor on the logits, for architectures that have one.
        softcap: Cap c of `c * tanh(logits / c)`, for architectures that have one.
        chunk_elements: Largest number of logits to hold at once; a default for the device if absent.

    Returns:
        Scalar, float32 or wider. Its gradient can be taken once.
    """
    chunk = chunk_elements or (CHUNK_ELEMENTS_CUDA if hidden.is_cuda else CHUNK_ELEMENTS)
    return _MixedCrossEntropy.apply(hidden, weight, bias, targets, shares, scale, softcap, chunk)


def logit_transform(config: object) -> tuple[float, float | None]:
    """The factor and the softcap that an architecture applies to its logits, under whichever name its config has.

    Args:
        config: The text config of a causal language model.

    Returns:
        (scale, softcap); (1.0, None) for most architectures.
    """
    softcap = getattr(config, "final_logit_softcapping", None)
    # Cohere, Muse Glimmer and Falcon-H1 multiply; Granite and MiniCPM3 divide, HyperCLOVA X multiplies by that name.
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value), softcap
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0, softcap
    multiplies = getattr(config, "model_type", "") == "hyperclovax"
    return (float(scaling) if multiplies else 1.0 / float(scaling)), softcap


class _MixedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: "torch.autograd.function.FunctionCtx",
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shares: Tensor,
        scale: float,
        softcap: float | None,
        chunk_elements: int,
    ) -> Tensor:
        device = hidden.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wide = torch.promote_types(hidden.dtype, torch.float32)
        wants = ctx.needs_input_grad  # type: ignore[attr-defined]
        grads = [
            torch.zeros(tensor.shape, dtype=wide, device=tensor.device) if wanted and tensor is not None else None
            for tensor, wanted in zip((hidden, weight, bias), wants, strict=False)
        ]
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        rows = max(1, chunk_elements // weight.shape[0])
        with torch.autocast(device, enabled=False):
            head = weight.detach().to(half)
            for start in range(0, hidden.shape[0], rows):
                part = slice(start, start + rows)
                states = hidden[part].detach().to(half)
                logits = (states @ head.t()).to(wide)
                if bias is not None:
                    logits += bias.detach()
                loss += _loss_to_gradient(logits, targets[part], shares[part].to(wide), scale, softcap)
                _accumulate(grads, part, logits.to(half), states, head)
        inputs = (hidden, weight, bias)
        ctx.grads = [  # type: ignore[attr-defined]
            None if grad is None or tensor is None else grad.to(tensor.dtype)
            for grad, tensor in zip(grads, inputs, strict=True)
        ]
        return loss

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *grad_outputs: Tensor) -> tuple:
        grads = ctx.grads  # type: ignore[attr-defined]
        if grads is None:
            raise RuntimeError("The gradient of mixed_cross_entropy can be taken once; compute the loss again.")
        ctx.grads = None  # type: ignore[attr-defined]
        # In place: the gradient of the head is as large as the head.
        scaled = [None if grad is None else grad.mul_(grad_outputs[0].to(grad.dtype)) for grad in grads]
        return (*scaled, None, None, None, None, None)


def _loss_to_gradient(logits: Tensor, targets: Tensor, shares: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Turn logits (n, v) into the gradient of their summed loss, in place, and return that sum."""
    slope = None
    if scale != 1.0:
        logits *= scale
    if softcap is not None:
        logits.div_(softcap).tanh_()
        slope = 1 - logits.square()
        logits *= softcap
    chosen = (logits.gather(1, targets) * shares).sum()
    largest = logits.amax(1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    loss = (total.log() + largest).sum() - chosen
    logits.div_(total)
    logits.scatter_add_(1, targets, -shares)
    if slope is not None:
        logits *= slope
    if scale != 1.0:
        logits *= scale
    return loss


def _accumulate(grads: list[Tensor | None], part: slice, gradient: Tensor, states: Tensor, head: Tensor) -> None:
    for_hidden, for_weight, for_bias = grads
    if for_hidden is not None:
        _add_product(for_hidden[part], gradient, head)
    if for_weight is not None:
        _add_product(for_weight, gradient.t(), states)
    if for_bias is not None:
        for_bias += gradient.sum(0, dtype=for_bias.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right in the width of `total`: rounding every chunk to bfloat16 before the sum would add bias."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda and WIDE_PRODUCTS:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
