"""Plans against sums by hand, closed forms, and the models that they speak of."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import plan
from shoal.core.errors import InputError
from shoal.curvature.spectrum import Noise, Spectrum
from shoal.plan.encoders import distinct
from shoal.plan.noun import Part, Plan, Stage
from shoal.plan.texts import clustering

# a second for each unit of each currency
UNIT = plan.Device("unit", None, None, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


def test_seconds_are_amounts_over_rates() -> None:
    """Each currency has a rate of its own, and bfloat16 another one for products."""
    work = plan.Work(1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
    assert UNIT.seconds(work) == 1_111_111
    assert UNIT.seconds(work, "bfloat16") == 1_111_110.5
    twice = replace(UNIT, gathered=2.0)
    assert UNIT.seconds(work) - twice.seconds(work) == 50


def test_what_a_plan_says_follows_from_its_parts() -> None:
    """Peaks are what is always there and the largest phase; shares, hours and money by hand."""
    parts = (
        Part("a", host=1, device=10),
        Part("b", host=5, device=20, phase="step"),
        Part("c", host=2, device=40, phase="refresh"),
        Part("d", host=2, device=30, phase="step"),
    )
    stages = (Stage("x", plan.Work(flops=3600)), Stage("y", plan.Work(flops=7200), per_epoch=True))
    machine = plan.Machine(replace(UNIT, memory=60.0, host=15.0), ranks=2, price=3.0)
    made = Plan("labels", machine, 8, 4, parts, stages)
    assert (made.host_bytes, made.device_bytes) == (8, 60)
    assert made.lacking == ("host",) and not made.fits  # two ranks share a host: 16 of 15
    assert Plan("labels", replace(machine, ranks_a_host=1), 8, 4, parts, stages).fits
    assert made.seconds() == 3600 + 1800 and made.seconds("y") == 1800
    assert made.hours == 6 and made.money == 36
    alone = Plan("labels", plan.Machine(UNIT), 8, 4, parts, stages)
    assert alone.host_bytes == 11 + 5 + 20 + 2 + 30 and alone.device_bytes == 0 and alone.fits
    assert "<td>refresh</td>" in made._repr_html_()
    assert made.facts()["too_small"] == "host" and alone.facts().get("money_an_epoch") is None


@settings(max_examples=15)
@given(st.integers(1, 3000), st.floats(0, 1e5), st.sampled_from([0.0, 0.7, 1.0]))
def test_different_rows_are_those_of_the_sum(n: int, draws: float, zipf: float) -> None:
    """The thousand terms and the integral against all terms; never more than rows or draws."""
    p = torch.arange(1, n + 1).double() ** -zipf
    exact = float(-torch.expm1(-draws * p / p.sum()).sum())
    found = distinct(n, draws, zipf)
    assert found == pytest.approx(exact, rel=1e-4, abs=1e-9)
    assert found <= min(n, draws) * (1 + 1e-9)


def test_different_rows_are_those_that_are_drawn() -> None:
    """And the sum is what draws give."""
    weights = 1 / torch.arange(1, 501).double()
    drawn = torch.multinomial(
        weights, 800, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    assert distinct(500, 800, 1.0) == pytest.approx(len(drawn.unique()), rel=0.06)


@pytest.mark.slow  # importing transformers alone
def test_parameters_are_those_of_bert() -> None:
    """Counted on a model of every size apart, the pooler left out."""
    from transformers import BertConfig, BertModel

    for layers, dim, inner in ((1, 12, 20), (3, 8, 64)):
        config = BertConfig(
            vocab_size=50, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=inner, max_position_embeddings=40,
        )  # fmt: skip
        model = BertModel(config, add_pooling_layer=False)
        encoder = plan.TransformerSizes(layers, dim, 2, inner, vocabulary=50, positions=40)
        assert encoder.parameters == sum(x.numel() for x in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "dim", "heads", "inner", "length"), [(2, 64, 4, 256, 16), (1, 96, 8, 96, 40)]
)
def test_kept_activations_are_those_that_autograd_saves(
    layers: int, dim: int, heads: int, inner: int, length: int
) -> None:
    """Storages that a forward pass of BERT saves, weights apart, within a twentieth."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner, max_position_embeddings=64,
    )  # fmt: skip
    model, saved = BertModel(config, add_pooling_layer=False).train(), {}
    weights = {x.untyped_storage().data_ptr() for x in model.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        memory = x.untyped_storage()
        if memory.data_ptr() not in weights:
            saved[memory.data_ptr()] = (memory.nbytes(), x)  # holding it keeps addresses apart
        return x

    ids = torch.randint(50, (32, length), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    encoder = plan.TransformerSizes(layers, dim, heads, inner)
    count = sum(size for size, _ in saved.values())
    assert encoder.kept(32, 32 * length) == pytest.approx(count, rel=0.05)


def large(**changes: Any) -> Plan:
    """A transformer that a small card does not train at once."""
    asked: dict[str, Any] = {"batch_size": 2048, "classifiers": False}
    card = replace(plan.DEVICES["rtx4090"], memory=8e9)
    encoder = plan.TransformerSizes(6, 384, 12)
    asked |= {"encoder": encoder, "machine": plan.Machine(card)} | changes
    return plan.labels(100_000, 50_000, **asked)


def test_the_nearest_setting_fits_and_the_next_one_does_not() -> None:
    """Gradient caching comes first; the chunk that is named fits, and twice as much does not."""
    made = large()
    assert made.lacking == ("device",) and made.remedy is not None
    name, chunk = made.remedy.split()
    assert name == "chunk"
    sizes = (int(chunk), 2 * int(chunk))
    fits = [large(encoder=plan.TransformerSizes(6, 384, 12, chunk=size)).fits for size in sizes]
    assert fits == [True, False]
    graph = plan.Graph(10**6, 10**7, 1024)
    tight = plan.Machine(replace(plan.DEVICES["rtx4090"], memory=1e8))
    of_nodes = plan.nodes(graph, 4, machine=tight)
    assert of_nodes.remedy is not None
    size = int(of_nodes.remedy.removeprefix("batch_size "))
    fits = [plan.nodes(graph, 4, machine=tight, batch_size=x).fits for x in (size, 2 * size)]
    assert fits == [True, False]
    poor = plan.Machine(replace(plan.DEVICES["h200"], host=1e9))
    nothing = plan.labels(10**6, 10**7, encoder=plan.BagSizes(1000), machine=poor)
    assert nothing.remedy is not None and "none: embeddings that they read" in nothing.remedy


def test_ranks_share_what_they_share() -> None:
    """Compute halves with two ranks, the loss stays, and messages come; one rank sends nothing."""
    one, two = large(), large(machine=plan.Machine("rtx4090", ranks=2))
    seconds = {name: (one.seconds(name), two.seconds(name)) for name in ("compute", "loss")}
    assert seconds["compute"][1] == pytest.approx(seconds["compute"][0] / 2, rel=0.01)
    assert seconds["loss"][0] == seconds["loss"][1] > 0
    assert one.seconds("communication") == 0 < two.seconds("communication")


def test_a_layer_of_nodes_by_hand() -> None:
    """One hop of two neighbors on a huge graph: 30 rows are read, and four products are made."""
    graph = plan.Graph(10**9, 4 * 10**9, 16)
    made = plan.nodes(graph, 4, network=plan.Network(fanouts=(2,)), batch_size=10)
    work = {stage.name: stage.work for stage in made.stages}
    assert work["gather"].gathered == pytest.approx(2 * 30 * 16 * 4, rel=1e-6)
    assert work["compute"].flops == 2 * (2 * 2 * 10 * 16 * 4)  # the features want no gradient
    assert work["compute"].gathered == pytest.approx(20 * 16 * 4)
    assert made.steps == 10**8


def test_clusters_cost_a_copy_a_level() -> None:
    """Twice the examples are one level more, each of as much."""
    once, twice = clustering(2**20, 8, 64), clustering(2**21, 8, 64)
    levels = 14
    assert once.gathered == 2 * 4 * 8 * 2**20 * levels
    assert twice.gathered == 2 * 4 * 8 * 2**21 * (levels + 1)
    assert clustering(64, 8, 64) == plan.Work()


def test_a_spectrum_says_how_large_a_batch_is_useful() -> None:
    """The closed form of shoal.learning_rate's own example: the critical batch is 5."""
    spectrum = Spectrum(
        "ggn", 2, 100, None, 10, "RandomSampler", ritz=torch.tensor([2.0]),
        residuals=torch.zeros(1), nodes=torch.zeros(1), node_weights=torch.ones(1),
        trace=4.0, trace_error=0.0, noise=Noise(s2=20.0, frobenius=40.0),
    )  # fmt: skip
    graph = plan.Graph(100, 400, 8)
    made = plan.nodes(graph, 3, batch_size=10, spectrum=spectrum, optimizer="sgd")
    assert made.largest_useful_batch == pytest.approx(5)
    assert plan.nodes(graph, 3).largest_useful_batch is None


def test_this_machine_is_measured() -> None:
    """Rates are finite and positive, and so is a plan by them."""
    here = plan.measured("cpu")
    rates = (here.flops, here.streamed, here.gathered, here.entries, 1 / here.call)
    assert all(0 < rate < math.inf for rate in rates)
    assert plan.links(plan.Graph(100, 400, 8), machine=plan.Machine(here)).seconds() > 0


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: plan.Machine("h300"), "device: expected one of h200, h100"),
        (lambda: plan.Machine(ranks=0), "ranks: expected a whole number of at least 1"),
        (lambda: plan.Machine(price=-1.0), "price: expected a finite number of at least 0"),
        (lambda: plan.BagSizes(0), "vocabulary: expected a whole number of at least 1"),
        (lambda: plan.TransformerSizes(1, 8, 2, chunk=0), "chunk: expected a whole number"),
        (lambda: plan.Network(fanouts=()), "fanouts: expected a number per hop"),
        (lambda: plan.Graph(1, 0, 1), "edges: expected a whole number of at least 1"),
        (lambda: plan.nodes(plan.Graph(9, 9, 9), 0), "classes: expected a whole number"),
        (lambda: plan.links(plan.Graph(9, 9, 9), links_a_node=0.0), "links_a_node: expected"),
        (lambda: plan.labels(0, 9, encoder=plan.BagSizes(9)), "examples: expected a whole number"),
        (
            lambda: plan.labels(9, 9, encoder=plan.BagSizes(9), tokens=0.0),
            "tokens: expected a number",
        ),
    ],
)
def test_a_number_out_of_range_is_named(ask: Any, message: str) -> None:
    """Each by its name."""
    with pytest.raises(InputError, match=message):
        ask()
