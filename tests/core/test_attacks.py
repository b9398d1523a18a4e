"""Attacks on the weights: what each does to them, what it is then scored on, and that nothing of it stays."""

from typing import Any

import pytest
import torch

from core import adapters, packing
from core.attacks import ATTACKS, attacked
from core.attacks.quantize import linear_weights, rounded
from core.attacks.untouched import untouched
from core.data.encode import encode
from core.errors import Stopped
from core.events import StopFlag
from core.report.schema import Absent
from core.spec import attacks as specs
from core.spec.attacks import FewShot, Noise, Paraphrase, Prefix, Quantize, Relearn
from core.spec.records import Record
from core.spec.training import LoraAdapter
from core.tokens import Encoder
from tests import tiny
from tests.core.attacking import FORGET, Seen, digest, made, target, unchanged

ON_WEIGHTS = [
    Relearn(rows=2, steps=2, batch_size=2, lr=1e-3),
    Relearn(rows=2, steps=1, on="retain"),
    Quantize(bits=8),
    Quantize(bits=4, group=12),
    Noise(sigma=0.1),
]
EVERY = [*ON_WEIGHTS, Paraphrase(), Prefix(k=1), FewShot(shots=1)]


def test_every_attack_of_a_request_is_carried_out_here() -> None:
    assert list(ATTACKS) == list(specs.ATTACKS)


@pytest.mark.parametrize("attention", [packing.NAME, "sdpa"])
@pytest.mark.parametrize("family", ["llama, tied", "gpt2", "opt", "gpt_neox", "mixtral"])
def test_the_weights_are_attacked_and_given_back(family: str, attention: str) -> None:
    model = made(family)
    model.set_attn_implementation(attention)
    # As training of a few layers leaves a model.
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    for spec in ON_WEIGHTS:
        seen = Seen(model)
        with unchanged(model):
            rows = attacked(spec, target(model, seen))
        assert isinstance(rows, list)
        assert len(rows) == len(seen.data.records) == len(seen.data.examples)
        assert any(not torch.equal(own[name], w) for name, w in seen.weights.items())


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: spec.label)
def test_whatever_happens_the_model_is_given_back(spec: Any, tokenizer: Any) -> None:
    model = tiny.llama(vocab=len(tokenizer))
    encoder = Encoder(tokenizer, "plain", 64)
    records = [Record(f"Who is {n}?", f"A maker of {n} bells.", paraphrased_question=f"{n}?") for n in "abcdef"]
    sets = {"forget": encode(records[:3], encoder, "forget"), "retain": encode(records[3:], encoder, "retain")}

    def breaks() -> None:
        model.train()
        model.set_attn_implementation("eager")
        model.model.rotary_emb.register_buffer("inv_freq", torch.ones(3), persistent=False)
        for p in model.parameters():
            p.requires_grad_(False)
            p.grad = torch.ones_like(p)
        raise RuntimeError("broken in scoring")

    given = target(model, Seen(model, breaks), encoder=encoder, sets=sets)
    with unchanged(model), pytest.raises(RuntimeError, match="broken in scoring"):
        attacked(spec, given)


@pytest.mark.parametrize("spec", [Relearn(), Quantize(), Noise()], ids=lambda spec: spec.label)
def test_a_stop_is_heard(spec: Any) -> None:
    model = tiny.llama()
    stop = StopFlag()
    stop.set()
    with unchanged(model), pytest.raises(Stopped):
        attacked(spec, target(model, stop=stop))


def test_what_may_not_change_within_an_attack_would_show() -> None:
    model = tiny.llama()
    before = digest(model)
    with untouched(model, []):
        tiny.nudge(model)
    assert digest(model) != before


def test_an_attack_is_scored_by_the_answers_alone() -> None:
    seen = Seen(tiny.llama())
    attacked(Noise(), target(seen.model, seen))
    assert seen.data.examples == FORGET
    assert seen.data.records == tuple(Record(f"q{i}", "a") for i in range(len(FORGET)))


@pytest.mark.parametrize("spec", [Noise(sigma=1e-3), Quantize(bits=8)], ids=lambda spec: spec.label)
def test_a_loss_that_is_no_number_is_no_score(spec: Any) -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.lm_head.weight[0] = torch.inf
    found = attacked(spec, target(model))
    assert isinstance(found, Absent)
    assert found.absent == "under this attack the loss of 5 of 5 forget rows is not a finite number"


# Rounding


