"""Two attention heads that look at labels: what the tiny distiller has in place of a pretrained model's sense of form.

Which part of a completion comes next depends on two things alone: the last label before it, and all labels. A
pretrained model has heads that see them; from random ones they take more text to grow than a tiny model gets, so two
heads of the first layer are aimed, and held while the model reads::

    <think> ... </think> <answer> Q: Why do tides rise?      head 0 sees `Q:`, head 1 sees all of them

Embeddings of labels share a direction `u`, by the same length, and no other embedding has a part in it. The keys of
both heads are that coordinate, their queries are constant, and a rotary pair makes near labels win: the logit of a
label n tokens back is `LAST_LABEL * cos(RECENCY * n + RECENCY_PHASE)`. Training may move everything afterwards.

The idea of starting from attention patterns that training is known to find: arXiv 2305.09828.
"""

import math
from collections.abc import Sequence
from typing import Any


EMBEDDING_STD = 0.05
LABEL_WEIGHT = 1.5
"""How far a label's embedding goes in the direction that all labels share, against its own part."""
LAST_LABEL, ALL_LABELS = 320.0, 10.0
"""Attention logit of a label in the head that looks for the last one, and in the head that looks at all."""
RECENCY, RECENCY_PHASE = 0.0037, 0.5
"""Radians a token, and at distance 0, of the cosine that makes near labels win: it falls for 700 tokens."""
SEEN_WEIGHT = 1.5
"""Size of what a head reports, against the token's own embedding."""


class LabelHeads:
    """The first two heads of a model's first layer; both are drawn and aimed here.

    Args:
        model: A Qwen2 model with tied embeddings. Its embeddings are drawn anew.
        labels: Token ids of the labels.
        rotary_base: Base of its rotary positions.
    """

    def __init__(self, model: Any, labels: Sequence[int], rotary_base: float) -> None:
        import torch

        self.layer, self.labels = model.model.layers[0], list(labels)
        self.embedding = model.model.embed_tokens.weight
        self.width = model.config.hidden_size // model.config.num_attention_heads
        frequencies = rotary_base ** (-torch.arange(self.width // 2) / (self.width // 2))
        near = int((frequencies - RECENCY).abs().argmin())
        self.heads = ((LAST_LABEL, near, RECENCY_PHASE, 1.0), (ALL_LABELS, self.width // 2 - 1, 0.0, 2.0))
        size, attention = model.config.hidden_size, self.layer.self_attn
        with torch.no_grad():
            self.direction = torch.nn.functional.normalize(torch.randn(size), dim=0)
            self.embedding.normal_(0, EMBEDDING_STD)
            self.embedding[model.config.pad_token_id] = 0
            for head, (*_, seen) in enumerate(self.heads):
                own = slice(head * self.width, (head + 1) * self.width)
                attention.v_proj.weight[own] = torch.linalg.qr(torch.randn(size, self.width))[0].T
                attention.o_proj.weight[:, own] = torch.linalg.qr(torch.randn(size, self.width))[0] * (
                    EMBEDDING_STD * SEEN_WEIGHT * seen
                )
        self.aim()

    def aim(self) -> None:
        """Set queries, keys and the labels' embeddings to the pattern; all else stays as it was learned."""
        import torch

        attention, embedding, direction = self.layer.self_attn, self.embedding, self.direction
        with torch.no_grad():
            embedding -= (embedding @ direction)[:, None] * direction
            length = embedding.norm(dim=1).mean()
            embedding[self.labels] *= length / embedding[self.labels].norm(dim=1, keepdim=True)
            embedding[self.labels] += LABEL_WEIGHT * length * direction
            # After the layer's normalization this is 1 for a label and 0 for any other token.
            scale = (1 + LABEL_WEIGHT**2) ** 0.5 / (LABEL_WEIGHT * len(direction) ** 0.5)
            coordinate = scale * direction / self.layer.input_layernorm.weight
            for head, (logit, pair, phase, _) in enumerate(self.heads):
                own = slice(head * self.width, (head + 1) * self.width)
                first, second = own.start + pair, own.start + pair + self.width // 2
                strength = (logit * self.width**0.5) ** 0.5
                for projection in (attention.q_proj, attention.k_proj):
                    projection.weight[own], projection.bias[own] = 0, 0
                attention.q_proj.bias[first] = strength
                attention.k_proj.weight[first] = coordinate * strength * math.cos(phase)
                attention.k_proj.weight[second] = -coordinate * strength * math.sin(phase)
