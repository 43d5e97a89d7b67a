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
    a, b = (c.reshape(x, [n, *x.shape[-2:]]) for x in (a, b))
    if not one_by_one(n, a.shape[1], b.shape[2]):
        return c.reshape(c.op("matmul", a, b), c.shape)
    return c.reshape(join(c, [times(c, matrix(c, a, i), matrix(c, b, i)) for i in range(n)]), c.shape)


def one_by_one(n, rows, columns):
    """Whether the products of ``n`` matrices are better taken one by one, by the kernels of linear layers, which hold
    blocks of both in registers: of many rows they are, and each is a launch of its own."""
    return 1 < n <= 64 and rows >= 32 and rows * columns >= 4096


def matrix(c, x, i):
    """The matrix ``x[i]``."""
    return c.reshape(c.op("slice", x, 0, i, 1), x.shape[1:])


def times(c, a, b):
    """A product as linear layers have it: b's columns as rows."""
    return c.op("matmul", a, c.op("transpose", c.permute(b, [1, 0]), [1, 0]))


def join(c, matrices):
    """Matrices as one tensor (n, rows, columns), two and two."""
    parts = [c.reshape(m, [1, *m.shape]) for m in matrices]
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [c.op("concat", *pair, 0) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]


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

    def weights(scores, i=None):
        """Scores, of one head or of all, as what sums to 1."""
        scores = c.op("mul", scores, float(scale if scale is not None else 1 / math.sqrt(head)))
        if is_causal:
            to = c.op("reshape", c.op("iota", [keys], "i32"), [1, keys])
            at = c.op("reshape", c.op("iota", [rows], "i32"), [rows, 1])
            scores = c.op("select", c.op("le", to, at), scores, -math.inf)
        if mask is not None:
            own = matrix(c, mask, i) if i is not None and mask.ndim > 2 else mask
            scores = c.op("select", own, scores, -math.inf) if own.dtype == "bool" else c.op("add", scores, own)
        return softmax(c, scores, -1)

    n, groups = count(lead), count(k.shape[:-2])
    if one_by_one(n, rows, keys):
        q, k, v = (c.reshape(x, [count(x.shape[:-2]), *x.shape[-2:]]) for x in (q, k, v))
        heads = []
        for i in range(n):
            # Heads of one group lie beside each other.
            key, value = (matrix(c, x, i * groups // n) for x in (k, v))
            heads.append(times(c, weights(times(c, matrix(c, q, i), c.permute(key, [1, 0])), i), value))
        return c.reshape(join(c, heads), c.shape)
    if groups != n:
        k, v = (_repeat_heads(c, x, lead[-1]) for x in (k, v))
    q, k, v = (c.reshape(x, [n, *x.shape[-2:]]) for x in (q, k, v))
    scores = c.op("matmul", q, c.op("transpose", k, [0, 2, 1]))
    return c.reshape(c.op("matmul", weights(scores), v), c.shape)


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
