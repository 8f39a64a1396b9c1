"""SpikingJelly's example programs, as installed, with the lines of docs/swap.md: they train under every rule."""

import importlib.util
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

DOC = (Path(__file__).parents[1] / "docs" / "swap.md").read_text(encoding="utf-8")
EXAMPLES = "spikingjelly.activation_based.examples"
RULES = ["surrogate", "tssl", "strsbp", "stdbp"]
PROGRAMS = {  # small enough for a test
    "conv_fashion_mnist": "-T 16 -b 20 -channels 4",
    "rsnn_sequential_fmnist": "-model fb -b 20",
    "classify_dvsg": "-T 16 -b 11 -channels 4",
    "lif_fc_mnist": "-T 20 -b 20",
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set"),
    pytest.mark.filterwarnings("ignore:'tau' has no meaning"),
]


def snippets(program):
    """The diff blocks of a program's section: the rule alone; input code and loss as well."""
    (section,) = re.findall(rf"^## {program}\n(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```diff\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def patched(source, diff):
    """`source` with every hunk applied wherever its old lines occur, at whatever indentation."""
    lines = source.splitlines()
    for hunk in diff.split("@@\n"):
        old = textwrap.dedent("\n".join(line[1:] for line in hunk.splitlines() if line[0] in "- ")).splitlines()
        new = textwrap.dedent("\n".join(line[1:] for line in hunk.splitlines() if line[0] in "+ ")).splitlines()
        starts = [k for k in range(len(lines)) if textwrap.dedent("\n".join(lines[k : k + len(old)])).splitlines() == old]
        assert starts, f"the installed program has no such lines:\n{hunk}"
        for k in reversed(starts):
            indent = lines[k][: len(lines[k]) - len(lines[k].lstrip())]
            lines[k : k + len(old)] = [indent + line for line in new]
    return "\n".join(lines)


# ---- digits in the files that the programs read --------------------------------------------------------------------


def images():
    """Twenty digits, 24 x 24 with an empty border of 2, 0 to 255."""
    found = load_digits()
    return np.pad(np.kron(found.images[:20] / 16 * 255, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2))).astype(np.uint8), found.target[:20]


def idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    pictures, labels = images()
    for name in ("MNIST", "FashionMNIST"):
        raw = root / name / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            idx(raw / f"{part}-images-idx3-ubyte", pictures)
            idx(raw / f"{part}-labels-idx1-ubyte", labels)
    for part in ("train", "test"):
        for gesture in range(11):
            (root / "events_np" / part / str(gesture)).mkdir(parents=True)
            np.savez(root / "events_np" / part / str(gesture) / "0.npz", **recording(pictures[gesture]))
    return root


def recording(picture):
    """Events of a digit that moves to the right over a sensor of 128 x 128: on at its front, off behind it, 64 moves."""
    moves = {name: [] for name in "txyp"}
    for t in range(64):
        before, after = (np.roll(np.pad(picture > 64, ((50, 50), (10, 90))).astype(int), shift, axis=1) for shift in (t, t + 1))
        y, x = np.nonzero(after - before)
        for name, value in {"t": np.full(len(x), 1000 * t), "x": x, "y": y, "p": (after > before)[y, x].astype(int)}.items():
            moves[name].append(value)
    return {name: np.concatenate(values) for name, values in moves.items()}


# ---- the programs --------------------------------------------------------------------------------------------------


def train(program, diff, rule, data, out, monkeypatch, more=""):
    """Run the patched program for two epochs; its last checkpoint."""
    source = Path(importlib.util.find_spec(f"{EXAMPLES}.{program}").origin).read_text(encoding="utf-8")
    source = patched(source, diff.replace('"tssl"', f'"{rule}"'))
    options = f"{PROGRAMS[program]} {more} -device cpu -epochs 2 -j 0 -opt adam -lr 0.001 -data-dir {data} -out-dir {out}"
    monkeypatch.setattr(sys, "argv", [program, *options.split()])
    monkeypatch.chdir(out)
    torch.manual_seed(0)
    exec(compile(source, f"{program} with docs/swap.md", "exec"), {"__name__": "__main__"})
    (found,) = out.rglob("checkpoint_latest.pth")
    return torch.load(found, weights_only=True)


def check(checkpoint):
    """Every parameter has received finite gradients other than zero: Adam's moments remember them."""
    state = checkpoint["optimizer"]["state"]
    assert checkpoint["epoch"] == 1
    assert len(state) == len(checkpoint["optimizer"]["param_groups"][0]["params"])
    for k, moments in state.items():
        assert torch.isfinite(moments["exp_avg"]).all() and moments["exp_avg"].any(), f"parameter {k}"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_input_code_and_loss_as_well(program, rule, data, tmp_path, monkeypatch):
    check(train(program, snippets(program)[1], rule, data, tmp_path, monkeypatch))


@pytest.mark.parametrize("rule", RULES[:3])  # a loss of rates teaches stdbp nothing: the document says so
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_rule_alone(program, rule, data, tmp_path, monkeypatch):
    diff = snippets(program)[0]
    if (program, rule) == ("classify_dvsg", "strsbp"):  # as the document says
        diff = diff.replace('"tssl")', '"tssl", t_ref=0)')
    check(train(program, diff, rule, data, tmp_path, monkeypatch))


@pytest.mark.parametrize("model", ["plain", "ss"])
def test_the_other_networks_of_the_sequential_example(model, data, tmp_path, monkeypatch):
    check(train("rsnn_sequential_fmnist", snippets("rsnn_sequential_fmnist")[0], "tssl", data, tmp_path, monkeypatch, f"-model {model}"))


def test_every_program_of_the_document_is_run():
    assert re.findall(r"^## (\w+)$", DOC, re.MULTILINE) == list(PROGRAMS)
    assert all(len(snippets(program)) == 2 for program in PROGRAMS)
