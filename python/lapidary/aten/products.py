"""Products, attention and convolutions of patches."""

import math

from .._errors import Error
from .reductions import affine, softmax
from .translator import count, operator


@operator("linear.default")
def _linear(c, x, weight, bias=None):
    return c.reshape(affine(c, _product(c, x, c.op("transpose", weight, [1, 0])), None, bias), c.shape)


def _product(c, x, w):
    """Rows, of however many axes, times a matrix: (rows, N)."""
    return c.op("matmul", c.reshape(x, [count(x.shape[:-1]), x.shape[-1]]), w)


@operator("mm.default")
def _mm(c, a, b):
    return c.op("matmul", a, b)


@operator("addmm.default")
def _addmm(c, bias, a, b, beta=1, alpha=1):
    if (beta, alpha) != (1, 1):
        raise Error(f"beta {beta} and alpha {alpha}: expected 1")
    return c.op("add", c.op("matmul", a, b), bias)


@operator("bmm.default", "matmul.default")
def _matmul(c, a, b):
    if a.ndim == 1:
        a = c.reshape(a, [1, a.shape[0]])
    if b.ndim == 1:
        b = c.reshape(b, [b.shape[0], 1])
    if b.ndim == 2:
        return c.reshape(_product(c, a, b), c.shape)
    if list(a.shape[:-2]) != list(b.shape[:-2]):
        return c.reshape(c.op("matmul", a, b), c.shape)
    n = count(a.shape[:-2])
    turned = c.is_turned(b)
    if turned:
        # As scores have it: keys as rows, and their transpose.
        b = c.permute(b, [*range(b.ndim - 2), b.ndim - 1, b.ndim - 2])
    a, b = (c.reshape(x, [n, *x.shape[-2:]]) for x in (a, b))
    return c.reshape(c.op("matmul", a, c.op("transpose", b, [0, 2, 1]) if turned else b), c.shape)


@operator("scaled_dot_product_attention.default")
def _attention(c, q, k, v, mask=None, dropout=0.0, is_causal=False, scale=None, enable_gqa=False):
    rows, head, keys = q.shape[-2], q.shape[-1], k.shape[-2]
    lead = list(q.shape[:-2])
    if not enable_gqa:
        k, v = (c.expand(x, [*lead, *x.shape[-2:]]) for x in (k, v))
    if mask is not None:
        whole = mask.ndim > 2 and count(mask.shape[:-2]) != 1
        mask = c.expand(mask, [*lead, *mask.shape[-2:]]) if whole else c.reshape(mask, mask.shape[-2:])
        mask = c.reshape(mask, [count(lead), *mask.shape[-2:]]) if whole else mask

    n, groups = count(lead), count(k.shape[:-2])
    if groups != n:
        k, v = (_repeat_heads(c, x, lead[-1]) for x in (k, v))
    q, k, v = (c.reshape(x, [n, *x.shape[-2:]]) for x in (q, k, v))
    scores = c.op("matmul", q, c.op("transpose", k, [0, 2, 1]))
    scores = c.op("mul", scores, float(scale if scale is not None else 1 / math.sqrt(head)))
    if is_causal:
        to = c.op("reshape", c.op("iota", [keys], "i32"), [1, keys])
        at = c.op("reshape", c.op("iota", [rows], "i32"), [rows, 1])
        scores = c.op("select", c.op("le", to, at), scores, -math.inf)
    if mask is not None:
        scores = c.op("select", mask, scores, -math.inf) if mask.dtype == "bool" else c.op("add", scores, mask)
    return c.reshape(c.op("matmul", softmax(c, scores, -1), v), c.shape)


def _repeat_heads(c, x, heads):
    """(B, G, S, D) as (B, heads, S, D), each group's rows for all of its heads."""
    b, groups, s, d = x.shape
    if b == 1:
        x = c.op("broadcast", c.reshape(x, [groups, 1, s, d]), [groups, heads // groups, s, d])
    else:
        x = c.op("broadcast", c.reshape(x, [b, groups, 1, s, d]), [b, groups, heads // groups, s, d])
    return c.reshape(x, [b, heads, s, d])


@operator("conv2d.default", "convolution.default")
def _conv2d(c, x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), *rest):
    n, channels, height, width = x.shape
    out, _, kh, kw = weight.shape
    groups = rest[-1] if rest else 1
    if list(stride) != [kh, kw] or any(padding) or groups != 1 or list(dilation) != [1, 1]:
        raise Error("expected patches: a stride as large as the kernel, no padding, one group")
    rows, columns = height // kh, width // kw
    if rows * kh != height or columns * kw != width:
        raise Error(f"expected whole patches, found {height} x {width} by {kh} x {kw}")
    x = c.reshape(x, [n, channels, rows, kh, columns, kw])
    x = c.reshape(c.permute(x, [0, 2, 4, 1, 3, 5]), [n * rows * columns, channels * kh * kw])
    w = c.op("transpose", c.reshape(weight, [out, channels * kh * kw]), [1, 0])
    y = c.reshape(affine(c, c.op("matmul", x, w), None, bias), [n, rows * columns, out])
    return c.reshape(c.permute(y, [0, 2, 1]), c.shape)
