"""One training in two processes: the curve of one, one voice, and an end without a hang when a process dies."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import snn_rules
from snn_rules import distributed, experiments
from snn_rules.cli import app
from snn_rules.distributed import ALONE, Team, team

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("sharing", HERE / "sharing.py")
sharing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sharing)


def ports(count: int) -> list[str]:
    """Free ones."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [str(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return numbers


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found, by rank; each started as torchrun starts it."""
    folder, (first, second) = tmp_path_factory.mktemp("pair"), ports(2)
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": first, "SECOND_PORT": second, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, str(HERE / "sharing.py"), str(folder)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said, _ = both[0].communicate(timeout=300)
    both[1].kill()
    both[1].communicate()
    assert both[0].returncode == 0, said
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("0", "1", "hang")}


@pytest.mark.parametrize("case", sharing.CASES)
def test_two_processes_have_the_curve_of_one(case: str, pair: dict[str, Any]) -> None:
    alone, together = sharing.curve(case, ALONE), pair["0"]["curves"][case]
    tight = 1e-12 if case == "float64" else 1e-5
    for one, two in zip(alone, together, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=tight)
        assert (two["train_accuracy"], two["test_accuracy"]) == (one["train_accuracy"], one["test_accuracy"])
        assert all(two[name] == pytest.approx(one[name], rel=tight) for name in ("firing", "synops")) and two["firing_mean"] == pytest.approx(
            one["firing_mean"], rel=tight
        )
    assert pair["1"]["curves"][case] == together  # both know it
    assert alone[0]["loss"] != alone[-1]["loss"]


def test_processes_draw_their_own_noise_and_stay_together(pair: dict[str, Any]) -> None:
    assert pair["0"]["dropout"] == pair["1"]["dropout"]
    (own, common), (others, same) = pair["0"]["drawn"], pair["1"]["drawn"]
    assert own != others and common == same


def test_a_process_that_does_not_answer_ends_the_training(pair: dict[str, Any]) -> None:
    seconds, message = pair["hang"]
    assert seconds < 40
    assert message == "train: one of the 2 processes has ended or has not answered for 8 s (SNN_RULES_TIMEOUT sets how long to wait); go on"


def test_parts_are_the_batch_and_weigh_like_it() -> None:
    losses = torch.rand(13, dtype=torch.float64)
    for size in (1, 2, 3, 5):
        for samples in (1, 4, 5, 13):
            batch, processes = losses[:samples], [Team(rank, size, "cpu", 60.0) for rank in range(size)]
            assert torch.equal(torch.cat([batch[process.own(samples)] for process in processes]), batch)
            for reduction, want in (("mean", batch.mean()), ("sum", batch.sum())):
                parts = [process.part(samples, reduction) for process in processes]
                assert all(len(batch[mine]) for mine, _ in parts)
                averaged = sum(weight * getattr(batch[mine], reduction)() for mine, weight in parts) / size  # as DDP does
                torch.testing.assert_close(averaged, want)


# ---- torchrun ------------------------------------------------------------------------------------------------------

WORDS = ["--rule", "strsbp", "--network", "12-10", "--limit-train", "61", "--batch-size", "20", "--T", "12", "--epochs", "3"]


def torchrun(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", *ports(1), *words, *WORDS, "--out", "here"]
    return subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, timeout=300)


def test_a_killed_process_ends_the_training_and_resume_goes_on(tmp_path: Path, pair: dict[str, Any]) -> None:
    killed = torchrun(str(HERE / "killed.py"), "train", "--distributed", folder=tmp_path, KILL="1,5")  # in the second epoch
    assert killed.returncode != 0 and time.time() - (tmp_path / "here" / "checkpoint.pt").stat().st_mtime < 45  # it does not hang
    assert killed.stderr.count("snn-rules: ") == 1, killed.stderr
    assert "snn-rules: train: one of the 2 processes has ended" in killed.stderr
    assert "--out here --resume goes on after the last whole epoch" in killed.stderr and "SIGKILL" in killed.stderr
    assert len(killed.stdout.splitlines()) == 1 and "strsbp on digits: 1/3" in killed.stdout
    resumed = torchrun("-m", "snn_rules", "train", "--distributed", "--resume", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    *epochs, last = resumed.stdout.splitlines()
    assert [line.split()[3] for line in epochs] == ["2/3", "3/3"] and last.startswith("best ")  # one voice
    history = json.loads((tmp_path / "here" / "history.json").read_text())["epochs"]
    assert {path.name for path in (tmp_path / "here").iterdir()} == {".lock", "checkpoint.pt", "checkpoint.pt.previous", "history.json"}
    history = [{k: v for k, v in epoch.items() if k not in sharing.OWN} for epoch in history]
    assert history == pair["0"]["curves"]["as the command does"]  # to the bit as if there had been no break


REFUSED = [
    ({}, ["--distributed"], "train: --distributed needs the processes that torchrun starts; write torchrun --nproc-per-node 2 -m snn_rules train"),
    ({"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2"}, [], "torchrun has started 2 processes, which would all do the same; pass --distr"),
    (
        {"RANK": "0", "WORLD_SIZE": "2", "SNN_RULES_TIMEOUT": "soon"},
        ["--distributed"],
        "SNN_RULES_TIMEOUT='soon' should be a number of seconds above",
    ),
]


@pytest.mark.parametrize(("environment", "words", "says"), REFUSED)
def test_what_cannot_be_shared_is_refused(environment: dict[str, str], words: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["train", *WORDS, *words])
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1 and says in result.stderr


def test_one_process_downloads_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bool] = []

    class Second(distributed.Alone):
        def first(self, work: Any) -> Any:
            asked.append(True)

    def data(*_: Any) -> Any:
        assert asked, "it did not wait for the first process"
        raise snn_rules.RuleError("that is all")

    monkeypatch.setattr("snn_rules.experiments.data.load", data)
    task = experiments.Task("", "8-10", "mnist", tmp_path, download=True, limit_train=None, settings={})
    with pytest.raises(snn_rules.RuleError, match="that is all"):
        experiments.train(task, "tssl", [], 0, tmp_path, resume=False, team=Second())


def test_compare_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["compare", "--rules", "tssl"])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == (
        "snn-rules: compare: torchrun has started 2 processes, which would all do the same; start one: only train has --distributed\n"
    )


def test_fewer_samples_than_processes_and_fewer_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = snn_rules.get_rule("tssl")
    with pytest.raises(snn_rules.RuleError, match=r"batch_size=1 is less than a sample for each of the 2 processes; raise it"):
        sharing.fit(torch.nn.Linear(1, 1), rule, sharing.FEW, sharing.Config.of(rule, batch_size=1), team=Team(0, 2, "cpu", 60.0))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(snn_rules.RuleError, match=r"process 2 of this machine has no GPU of its own, torch sees 1; pass --nproc-per-node 1"):
        distributed._take_gpu()


def test_alone_is_a_team_of_one() -> None:
    with team(False, "cpu") as one:
        assert one is ALONE and one.sum([2.0]) == [2.0] and one.first(lambda: 3) == 3 and one.part(7, "mean") == (slice(0, 7), 1.0)
