"""A dino.txt in PyTorch to compare with: the published architecture with released names.

Only benchmarks use it. Attention is torch's own `scaled_dot_product_attention`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-5


class Attention(nn.Module):
    """Self-attention with a fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b n d] to [b n d]."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(attended.transpose(1, 2).flatten(2))


class SwiGlu(nn.Module):
    """silu(w1 x) * w2 x, then w3."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b n d] to [b n d]."""
        return self.w3(functional.silu(self.w1(x)) * self.w2(x))


class Mlp(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b n d] to [b n d]."""
        return self.fc2(functional.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b n d] to [b n d]."""
        return x * self.gamma


class HeadBlock(nn.Module):
    """A block in the vision head."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, EPSILON) for _ in range(2))
        self.attn, self.mlp = Attention(width, heads, causal=False), SwiGlu(width, hidden)
        self.ls1, self.ls2 = (LayerScale(width, 0.1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b n d] to [b n d]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionHead(nn.Module):
    """Two blocks on the backbone's tokens; the descriptor is [class; mean patch]."""

    def __init__(self, width: int, heads: int, hidden: int, registers: int):
        super().__init__()
        self.first_patch = 1 + registers
        self.block_list = nn.ModuleList(HeadBlock(width, heads, hidden) for _ in range(2))
        self.ln_final = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b n d] to [b 2d]."""
        for block in self.block_list:
            x = block(x)
        x = self.ln_final(x)
        return torch.cat([x[:, 0], x[:, self.first_patch :].mean(1)], dim=-1)


class TextBlock(nn.Module):
    """A block in the text transformer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm, self.ffn_norm = (nn.LayerNorm(width, EPSILON) for _ in range(2))
        self.attention, self.feed_forward = Attention(width, heads, causal=True), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b l w] to [b l w]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class TextBackbone(nn.Module):
    """Embeddings, causal blocks, final norm."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context, width))
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.ln_final = nn.LayerNorm(width, EPSILON)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps [b l] to [b l w]."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x)


class TextEncoder(nn.Module):
    """The text transformer with a projection, read at the first end-of-text."""

    def __init__(self, backbone: TextBackbone, width: int, embed_dim: int):
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict({"linear_projection": nn.Linear(width, embed_dim, bias=False)})

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps [b l] to [b D]."""
        x = self.backbone(tokens)
        x = x[torch.arange(len(x)), tokens.argmax(-1)]
        return self.head["linear_projection"](x)


class DinoTxt(nn.Module):
    """The trained parts: computes a batch's loss from backbone tokens and captions."""

    def __init__(self, head: VisionHead, text: TextEncoder):
        super().__init__()
        self.head, self.text = head, text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image_tokens: Tensor, text_tokens: Tensor) -> Tensor:
        """Computes the softmax contrastive loss."""
        image = functional.normalize(self.head(image_tokens), dim=-1)
        text = functional.normalize(self.text(text_tokens), dim=-1)
        logits = self.logit_scale.exp() * image @ text.T
        target = torch.arange(len(logits))
        return (
            functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        ) / 2


def optimizer(model: DinoTxt, rate: float) -> torch.optim.Optimizer:
    """Creates the recipe's AdamW, which decays arrays with two or more dimensions."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), eps=1e-8, fused=True)