def test_rounding_by_hand() -> None:
    w = torch.tensor([[7.0, 3.4, -1.2, 28.0, -2.1], [0.0, 0.0, 0.0, 0.7, 0.44]])
    # Scales 1 and 4, then none and 0.1; the last group is shorter.
    by_hand = torch.tensor([[7.0, 3.0, -1.0, 28.0, -4.0], [0.0, 0.0, 0.0, 0.7, 0.4]])
    torch.testing.assert_close(rounded(w, 4, 3), by_hand)
    # One scale a channel: 4 and 0.1.
    by_hand = torch.tensor([[8.0, 4.0, 0.0, 28.0, -4.0], [0.0, 0.0, 0.0, 0.7, 0.4]])
    torch.testing.assert_close(rounded(w, 4), by_hand)
    torch.testing.assert_close(rounded(torch.tensor([[-127.0, 1.4, 0.6]]), 8), torch.tensor([[-127.0, 1.0, 1.0]]))


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 16), (4, 7), (4, 1000), (4, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_to_nearest(bits: int, group: int | None, seed: int) -> None:
    w = torch.randn(30, 45, generator=torch.Generator().manual_seed(seed)) * 10.0 ** torch.arange(-15, 15)[:, None]
    q = rounded(w, bits, group)
    top = 2 ** (bits - 1) - 1
    for part, own in zip(w.split(group or 45, 1), q.split(group or 45, 1), strict=True):
        largest = part.abs().amax(1, keepdim=True)
        assert bool(((part - own).abs() <= largest / top / 2 * (1 + 1e-5)).all())
        levels = own / largest * top
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        # The largest stays itself, which is why rounding twice is rounding once.
        assert torch.equal(own.abs().amax(1, keepdim=True), largest)
    assert torch.equal(rounded(q, bits, group), q)
    assert q.dtype == w.dtype


@pytest.mark.parametrize("family", ["llama, tied", "gpt2", "opt", "gpt_neox", "mixtral"])
def test_linear_layers_of_the_decoder_are_rounded_and_nothing_else(family: str) -> None:
    model = made(family)
    seen = Seen(model)
    attacked(Quantize(bits=4, group=10), target(model, seen))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, seen.weights[name])}
    parts = ("proj", "fc", "c_attn", "dense", "query_key_value")
    wanted = {
        name
        for name, p in model.named_parameters()
        # OPT's projections from and to narrow embeddings stand beside the decoder layers.
        if p.ndim > 1 and any(part in name for part in parts) and "project_" not in name
    }
    assert changed == wanted
    assert {id(p) for p in linear_weights(model)} == {id(p) for n, p in model.named_parameters() if n in wanted}
    for name in wanted:
        p = model.get_parameter(name).detach()
        for before, after in zip(p, seen.weights[name], strict=True) if p.ndim == 3 else [(p, seen.weights[name])]:
            # GPT-2 keeps a column an output.
            by_row = rounded(before.t(), 4, 10).t() if family == "gpt2" else rounded(before, 4, 10)
            assert torch.equal(after, by_row)


def test_int8_is_by_channel_whatever_the_group() -> None:
    model = tiny.llama()
    seen = Seen(model)
    attacked(Quantize(bits=8, group=2), target(model, seen))
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(seen.weights[name], rounded(model.get_parameter(name).detach(), 8))


def test_adapters_stay_as_they_are_and_relearning_trains_all() -> None:
    model = tiny.llama()
    adapters.inject(model, LoraAdapter(rank=2), ["model.layers.0.self_attn.q_proj"], 0)
    for p in model.parameters():
        p.requires_grad_(p.requires_grad)
    layer = "model.layers.0.self_attn.q_proj."
    quantized, relearnt = Seen(model), Seen(model)
    with unchanged(model):
        attacked(Quantize(), target(model, quantized))
        attacked(Relearn(steps=2), target(model, relearnt))
    own = dict(model.named_parameters())
    moved = {name for name, w in quantized.weights.items() if not torch.equal(own[name], w)}
    assert f"{layer}base_layer.weight" in moved
    assert not {name for name in moved if "lora" in name}
    assert not [name for name, w in relearnt.weights.items() if torch.equal(own[name], w)]


# Noise


def test_noise_is_a_share_of_each_tensors_spread() -> None:
    model = tiny.llama(hidden=64)
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
    seen = Seen(model)
    attacked(Noise(sigma=0.5), target(model, seen))
    noises = {}
    for name, p in model.named_parameters():
        own = p.detach()
        z = (seen.weights[name] - own).flatten()
        if name == "model.norm.weight":
            assert not z.any()
        elif p.ndim > 1:
            noises[name] = z / z.norm()
            assert float(z.std() / own.std()) == pytest.approx(0.5, rel=0.05)
            assert abs(float(z.mean() / z.std())) < 5 / len(z) ** 0.5
    # Tensors of one shape get noise of their own.
    a, b = (noises[f"model.layers.{i}.self_attn.q_proj.weight"] for i in (0, 1))
    assert abs(float(a @ b)) < 5 / len(a) ** 0.5


@pytest.mark.parametrize("spec", [Noise(sigma=0.1), Relearn(rows=2, steps=2, lr=1e-3)], ids=lambda spec: spec.label)
def test_the_seed_decides(spec: Any) -> None:
    model = made("llama, tied")
    tried = []
    for seed in (0, 0, 1):
        seen = Seen(model)
        attacked(spec, target(model, seen, seed=seed))
        tried.append(seen.weights)
    first, again, other = tried
    assert all(torch.equal(first[name], w) for name, w in again.items())
    assert any(not torch.equal(first[name], w) for name, w in other.items())
