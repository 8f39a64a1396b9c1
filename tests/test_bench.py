"""`snn-rules bench`, on sizes that cost nothing: every table is made, printed and written; what it counts is what moved."""

import itertools
import json

import pytest
from typer.testing import CliRunner

from snn_rules import bench
from snn_rules.bench_report import TABLES
from snn_rules.cli import app
from snn_rules.kernels import build


@pytest.fixture
def small(monkeypatch):
    for name, value in {"SHAPES": ((2, 3, 4),), "LENGTHS": (9, 18), "NEURONS": (16, 32), "STREAM": (8, 64)}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "_apart", bench.one_neuron)  # in this process
    times = itertools.count(1)  # each measurement has its own, in milliseconds
    monkeypatch.setattr(bench, "in_turn", lambda runs, repeats, warm: {who: (run(), float(next(times)))[1] for who, run in runs.items()})


def test_peers_run_in_turn(monkeypatch):
    ran, clock = [], itertools.chain([0.0, 1.0, 0.0, 2.0], [0.0, 3.0, 0.0, 8.0], [0.0, 9.0, 0.0, 4.0], [0.0, 5.0, 0.0, 6.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    ms = bench.in_turn({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, repeats=3, warm=1)
    assert "".join(ran) == "abababab"
    assert ms == {"a": 5000.0, "b": 6000.0}


def test_every_table(small, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.neurons, "__defaults__", (bench.SHAPES, 1, 25))
    monkeypatch.setattr(bench.steps, "__defaults__", ((2,), 3))
    file = tmp_path / "bench.json"
    done = CliRunner().invoke(app, ["bench", "--rules", "tssl,strsbp", "--tables", ",".join(TABLES), "--json", str(file)])
    assert done.exit_code == 0, done.output
    made = json.loads(file.read_text())
    assert made["command"].startswith("snn-rules bench --rules tssl,strsbp")
    assert {"threads", "load", "versions", "date", "machine"} <= made.keys()
    (row,) = made["neurons"]
    ms = {who: row[who]["ms"] for who in ("copy", "LIFNode", "tssl", "strsbp")}
    assert row["shape"] == [2, 3, 4] and list(ms.values()) == [2, 4, 6, 8] and row["copy"]["peak_mb"] > 0
    assert all(row[who]["ratio"] == 4.0 / ms[who] for who in ms)  # times faster than LIFNode
    assert [(row["rule"], row["kernel"]) for row in made["stream"]][:3] == [("", "triad"), ("tssl", "forward"), ("tssl", "backward 0")]
    triad, forward = made["stream"][:2]
    taken = 12 * 8 * 64 / 1e6 / triad["GB/s"]  # milliseconds
    assert forward["GB/s"] == pytest.approx(4 * (2 * 8 * 64 + 3 * 64) / 1e6 / (taken + 1))  # input, spikes, three states
    assert triad["of_triad"] == 1.0 and forward["of_triad"] == forward["GB/s"] / triad["GB/s"]
    assert [row["neurons"] for row in made["lengths"]] == [16, 16, 32, 32]
    assert all(row["ratio"] == row["ms"]["18"] / row["ms"]["9"] > 1.0 for row in made["lengths"])
    (step,) = made["steps"]
    first = step["products"]["ms"]
    assert step["tssl"] == {"ms": first + 2, "of_products": (first + 2) / first, "ratio": (first + 1) / (first + 2)}
    assert all(0 < row["warm"] < row["cold"] for row in made["starts"])


def test_a_table_that_does_not_exist():
    done = CliRunner().invoke(app, ["bench", "--tables", "neurones"])
    assert done.exit_code == 2
    assert "bench: there is no table 'neurones'; there are neurons, stream, lengths, steps, starts" in " ".join(done.output.split())


def test_without_a_compiler_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: (_ for _ in ()).throw(build.NoCompiler("neither g++ nor clang++ is installed")))
    done = CliRunner().invoke(app, ["bench", "--rules", "tssl", "--tables", "starts"])
    assert done.exit_code == 2
    assert "bench: there are no kernels to measure: neither g++ nor clang++ is installed" in " ".join(done.output.split())


def test_neurons_run_in_processes_of_their_own(monkeypatch):
    (row,) = bench.neurons(["stdbp"], [(2, 1, 3)], repeats=2)
    assert all(row[who]["ms"] > 0 for who in ("copy", "LIFNode", "stdbp"))


@pytest.mark.parametrize(("once", "repeats", "warm"), [(0.5, 1000, 200), (300.0, 25, 0)])
def test_small_neurons_run_until_their_process_is_no_longer_young(monkeypatch, once, repeats, warm):
    asked = []
    monkeypatch.setattr(bench, "milliseconds", lambda run, *how: asked.append(how) or once)
    assert bench.one_neuron("copy", (2, 1, 3), 25)["ms"] == once
    assert asked == [(3,), (repeats, warm)]
