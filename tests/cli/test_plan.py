"""shoal plan's arithmetic against sums by hand, and shoal gather's lines and picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal import plan as library
from shoal.cli import bandwidth, main
from shoal.cli.bandwidth import gather
from shoal.cli.parts import Gather, Plan
from shoal.cli.plan import plan
from shoal.core.columns import Columns
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data import graphs
from shoal.data.graphs import load_nodes
from shoal.fetch.tiered import TieredTable
from shoal.plan.rows import zipf_sum
from shoal.sample.expand import NeighborSampler
from shoal.sample.touch import touch_probability
from tests.graphs import dense, write_graph
from tests.planted import planted_graph


def ask(**changes: Any) -> dict[str, Any]:
    return plan(Plan(**{"rows": 1000, "batch_rows": 100, "width": 1024, "host_gib": 1.0} | changes))


def tiers(result: dict[str, Any]) -> list[tuple[int, float, float]]:
    return [(tier["rows"], tier["reads_percent"], tier["ms"]) for tier in result["tiers"]]


def test_rows_fill_the_fastest_memory_first() -> None:
    """4-KiB rows: what fits is counted by hand, shares are even, and times are rows over rates."""
    rates = {"device_gbs": 4.096, "link_gbs": 1.0, "host_gbs": 2.048, "disk_iops": 1000.0}
    carried = 4096 + 24 * 32  # 128 sectors of 32 bytes in 32 requests with headers
    link = 1e3 * carried / (0.85 * 1e9)
    room = {"device_gib": 100 * 4096 / 2**30, "host_gib": 300 * 4096 / 2**30}
    result = ask(**rates, **room)
    expected = [(100, 10, 0.01), (300, 30, 30 * link), (600, 60, 60.0)]
    for got, want in zip(tiers(result), expected, strict=True):
        assert got == pytest.approx(want, abs=6e-4)
    assert result["ms_all_from_disk"] == 100 and result["row_bytes"] == 4096
    assert result["ms_a_batch"] == pytest.approx(60.01 + 30 * link, abs=2e-3)
    # without a device the processor gathers: 2 µs a row
    alone = ask(**rates, host_gib=1.0)
    assert tiers(alone) == [(0, 0, 0), (1000, 100, 0.2), (0, 0, 0)]
    assert alone["code"] == ["table = shoal.unified(rows)"]


def test_the_code_makes_such_a_table() -> None:
    """Counts in the code are those of the tiers, and each case names what it needs."""
    room = {"device_gib": 100 * 4096 / 2**30, "host_gib": 300 * 4096 / 2**30}
    assert ask(**room)["code"] == [
        'table = shoal.TieredTable("rows.npy", device_rows=100, device="cuda", host_rows=300)'
    ]
    (line,) = ask(device_gib=room["device_gib"])["code"]
    assert line == 'table = shoal.TieredTable(rows, device_rows=100, device="cuda")'
    (line,) = ask(host_gib=room["host_gib"])["code"]
    assert line == 'table = shoal.TieredTable("rows.npy", host_rows=300)'
    everything = ask(device_gib=1.0)
    assert [tier["rows"] for tier in everything["tiers"]] == [1000, 0, 0]


def test_the_command_is_the_plan(tmp_path: Path) -> None:
    """Of a graph that shoal train reads its flags are printed, and they place the rows so."""
    source = write_graph(planted_graph(n=90, classes=3, dim=6), tmp_path / "g.npz")
    source = dense(source, ".safetensors")
    asked = {"rows": None, "source": str(source), "batch_size": 9, "fanouts": (2,)}
    result = ask(**asked, device_gib=10 * 4096 / 2**30, host_gib=30 * 4096 / 2**30)
    assert result["command"] == (
        f"shoal train nodes {source} --batch-size 9 --fanouts 2 "
        "--device cuda --device-rows 10 --host-rows 30"
    )
    assert "--host-rows" not in ask(**asked)["command"]
    assert "command" not in ask()


def test_a_plan_reads_what_training_reads(tmp_path: Path) -> None:
    """Width, seeds and batch size that are not given are those of the graph."""
    source = write_graph(planted_graph(n=90, classes=3, dim=6), tmp_path / "g.npz")
    asked = {"rows": None, "source": str(source), "fanouts": (2,)}
    result, data = ask(**asked, width=None), load_nodes(str(source))
    assert result["row_bytes"] == 4 * 6 and result["assumed"]["batch_size"] == len(data.train) == 54
    touched = touch_probability(data.graph, data.train, (2,), 54)
    assert result["rows_a_batch"] == round(float(touched.sum()))
    np.savez(tmp_path / "links.npz", indptr=data.graph.indptr, indices=data.graph.indices)
    result = ask(**asked | {"source": str(tmp_path / "links.npz")}, width=None)
    assert result["row_bytes"] == 4 * 256 and result["assumed"]["batch_size"] == 9


def test_zipf_sums_are_sums() -> None:
    """Terms and integral against all terms, for s below, at and above 1."""
    for s in (0.0, 0.5, 1.0, 1.5):
        for count in (0, 1, 1000, 1001, 50_000):
            exact = float((torch.arange(1, count + 1).double() ** -s).sum())
            assert zipf_sum(count, s) == pytest.approx(exact, rel=1e-7)
    skewed = ask(zipf=1.0, device_gib=10 * 4096 / 2**30)
    share = 100 * float(
        (1 / torch.arange(1, 11).double()).sum() / (1 / torch.arange(1, 1001).double()).sum()
    )
    assert skewed["tiers"][0]["reads_percent"] == pytest.approx(share, abs=0.01)


def test_a_graphs_shares_are_the_fan_out_models(tmp_path: Path) -> None:
    """The device's share is the hottest rows' part of what a batch is expected to touch."""
    generator = torch.Generator().manual_seed(0)
    columns = (torch.rand(900, generator=generator) ** 3 * 300).long()
    graph = Csr.from_coo(torch.arange(300).repeat(3), columns, (300, 300))
    graph.save(tmp_path / "graph")
    asked = {"rows": None, "source": str(tmp_path / "graph"), "fanouts": (2,), "batch_size": 5}
    result = ask(**asked, device_gib=30 * 4096 / 2**30)
    seeds = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:30]
    touched = touch_probability(graph, seeds, (2,), 5).sort(descending=True).values
    share = 100 * float(touched[:30].sum() / touched.sum())
    assert result["tiers"][0]["reads_percent"] == pytest.approx(share, abs=0.01)
    assert result["rows_a_batch"] == round(float(touched.sum()))
    with pytest.raises(InputError, match="rows: expected the graph's 300 nodes, got 1000"):
        ask(**asked | {"rows": 1000})
    with pytest.raises(InputError, match="batch_size: expected at most the 30 seeds, got 31"):
        ask(**asked | {"batch_size": 31})
    assert result["code"][0] == "scores = shoal.touch_probability(graph, train, [2], 5)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": None}, "source: expected a graph, or --rows, got neither"),
        ({"rows": 0}, "rows: expected a whole number of at least 1"),
        ({"width": 0}, "width: expected a whole number of at least 1"),
        ({"batch_rows": 1001}, "batch_rows: expected 1 … 1000, the table's rows, got 1001"),
        ({"zipf": -1.0}, "zipf: expected a finite number of at least 0"),
        ({"zipf": float("nan")}, "zipf: expected a finite number of at least 0"),
        ({"device_gib": -1.0}, "device_gib: expected a finite number of at least 0"),
        ({"host_gib": float("inf")}, "host_gib: expected a finite number of at least 0"),
        ({"disk_iops": 0.0}, "disk_iops: expected a finite number above 0"),
        ({"train": 0.0}, r"train: expected a share in \(0, 1\]"),
        ({"fanouts": ()}, "fanouts: expected a number per hop"),
        ({"source": "absent.npz"}, "absent.npz: expected a file"),
    ],
)
def test_a_bad_plan_is_named(changes: dict[str, Any], message: str) -> None:
    """Each argument that does not fit, by its name."""
    with pytest.raises(InputError, match=message):
        ask(**changes)


def test_host_memory_is_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --host-gib rows may take half of the memory that the system has left."""
    monkeypatch.setattr("shoal.cli.plan.available_bytes", lambda: 1000 * 4096)
    assert [tier["rows"] for tier in ask(host_gib=None)["tiers"]] == [0, 500, 500]


