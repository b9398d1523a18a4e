"""Rows of different lengths one behind the other, so that no linear layer ever computes a padded token.

Only attention has to know where a row ends: it is given a `Layout`, and computes rows of equal length together, on a
GPU those of similar length too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from core.device import sent

NAME = "lethe_packed"

# Rows share one attention call while padding them to the longest makes the call at most this much larger. A CPU is
# done with a row sooner than with laying it out anew; on a GPU every call costs the same few microseconds.
_WASTE = {"cpu": 1.0, "cuda": 1.5}
# What flash attention takes: multiples of 8 up to this.
_LARGEST_HEAD = 256


@dataclass(frozen=True)
class Group:
    """Rows that attention computes together: `rows` x `width`, `tokens` of it real, at the places `at`."""

    rows: int
    width: int
    tokens: int
    at: Tensor | None  # (tokens,) of rows * width; None where every row is `width` long


@dataclass(frozen=True)
class Layout:
    """How long the rows of a packed line are. Each kind of kernel is told so in its own way, and only when it asks.

    Where rows share beginnings, the line holds fewer tokens than its rows: attention alone works on rows written out.
    """

    lengths: tuple[int, ...]  # ascending
    device: torch.device
    source: Tensor | None = None  # (tokens of all rows,) the place in the line of each; None: they are the line
    target: Tensor | None = None  # (tokens of the line,) one place of each in the rows written out

    @cached_property
    def written_out(self) -> "Layout":
        """The layout of the rows written out, none of which shares a token with another."""
        return Layout(self.lengths, self.device)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.lengths[-1]

    @cached_property
    def ends(self) -> Tensor:
        """Cumulative lengths from 0: (rows + 1,) int32."""
        return sent(torch.tensor([0, *self.lengths]).cumsum(0).to(torch.int32), self.device)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The rows in the groups that are computed together, in their order."""
        waste = _WASTE.get(self.device.type, 1.0)
        cut: list[list[int]] = []
        for length in self.lengths:
            if cut and (len(cut[-1]) + 1) * length <= waste * (sum(cut[-1]) + length):
                cut[-1].append(length)
            else:
                cut.append([length])
        return tuple(_group(part, self.device) for part in cut)


def _group(lengths: Sequence[int], device: torch.device) -> Group:
    width = lengths[-1]
    if lengths[0] == width:
        return Group(len(lengths), width, sum(lengths), None)
    at = torch.cat([torch.arange(i * width, i * width + n) for i, n in enumerate(lengths)])
    return Group(len(lengths), width, sum(lengths), sent(at, device))


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Layout | None = None,
    is_causal: bool | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row of a packed line; what transformers' attention interface asks for.

    query: (1, heads, tokens, size), key and value: (1, key-value heads, tokens, size); gives (1, tokens, heads, size).
    Without a layout each line is one row, padded on the right where at all; there is neither a mask nor a cache.
    Raises NotImplementedError for what is not done here, so that a model that needs it is run padded instead.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if position_bias is not None or s_aux is not None or not causal:
        raise NotImplementedError("attention with a position bias, with sinks or in both directions is not packed")
    if packed is None and (attention_mask is not None or query.shape[2] != key.shape[2]):
        raise NotImplementedError("packed attention takes neither a mask nor a cache: see forward.generating")
    if value.dtype == torch.bfloat16 and value.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # A processor's attention kernels take several times as long in bf16 as in fp32.
        with torch.autocast("cpu", enabled=False):
            widened = query.float(), key.float(), value.float()
            return _attended(*widened, packed, scaling, sliding_window, softcap).to(value.dtype), None
    # Under autocast rotary embeddings, whose cosines are fp32, leave queries and keys in fp32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return _attended(query, key, value, packed, scaling, sliding_window, softcap), None


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Layout | None,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`attend` of queries, keys and values in one number format."""
    repeat = query.shape[1] // key.shape[1]
    if packed is None:
        key, value = _repeated(key, repeat), _repeated(value, repeat)
        return _causal(query, key, value, scaling, window, softcap).transpose(1, 2)
    if packed.source is not None and packed.target is not None:
        query, key, value = (t.index_select(2, packed.source) for t in (query, key, value))
        apart = _attended(query, key, value, packed.written_out, scaling, window, softcap)
        return apart.index_select(1, packed.target)
    if query.is_cuda and softcap is None:
        out = _varlen(query, key, value, packed, scaling, window)
        if out is not None:
            return out
    lines = [t[0].transpose(0, 1) for t in (query, key, value)]
    parts = [line.split([g.tokens for g in packed.groups]) for line in lines]
    made = []
    for group, *of_group in zip(packed.groups, *parts, strict=True):
        q, k, v = (_spread(part, group) for part in of_group)
        out = _causal(q, _repeated(k, repeat), _repeated(v, repeat), scaling, window, softcap)
        made.append(_gathered(out, group))
    return torch.cat(made)[None]


def _repeated(line: Tensor, repeat: int) -> Tensor:
    """Key or value heads once for each query head that shares them: (rows, heads, width, size)."""
    return line if repeat == 1 else line.repeat_interleave(repeat, 1)


def _spread(line: Tensor, group: Group) -> Tensor:
    """(tokens, heads, size) to (rows, heads, width, size), zeros where a row is shorter."""
    if group.at is not None:
        line = line.new_zeros(group.rows * group.width, *line.shape[1:]).index_copy(0, group.at, line)
    rows: Tensor = line.unflatten(0, (group.rows, group.width))
    return rows.transpose(1, 2)


def _gathered(out: Tensor, group: Group) -> Tensor:
    """The inverse of `_spread`."""
    line = out.transpose(1, 2).flatten(0, 1)
    return line if group.at is None else line.index_select(0, group.at)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of rows padded on the right, where no real position sees padding."""
    width = q.shape[2]
    if softcap is None and (window is None or window >= width):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    apart = torch.arange(width, device=q.device)
    apart = apart[:, None] - apart[None, :]
    seen = apart >= 0 if window is None else (apart >= 0) & (apart < window)
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    return torch.softmax(scores.masked_fill(~seen, float("-inf")), -1, dtype=torch.float32).to(v.dtype) @ v


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, packed: Layout, scaling: float | None, window: int | None
) -> Tensor | None:
    """Flash attention by row boundaries, where device, number format and head size allow it; else None.

    Its backward pass is repeatable to the bit only while torch.use_deterministic_algorithms is on and not `warn_only`.
    """
    if query.dtype not in (torch.bfloat16, torch.float16) or torch.cuda.get_device_capability(query.device) < (8, 0):
        return None
    # `twice_differentiable` switches flash attention off, which this kernel would not hear of.
    if not torch.backends.cuda.flash_sdp_enabled():
        return None
    if query.shape[-1] != value.shape[-1] or query.shape[-1] % 8 or query.shape[-1] > _LARGEST_HEAD:
        return None
    repeat = query.shape[1] // key.shape[1]
    q, k, v = (t[0].transpose(0, 1) for t in (query, _repeated(key, repeat), _repeated(value, repeat)))
    # A window counts the tokens seen, the kernel those to the left.
    seen = (-1 if window is None else window - 1, 0)
    out = varlen_attn(
        q, k, v, packed.ends, packed.ends, packed.longest, packed.longest, scale=scaling, window_size=seen
    )
    assert isinstance(out, Tensor)
    return out[None]


AttentionInterface.register(NAME, attend)
