"""The command, as a user types it."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import snn_rules
from snn_rules import doctor, experiments, registry
from snn_rules.cli import app
from snn_rules.experiments import option
from snn_rules.testing import nvrtc

FAST = ["--network", "8-10", "--limit-train", "40", "--batch-size", "20", "--epochs", "2", "--T", "6"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("snn_rules.console.out.width", 200)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def done(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: str) -> str:
    """The one line on stderr; nothing else is said."""
    result = run(*words)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.startswith("snn-rules: ") and result.stderr.count("\n") == 1 and "Traceback" not in result.output
    return result.stderr


# ---- what there is ---------------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    text = done("--help")
    assert "Learning rules for spiking neural networks" in text
    assert all(command in text for command in ("list", "info", "doctor", "train", "compare", "lens"))


@pytest.mark.parametrize("command", ["list", "info", "doctor", "train", "compare", "lens"])
def test_every_option_has_help(command: str) -> None:
    done(command, "--help")
    from typer.main import get_command

    for parameter in get_command(app).commands[command].params:  # type: ignore[attr-defined]
        assert parameter.help, f"{command} {parameter.name}"


def test_list() -> None:
    lines = done("list").splitlines()
    assert lines[0].split() == ["rule", "distribution", "version", "state"]
    found = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert found["tssl"][0] == "snn-rules-tssl" and found["tssl"][2] == "installed" and found["surrogate"][0] == "snn-rules"


def test_list_shows_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = registry.RuleInfo("odd", "snn-rules-odd", "1.0", False, "rule 'odd' is claimed by a and b; uninstall one of them")
    monkeypatch.setattr("snn_rules.cli.rules", lambda: {"odd": broken})
    assert "rule 'odd' is claimed by a and b" in done("list")


@pytest.mark.parametrize("words", [["list"], ["--help"], ["train", "--help"]])
def test_answers_at_once(words: list[str]) -> None:
    program = (
        f"import sys; from snn_rules.cli import app\ntry: app({words})\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'spikingjelly', 'matplotlib', 'snn_rules_tssl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["surrogate", "tssl", "strsbp", "stdbp"])
def test_info(name: str) -> None:
    text, rule = done("info", name), snn_rules.get_rule(name)
    assert text.startswith(name) and (rule.__doc__ or "").splitlines()[0] in text and rule.cite in text and rule.equations in text
    words, refused = text.split(), set() if hasattr(rule, "tau_m") else {"decay_input"}
    names = {field.name for field in dataclasses.fields(rule)}
    assert names & set(words) == names - refused and f"T {rule.training.T}, lr {rule.training.lr}" in text


def test_info_shows_units_ranges_and_choices() -> None:
    lines = {line.split()[0]: line for line in done("info", "tssl").splitlines() if line}
    assert "5.0" in lines["tau_m"] and "steps" in lines["tau_m"] and "at least 1" in lines["tau_m"] and "membrane time constant" in lines["tau_m"]
    assert "zero | subtract" in lines["reset"] and "tau = tau_m" in lines["aliases"]
    assert "at least 0 1/v" not in lines["bound"] and "1/v" in lines["bound"]


def test_doctor() -> None:
    report = json.loads(done("doctor", "--json"))
    assert {"python", "torch", "spikingjelly", "snn-rules", "machine", "threads", "compiler", "cache", "cuda", "driver", "cupy", "rules"} <= set(
        report
    )
    loaded = {rule["name"]: rule for rule in report["rules"]}
    assert loaded["tssl"]["loads"] and loaded["tssl"]["executor"] and loaded["tssl"]["why"] and loaded["tssl"]["distribution"] == "snn-rules-tssl"
    assert loaded["stdbp"]["own layers"] and not loaded["tssl"]["own layers"]
    assert all(rule["recurrent"] == rule["executor"] for rule in loaded.values())
    text = done("doctor")
    assert report["torch"] in text and all(name in text for name in loaded)


def test_doctor_says_what_the_cache_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SNN_RULES_CACHE_DIR", str(tmp_path / "kernels"))
    assert doctor._cached().startswith("0 files")  # and no folder
    (tmp_path / "kernels").mkdir()
    for name, size in (("a", 1_000_000), ("b", 500_000)):
        (tmp_path / "kernels" / f"{name}.so").write_bytes(bytes(size))
    assert doctor._cached() == "2 files of kernels, 1.5 MB; any of them may be removed"


def test_doctor_on_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        nvrtc.architectures()
    except nvrtc.NoNvrtc as cause:
        pytest.skip(str(cause))
    monkeypatch.setattr("snn_rules.cli.rules", lambda: {"tssl": registry.rules()["tssl"]})
    rows = json.loads(done("doctor", "--kernels", "--json"))["kernels"]
    assert {row["kernel"] for row in rows if row["rule"] == "tssl"} == {"forward", "backward0", "recurrent step", "recurrent step_back"}
    assert {75, 80, 86, 89, 90, 100, 120} == {row["arch"] for row in rows}
    assert all(row["compiled"] and row["registers"] and row["spills"] == 0 for row in rows)
    assert "sm_120" in done("doctor", "--kernels")
    assert "kernels" not in json.loads(done("doctor", "--json"))


@pytest.mark.usefixtures("registry")
@pytest.mark.filterwarnings("ignore:'cubic' runs on torch tensors")
def test_doctor_survives_a_rule_that_cannot_be_a_kernel(install: Callable[..., Path]) -> None:
    step = "    def step(self, m, x):\n        return {}\n\n@hookimpl"
    install("cubic", ("@hookimpl", step.format('x**3, {"v": m.v}, {}')))
    install("short", ("@hookimpl", step.format("x")))
    for rule in json.loads(done("doctor", "--json"))["rules"]:
        if rule["name"] == "cubic":
            assert rule["loads"] and rule["executor"] == "eager torch" and "its step cannot be made a kernel (unsupported" in rule["why"]
        elif rule["name"] == "short":
            assert not rule["loads"] and "its step returns (Node); it should return the spike" in rule["error"]
        else:
            assert rule["loads"] and rule["executor"] != "eager torch"
    assert "cannot be made a kernel" in " ".join(done("doctor").split())


def test_doctor_survives_a_rule_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snn_rules.cli.rules", lambda: {"odd": registry.RuleInfo("odd", "snn-rules-odd", "1.0", False)})
    (rule,) = json.loads(done("doctor", "--json"))["rules"]
    assert not rule["loads"] and "unknown rule 'odd'" in rule["error"] and rule["executor"] is None
    assert "no: unknown rule 'odd'" in done("doctor")


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["surrogate", "tssl", "strsbp", "stdbp", "stdbp mode=event"])
def test_train_every_rule(rule: str) -> None:
    name, *options = rule.split()
    text = done("train", "--rule", name, *FAST, *(word for pair in options for word in ("--option", pair)), "--out", "here")
    *epochs, last = text.splitlines()
    assert len(epochs) == 2 and epochs[0].startswith(f"{name} on digits: 1/2  loss ")
    assert last.startswith("best ") and last.endswith("; wrote here/checkpoint.pt and here/history.json")
    history = json.loads(Path("here/history.json").read_text())
    assert history["command"].startswith(f"snn-rules train --rule {name} --network 8-10") and history["network"] == "8-10"
    assert history["versions"]["torch"] and history["config"]["batch_size"] == 20 and len(history["epochs"]) == 2
    assert history["best_test_accuracy"] == max(epoch["test_accuracy"] for epoch in history["epochs"])
    assert all(history["options"][key] == value for key, value in map(option, options)) and history["cite"]


def test_train_and_resume() -> None:
    done("train", "--rule", "tssl", *FAST, "--out", "here")
    whole = done("train", "--rule", "tssl", *FAST, "--epochs", "3", "--out", "whole")
    text = done("train", "--rule", "tssl", *FAST, "--epochs", "3", "--out", "here", "--resume")
    assert text.startswith("tssl on digits: 3/3") and text.split(";")[0].splitlines()[-1] == whole.split(";")[0].splitlines()[-1]
    again = done("train", "--rule", "tssl", *FAST, "--epochs", "3", "--out", "here", "--resume")
    assert len(again.splitlines()) == 1 and len(json.loads(Path("here/history.json").read_text())["epochs"]) == 3


def test_trainings_without_out_get_folders_of_their_own() -> None:
    for _ in range(2):
        done("train", "--rule", "tssl", *FAST)
    assert {path.name for path in Path("runs").iterdir()} == {"digits-tssl-1", "digits-tssl-2"}


def test_settings_without_an_option_of_their_own() -> None:
    settings = "augment=crop-flip", "crop_padding=1", "lr=1", "thresholds=0.5,1"
    done("train", "--rule", "tssl", *FAST, *(word for setting in settings for word in ("--setting", setting)), "--out", "here")
    config = json.loads(Path("here/history.json").read_text())["config"]
    assert (config["augment"], config["crop_padding"], config["lr"], config["thresholds"]) == ("crop-flip", 1, 1, [0.5, 1])
    done("compare", "--rules", "tssl", *FAST, "--seeds", "0", "--setting", "weight_decay=0.5", "--out", "both")
    assert json.loads(Path("both/compare.json").read_text())["rules"]["tssl"]["config"]["weight_decay"] == 0.5


def test_a_training_that_is_stopped_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "fit", stop)
    early = run("train", "--rule", "tssl", *FAST, "--out", "some where")
    assert "stopped before the first epoch was whole; nothing is written" in early.stderr
    Path("some where").mkdir(exist_ok=True)
    Path("some where/checkpoint.pt").touch()
    result = run("train", "--rule", "tssl", *FAST, "--out", "some where")
    assert result.exit_code == 130 and "stopped; --out 'some where' --resume goes on" in result.stderr and "Traceback" not in result.output


def test_compare() -> None:
    rules = "surrogate,tssl,stdbp:mode=event:v_threshold=0.5"
    text = done("compare", "--rules", rules, *FAST, "--seeds", "0,1", "--out", "both")
    rows = {line.split()[0]: line for line in text.splitlines() if line and line.split()[0] in rules.split(",")}
    assert list(rows) == rules.split(",") and all("±" in row for row in rows.values())
    assert text.splitlines()[-1] == "wrote both/compare.json and both/compare.png"
    assert Path("both/compare.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(Path("both/compare.json").read_text())
    assert list(report["rules"]) == rules.split(",") and report["seeds"] == [0, 1]
    event = report["rules"]["stdbp:mode=event:v_threshold=0.5"]
    assert event["options"]["mode"] == "event" and event["options"]["v_threshold"] == 0.5
    last = [event["seeds"][seed][-1]["test_accuracy"] for seed in ("0", "1")]
    assert event["test_accuracy_mean"] == pytest.approx(sum(last) / 2) and len(event["seeds"]["0"]) == 2


REFUSALS = [
    (["info", "tsl"], "unknown rule 'tsl' (did you mean 'tssl'?); installed are "),
    (["train", "--rule", "tsl"], "unknown rule 'tsl'"),
    (["train", "--rule", "tssl", "--option", "tau_mm=3"], "unknown option 'tau_mm' (did you mean 'tau_m'?)"),
    (["train", "--rule", "tssl", "--option", "tau_m"], "option 'tau_m' should be KEY=VALUE, such as tau_m=5"),
    (["train", "--rule", "tssl", "--option", "tau_m=0.1"], "tssl: tau_m=0.1 should lie between 1 and inf"),
    (["train", "--rule", "tssl", "--network", "10-x"], "network '10-x': 'x' is no layer"),
    (["train", "--rule", "tssl", "--network", "400"], "the last part is '400', but the data has 10 classes"),
    (["train", "--rule", "tssl", "--dataset", "mnits"], "unknown data set 'mnits'; there are digits, mnist, fashion-mnist"),
    (["train", "--rule", "tssl", "--dataset", "mnist"], "data set 'mnist': no train-images", "data/MNIST/raw", "--data-root"),
    (["train", "--rule", "tssl", "--epochs", "0"], "epochs=0 should be a whole number, at least 1"),
    (["train", "--rule", "tssl", "--schedule", "linear"], "schedule='linear' is not one of constant, sqrt, cosine"),
    (["train", "--rule", "tssl", "--setting", "agument=elastic"], "--setting knows no agument (did you mean 'augment'?); it takes T, augment, "),
    (["train", "--rule", "tssl", "--setting", "augment=elastic"], "elastic_sigma=4 is too wide for images of 8 x 8; pass at most 1.75"),
    (["train", "--rule", "tssl", "--setting", "clip=soft"], "training: clip='soft' should be a number, or left out"),
    (["train", "--rule", "tssl", "--limit-train", "0"], "0 samples for training are too few"),
    (["train", "--rule", "tssl", "--resume"], "--resume needs --out"),
    (["train", "--rule", "tssl", "--resume", "--out", "nowhere"], "checkpoint 'nowhere/checkpoint.pt' does not exist"),
    (["compare", "--rules", "tssl,tsl"], "unknown rule 'tsl'"),
    (["compare", "--rules", "tssl", "--seeds", "0,x"], "--seeds '0,x' should be whole numbers joined by ','"),
    (["compare", "--rules", "tssl,stdbp:mode=event", "--network", "R8-10"], "part 1, 'R8', is recurrent, but 'stdbp'"),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: " ".join(case[0]))
def test_refusals_are_one_line(case: tuple[list[str], ...]) -> None:
    words, *says = case
    line = refused(*words)
    assert all(part in line for part in says)
    assert not Path("runs").exists() and not Path("nowhere").exists()  # nothing was begun


def test_a_damaged_checkpoint_is_refused() -> None:
    done("train", "--rule", "tssl", *FAST, "--out", "here")
    Path("here/checkpoint.pt").write_bytes(b"PK")
    line = refused("train", "--rule", "tssl", *FAST, "--out", "here", "--resume")
    assert "checkpoint 'here/checkpoint.pt' cannot be read" in line and "copy 'here/checkpoint.pt.previous' over it" in line
    assert "holds a training already; pass --resume" in refused("train", "--rule", "tssl", *FAST, "--out", "here")


@pytest.mark.parametrize("words", [["--debug", "info", "tsl"], ["info", "tsl", "--debug"]])
def test_debug_shows_the_traceback(words: list[str]) -> None:
    assert isinstance(run(*words).exception, snn_rules.RuleError)
    program = subprocess.run([sys.executable, "-c", f"from snn_rules.cli import app; app({words})"], capture_output=True, text=True)
    assert program.returncode == 1 and "Traceback" in program.stderr and "unknown rule 'tsl'" in program.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1", 1), ("a=-2.5", -2.5), ("a=1e-3", 1e-3), ("a=True", True), ("a=false", False), ("a=inf", float("inf")), ("a=>=", ">="), ("a=b=c", "b=c"),
     ("a=5,2.5,x", [5, 2.5, "x"]), ("a=5,", [5])],
)  # fmt: skip
def test_values_of_options(text: str, value: object) -> None:
    assert option(text) == ("a", value) and type(option(text)[1]) is type(value)


@pytest.mark.parametrize("text", ["", "a", "=1", "a="])
def test_options_that_are_none(text: str) -> None:
    with pytest.raises(snn_rules.RuleError, match="should be KEY=VALUE"):
        option(text)


def test_the_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0 and done.output == f"snn-rules {snn_rules.__version__}\n"
