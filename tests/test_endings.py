"""Commands that end early: stopped, onto a full disk, on a narrow terminal."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from typer.testing import CliRunner, Result

from snn_rules import experiments
from snn_rules.cli import app


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("command", ["compare", "lens"])
def test_a_command_that_is_stopped_is_one_line(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.Task, "data", stop)
    result = run(command, "--rules", "tssl,surrogate")
    assert (result.exit_code, result.output) == (130, "snn-rules: stopped before the end; no results are written\n")


def test_more_samples_than_there_are_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    task = experiments.Task("", "8-10", "digits", Path("data"), False, 99999, {})
    assert len(task.data().train_y) == 1437
    assert capsys.readouterr().err == "snn-rules: --limit-train 99999: digits has 1437 samples for training; it takes them all\n"


def test_curves_onto_a_file_are_refused() -> None:
    Path("here").mkdir()
    Path("here/tensorboard").touch()
    says = "train: --tensorboard writes into the folder 'here/tensorboard', but a file is there; move it, or choose another --out"
    assert run("train", "--rule", "tssl", "--out", "here", "--tensorboard").output == f"snn-rules: {says}\n"


def said(code: str, stdout: int | IO[str]) -> subprocess.CompletedProcess[str]:
    narrow = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    return subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, env=narrow)


def test_a_character_that_the_terminal_lacks_is_replaced() -> None:
    assert said("from snn_rules.console import out, writable\nwith writable(): out.print('1 ± 2')", subprocess.PIPE).stdout == "1 ? 2\n"


@pytest.mark.parametrize("word", ["list", "--help"])
def test_a_stdout_that_is_full_is_one_line(word: str) -> None:
    with open("/dev/full", "w") as full:
        done = said(f"from snn_rules.cli import app; app(['{word}'])", full)
    assert (done.returncode, done.stderr) == (2, "snn-rules: stdout cannot be written (No space left on device); give it a place with room\n")
