"""Seven modules in PyTorch, written as one writes them: what exports, their tests and timings are made of.

``MODULES`` has of each its class, and what makes its inputs for a number of rows.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Mlp(nn.Module):
    """Two layers with LayerNorm before and ReLU between."""

    def __init__(self, width=64, hidden=128):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(F.relu(self.up(self.norm(x))))


class Gpt2Block(nn.Module):
    """A block of GPT-2: causal attention and an MLP with GELU (tanh), LayerNorm before each."""

    def __init__(self, width=64, heads=4):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_out = nn.Linear(4 * width, width)

    def forward(self, x):
        batch, rows, width = x.shape
        parts = self.c_attn(self.ln_1(x)).split(width, dim=2)
        q, k, v = (p.view(batch, rows, self.heads, width // self.heads).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(batch, rows, width))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class RmsNorm(nn.Module):
    """RMSNorm as Llama writes it."""

    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class LlamaBlock(nn.Module):
    """A block of Llama: RMSNorm, RoPE, grouped-query attention, an MLP gated by SiLU."""

    def __init__(self, width=64, heads=4, groups=2, hidden=160, base=10000.0):
        super().__init__()
        self.heads, self.groups, self.head = heads, groups, width // heads
        self.input_layernorm = RmsNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, groups * self.head, bias=False)
        self.v_proj = nn.Linear(width, groups * self.head, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.post_attention_layernorm = RmsNorm(width)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.register_buffer("inv_freq", base ** (-torch.arange(0, self.head, 2) / self.head))

    def rope(self, x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-b, a), dim=-1) * sin

    def forward(self, x):
        batch, rows, width = x.shape
        angles = torch.outer(torch.arange(rows).float(), self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        h = self.input_layernorm(x)
        q = self.rope(self.q_proj(h).view(batch, rows, self.heads, self.head).transpose(1, 2), cos, sin)
        k = self.rope(self.k_proj(h).view(batch, rows, self.groups, self.head).transpose(1, 2), cos, sin)
        v = self.v_proj(h).view(batch, rows, self.groups, self.head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(batch, rows, width))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class GatedConv(nn.Module):
    """A causal convolution of three taps as a product, gated by a sigmoid."""

    def __init__(self, width=64, taps=3):
        super().__init__()
        self.taps = taps
        self.mix = nn.Linear(taps * width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        rows = x.shape[1]
        padded = F.pad(x, (0, 0, self.taps - 1, 0))
        taps = torch.cat([padded[:, i : i + rows] for i in range(self.taps)], dim=-1)
        value, gate = self.mix(taps).chunk(2, dim=-1)
        return x + self.out(value * torch.sigmoid(gate))


class VitBlock(nn.Module):
    """Patches of an image embedded by a convolution, and one block of a vision transformer over them."""

    def __init__(self, width=64, heads=4, patch=4, channels=3, patches=16):
        super().__init__()
        self.heads = heads
        self.patch_embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches, width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, image):
        x = self.patch_embed(image).flatten(2).transpose(1, 2) + self.pos_embed
        batch, rows, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, rows, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, rows, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Recurrent(nn.Module):
    """One step of two recurrent layers, each with a leak of its own."""

    def __init__(self, width=64):
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.states = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.leaks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x, first, second):
        states = []
        for layer, state in enumerate([first, second]):
            leak = torch.sigmoid(self.leaks[layer](x))
            new = torch.tanh(self.inputs[layer](x) + self.states[layer](state))
            x = leak * state + (1 - leak) * new
            states.append(x)
        return x, *states


class BertSelfAttention(nn.Module):
    """BERT's self-attention with a mask that is added, its output layer and norm."""

    def __init__(self, width=64, heads=4):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, mask):
        batch, rows, width = x.shape
        q, k, v = (
            p(x).view(batch, rows, self.heads, width // self.heads).transpose(1, 2)
            for p in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5 + mask[:, None, None, :]
        y = scores.softmax(dim=-1) @ v
        y = y.transpose(1, 2).reshape(batch, rows, width)
        return self.norm(self.dense(y) + x)


def rows_of(width):
    """Inputs of rows alone."""
    return lambda rows: (torch.randn(1, rows, width),)


def bert(width):
    """Rows, and a mask of which the last quarter is hidden."""

    def inputs(rows):
        mask = torch.zeros(1, rows)
        mask[:, rows - rows // 4 :] = -10000.0
        return torch.randn(1, rows, width), mask

    return inputs


#: Of each module by its name: how it is made of a width, and its inputs of a number of rows.
MODULES = {
    "mlp": (lambda width: Mlp(width, 2 * width), rows_of),
    "gpt2": (Gpt2Block, rows_of),
    "llama": (lambda width: LlamaBlock(width, hidden=width * 5 // 2), rows_of),
    "gated_conv": (GatedConv, rows_of),
    "vit": (VitBlock, lambda width: lambda rows: (torch.randn(1, 3, 16, rows),)),
    "recurrent": (Recurrent, lambda width: lambda rows: tuple(torch.randn(rows, width) for _ in range(3))),
    "bert": (BertSelfAttention, bert),
}


def make(name, width, rows, seed=0):
    """A module of random weights, not to be trained, and inputs."""
    torch.manual_seed(seed)
    module, inputs = MODULES[name]
    if name == "vit":
        # A strip of an image, four patches high, so that there are as many patches as rows.
        module = VitBlock(width, patches=max(rows, 4))
        return module.eval(), (torch.randn(1, 3, 16, max(rows, 4)),)
    module = module(width).eval()
    for parameter in module.parameters():
        if parameter.ndim == 1:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module, inputs(width)(rows)