@pytest.mark.slow
def test_the_fan_out_model_is_near_the_oracle(outside_data: Path) -> None:
    """web-stanford: a tenth of the rows serves at least 0.85 of what the best tenth would, and more
    than the tenth of highest degree."""
    graph = graphs.read(outside_data / "web-stanford" / "web-stanford.npz").graph
    n, generator = graph.n_rows, torch.Generator().manual_seed(0)
    train = torch.randperm(n, generator=generator)[: n // 10]
    sampler, batches, seen = NeighborSampler(graph, [15, 10]), [], torch.zeros(n)
    for _ in range(60):
        seeds = train[torch.randperm(len(train), generator=generator)[:512]]
        batches.append(sampler(seeds, generator)[0].src)
        seen[batches[-1]] += 1
    rates = []
    model = touch_probability(graph, train, [15, 10], 512)
    for scores in (model, seen, torch.bincount(graph.indices, minlength=n)):
        table = TieredTable(torch.zeros(n, 1), scores, device_rows=n // 10)
        for ids in batches:
            table.gather(ids)
        rates.append(table.use()["device"].measured or 0)
    assert rates[0] > 0.85 * rates[1] and rates[0] > 1.2 * rates[2]


# -- a model ------------------------------------------------------------------------------------

SIZES = {
    "labels": "--examples 1000 --labels 500",
    "nodes": "--nodes 1000 --edges 9000 --width 16 --classes 3",
    "links": "--nodes 1000 --edges 9000 --width 16",
}


def answer(words: str) -> dict[str, Any]:
    settings, function = main.parse("plan", words.split())
    return function(settings)


@pytest.mark.parametrize("task", SIZES)
def test_the_command_prints_the_librarys_plan(task: str) -> None:
    """Its numbers are those of the library, asked for the same."""
    found = answer(f"{task} {SIZES[task]} --device h200 --ranks 2 --price 4 --batch-size 64")
    machine = library.Machine("h200", ranks=2, price=4.0)
    shape = {"batch_size": 64, "machine": machine}
    graph = library.Graph(1000, 9000, 16)
    same = {
        "labels": lambda: library.labels(1000, 500, encoder=library.BagSizes(90_000), **shape),
        "nodes": lambda: library.nodes(graph, 3, **shape),
        "links": lambda: library.links(graph, **shape),
    }[task]()
    assert found == same.facts() and found["task"] == task and found["ranks"] == 2


def test_flags_of_a_transformer_make_one(tmp_path: Path) -> None:
    """Layers, heads and pieces; without layers they are refused; host memory is a limit."""
    encoder = library.TransformerSizes(2, 128, 2, 256, vocabulary=99, chunk=8)
    words = SIZES["labels"] + " --layers 2 --dim 128 --inner 256 --vocabulary 99 --chunk 8"
    want = library.labels(1000, 500, encoder=encoder, classifiers=False).facts()
    assert answer(f"labels {words} --no-classifiers") == want
    with pytest.raises(InputError, match="chunk: expected --layers, as it is a transformer's"):
        answer(f"labels {SIZES['labels']} --chunk 8")
    with pytest.raises(InputError, match="spectrum: expected a file"):
        answer(f"nodes {SIZES['nodes']} --spectrum {tmp_path / 'absent.json'}")
    tight = answer("links --nodes 100000000 --edges 900000000 --width 16 --host-gib 1")
    assert tight["too_small"] == "host" and not tight["fits"]


# -- shoal gather --------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"mib": 1, "disk_mib": 1, "rows": 50, "repeats": 1, "widths": (64, 4096)}


def test_gather_measures_every_kind(tmp_path: Path) -> None:
    """Width × order × alignment of host memory, and the file cold and cached; nothing is left."""
    (tmp_path / "work").mkdir()
    result = gather(Gather(**SMALL, folder=tmp_path / "work"))
    kinds = {
        tuple(x[key] for key in ("tier", "row_bytes", "order", "aligned"))
        for x in result["gathers"]
    }
    host = {
        ("host", width, order, aligned)
        for width in (64, 4096)
        for order in ("random", "sorted")
        for aligned in ("yes", "no")
    }
    disk = {
        (f"disk, {x}", width, "random", "-") for x in ("cold", "cached") for width in (64, 4096)
    }
    assert kinds == host | disk and len(result["gathers"]) == 12
    for line in result["gathers"]:
        assert line["MB_s"] == pytest.approx(
            line["rows_s"] * line["row_bytes"] / 1e6, rel=0.1, abs=0.1
        )
        assert line["rows_s"] > 0
    assert 0 <= result["cold_file_pages_still_cached_percent"] <= 100
    assert list((tmp_path / "work").iterdir()) == []
    assert gather(Gather(**SMALL | {"disk_mib": 0}))["gathers"][-1]["tier"] == "host"


def test_rows_begin_where_they_should(tmp_path: Path) -> None:
    """Aligned rows begin on a line, others 4 bytes behind; the file's rows are its bytes."""
    memory = torch.empty(2**20 + 256, dtype=torch.uint8)
    for aligned, offset in ((True, 0), (False, 4)):
        rows = bandwidth.rows_at(memory, 128, aligned)
        assert rows.shape == (8192, 32) and rows.data_ptr() % 128 == offset
    with bandwidth.scratch_file(tmp_path, 2**20) as path:
        bandwidth.write_header(path, 256, 1024)
        table = bandwidth.DiskRows(path)
        raw = path.read_bytes()
        assert table.shape == (256, 1024)
        assert (
            table.gather(torch.tensor([7])).numpy().tobytes()
            == raw[128 + 7 * 4096 : 128 + 8 * 4096]
        )
    assert not path.exists()


def test_systems_that_tell_less_are_borne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the calls of Linux nothing is dropped, and what is cached is not told."""
    path = tmp_path / "x"
    path.write_bytes(bytes(5000))
    assert bandwidth.cached_share(path) in (None, 1)  # it has just been written
    monkeypatch.delattr(os, "posix_fadvise")
    monkeypatch.setattr(bandwidth.ctypes, "CDLL", lambda _: object())
    bandwidth.drop(path)
    assert bandwidth.cached_share(path) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": ()}, "widths: expected one width at least"),
        ({"widths": (6,)}, "widths: expected multiples of 4 up to 1048576 bytes, got 6"),
        ({"widths": (2**21,)}, "widths: expected multiples of 4"),
        ({"mib": 0}, "mib: expected a whole number of at least 1"),
        ({"disk_mib": -1}, "disk_mib: expected at least 0"),
        ({"repeats": 0}, "repeats: expected a whole number of at least 1"),
        ({"folder": Path("absent")}, "absent: expected room for a file of 1 MiB"),
    ],
)
def test_a_bad_gather_is_named(changes: dict[str, Any], message: str) -> None:
    """Each argument that does not fit, by its name."""
    with pytest.raises(InputError, match=message):
        gather(Gather(**SMALL | changes))


def test_columns_stand_below_one_another() -> None:
    """Names above, numbers right, a dash for what is missing; to JSON it is a list."""
    table = Columns([{"a": "x", "b": 1.0}, {"a": "long", "b": None}])
    assert str(table) == "a        b\nx     1.00\nlong     -" and isinstance(table, list)
    assert str(Columns()) == ""
