"""docs/factories.md: complete, made of its results, and true where it is quick to try again."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
factories, factory_table = importlib.import_module("factories"), importlib.import_module("factory_table")
sys.path.pop(0)
FOUND = json.loads(factories.RESULTS.read_text())
ROWS = FOUND["rows"]
pytestmark = pytest.mark.filterwarnings("ignore:'tau' has no meaning")


def test_every_factory_of_spikingjelly_is_in_the_table():
    """A factory that a newer SpikingJelly brings is missing here until `python benchmarks/factories.py` has run."""
    listed = re.findall(r"^\| `(\w+)` \| \w+ \| \d", factories.TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == list(ROWS) == list(factories.factories())
    assert {"spiking_resnet18", "sew_resnet18", "spikformer_ti", "SNASNet", "SpikeDHS", "masnn_dvs128_gesture", "MNISTNet"} <= set(listed)


def test_what_is_left_out_is_no_model():
    import spikingjelly.activation_based.model as model

    for name in factories.PARTS:
        thing = getattr(model.spike_dhs, name)
        assert issubclass(thing, nn.Module) and "num_classes" not in thing.__init__.__code__.co_varnames


def test_the_table_is_made_of_the_results():
    assert factories.TABLE.read_text(encoding="utf-8") == factories.table(FOUND)


def test_nine_cells_in_ten_work_and_every_refusal_names_place_and_remedy():
    cells = {(name, column): entry for name, row in ROWS.items() for column, entry in row["cells"].items()}
    assert all(set(row["cells"]) == set(factories.RULES) for row in ROWS.values())
    asked = [entry["state"] for (name, column), entry in cells.items() if factory_table.sensible(ROWS[name], column)]
    assert asked.count("works") >= 0.9 * len(asked)
    assert all(entry["state"] == "works" for (_, column), entry in cells.items() if column == "surrogate")
    for entry in cells.values():
        if entry["state"] == "refused":
            assert re.match(r"convert: ('[\w.]+'|the network) .*; ?(use|put|build|convert)", entry["why"]), entry["why"]
        elif entry["state"] == "works":
            assert 0 < entry["norm"] < float("inf") and entry["reached"] > 0


@pytest.mark.parametrize("name", ["MNISTNet", "SpikingResNet", "MASNN"])
def test_a_row_measured_again(name):
    again = factories.measure(name, factories.factories()[name])
    assert again["parameters"] == ROWS[name]["parameters"]
    assert {column: entry["state"] for column, entry in again["cells"].items()} == {
        column: entry["state"] for column, entry in ROWS[name]["cells"].items()
    }
    assert all(entry.get("reached") == ROWS[name]["cells"][column].get("reached") for column, entry in again["cells"].items())


def test_a_dead_network_does_not_work(monkeypatch):
    """The check can fail: with a threshold that nothing reaches, no spike, no gradient for the weights behind it."""
    case = factories.setting("MNISTNet", "parametric_lif_net")
    net = factories.stock("MNISTNet", case)
    expected = factories.reached(factories.step(net, factories.snn_rules.get_rule("surrogate"), case))
    choice = {"rule": "tssl", "rule_options": {"v_threshold": 1e6}}
    found = factories.cell("MNISTNet", case, choice, net.state_dict(), expected)
    assert found["state"] == "failed" and "conv_fc.4.weight" in found["missing"]
