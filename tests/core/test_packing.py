"""Attention on packed rows is attention on each row alone, for every form of it that a family asks for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core import packing
from core.packing import Layout, attend

CPU = torch.device("cpu")
LENGTHS = (3, 3, 7, 8, 13)
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scaling": 0.11},
    "window": {"sliding_window": 4},
    "window of one": {"sliding_window": 1},
    "window longer than any row": {"sliding_window": 50},
    "capped": {"softcap": 0.7},
    "capped, scaled, window": {"softcap": 0.7, "scaling": 0.4, "sliding_window": 5},
}


def _lines(shared: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of four over `shared`: (1, heads, tokens, 8)."""
    generator = torch.Generator().manual_seed(seed)
    heads = (4, 4 // shared, 4 // shared)
    q, k, v = (torch.randn(1, h, sum(LENGTHS), 8, generator=generator) for h in heads)
    return q, k, v


def _alone(
    q: Tensor, k: Tensor, v: Tensor, *, scaling: float = 8**-0.5, sliding_window: int = 99, softcap: float = 1e9
) -> np.ndarray:
    """What attention is, row by row and head by head in float64: (tokens, heads, size)."""
    out = np.zeros((sum(LENGTHS), 4, 8))
    shared = 4 // k.shape[1]
    begin = 0
    for length in LENGTHS:
        for head in range(4):
            rows = slice(begin, begin + length)
            a = q[0, head, rows].double().numpy()
            b, c = (t[0, head // shared, rows].double().numpy() for t in (k, v))
            scores = np.tanh(a @ b.T * scaling / softcap) * softcap
            for i in range(length):
                first = max(0, i - sliding_window + 1)
                weights = np.exp(scores[i, first : i + 1])
                out[begin + i, head] = weights / weights.sum() @ c[first : i + 1]
        begin += length
    return out


@pytest.mark.parametrize("waste", [1.0, 1.5, 9.0])
@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_packed_attention_is_attention_in_each_row_alone(
    form: str, shared: int, waste: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing._WASTE, "cpu", waste)
    q, k, v = _lines(shared)
    out, _ = attend(torch.nn.Identity(), q, k, v, None, packed=Layout(tuple(LENGTHS), CPU), **FORMS[form])
    np.testing.assert_allclose(out[0].numpy(), _alone(q, k, v, **FORMS[form]), atol=2e-6)


def test_rows_share_a_call_only_where_that_is_cheap() -> None:
    groups = Layout(tuple(LENGTHS), CPU).groups
    assert [(g.rows, g.width) for g in groups] == [(2, 3), (1, 7), (1, 8), (1, 13)]
    assert all(g.at is None for g in groups)


def test_no_row_sees_another() -> None:
    layout = Layout(tuple(LENGTHS), CPU)
    before, after = _lines(), tuple(t.clone() for t in _lines())
    for line in after:
        line[:, :, 6:13] += 1
    first, second = (attend(torch.nn.Identity(), *lines, None, packed=layout)[0] for lines in (before, after))
    same = (first == second).flatten(2).all(-1)[0]
    assert same[:6].all()
    assert not same[6:13].any()
    assert same[13:].all()


def test_queries_and_keys_follow_the_values_number_format() -> None:
    q, k, v = _lines()
    out, _ = attend(torch.nn.Identity(), q, k, v.bfloat16(), None, packed=Layout(tuple(LENGTHS), CPU))
    assert out.dtype == torch.bfloat16
    np.testing.assert_allclose(out[0].float().numpy(), _alone(q, k, v), atol=5e-2)


@pytest.mark.parametrize(
    "asked",
    [
        {"position_bias": torch.zeros(1)},
        {"s_aux": torch.zeros(1)},
        {"is_causal": False},
        {"attention_mask": torch.ones(1)},
    ],
    ids=["bias", "sinks", "both directions", "mask"],
)
def test_what_is_not_done_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError):
        attend(torch.nn.Identity(), *_lines(), **({"attention_mask": None} | asked))


def test_a_cache_is_refused() -> None:
    q, k, v = _lines()
    with pytest.raises(NotImplementedError, match="cache"):
        attend(torch.nn.Identity(), q[:, :, -1:], k, v, None)


@pytest.mark.parametrize("form", ["plain", "scaled", "window"])
def test_the_varlen_kernel_is_asked_for_the_same_attention(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(
        q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, most_q: int, most_k: int, **how: Any
    ) -> Tensor:
        """As documented for torch 2.11: `window_size` counts tokens to the left and right, -1 is all."""
        assert set(how) == {"scale", "window_size"}
        assert ends_q.dtype == ends_k.dtype == torch.int32
        assert most_q == most_k == max(LENGTHS)
        left, right = how["window_size"]
        assert right == 0
        rows: list[Tensor] = []
        for begin, end in zip(ends_q.tolist()[:-1], ends_q.tolist()[1:], strict=True):
            apart = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
            seen = (apart >= 0) & ((apart <= left) | (left == -1))
            a, b, c = (t[begin:end].transpose(0, 1) for t in (q, k, v))
            rows.append(torch.nn.functional.scaled_dot_product_attention(a, b, c, seen, scale=how["scale"]))
        return torch.cat([r.transpose(0, 1) for r in rows])

    monkeypatch.setattr(packing, "varlen_attn", kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    q, k, v = (t.bfloat16() for t in _lines())
    how = FORMS[form]
    out = packing._varlen(q, k, v, Layout(tuple(LENGTHS), CPU), how.get("scaling"), how.get("sliding_window"))
    assert out is not None
    np.testing.assert_allclose(out[0].float().numpy(), _alone(q, k, v, **how), atol=5e-2)
    assert packing._varlen(q.float(), k.float(), v.float(), Layout(tuple(LENGTHS), CPU), None, None) is None
    assert packing._varlen(q[..., :6], k[..., :6], v[..., :6], Layout(tuple(LENGTHS), CPU), None, None) is None


@pytest.mark.parametrize("lengths", [(5,), (1, 1, 1), (1, 20)])
def test_any_lengths_pack(lengths: Sequence[int]) -> None:
    layout = Layout(tuple(lengths), CPU)
    assert layout.ends.tolist() == np.cumsum([0, *lengths]).tolist()
    assert layout.longest == max(lengths)
    assert sum(g.tokens for g in layout.groups) == sum(lengths)
