"""A training that dies in many ways, each in a process of its own: dying.py FOLDER prints how each ended."""

import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from snn_rules import RuleError, checkpoint, get_rule
from snn_rules.data import load
from snn_rules.network import network
from snn_rules.train import Config, fit

DATA = load("digits").limit(60)


def train(folder=None, resume=False, on_step=None):
    rule = get_rule("strsbp")  # whose input code is random
    config = Config.of(rule, T=8, epochs=3, batch_size=20, network="6-10")
    torch.manual_seed(0)
    history = fit(network("6-10", rule, DATA.shape), rule, DATA, config, folder, resume, on_step)
    return [{k: v for k, v in asdict(epoch).items() if k not in ("seconds", "step_ms", "peak_mb")} for epoch in history.epochs]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def mid_epoch(folder):
    train(folder, on_step=lambda epoch, step, steps: (epoch, step) == (1, 2) and die())


def at_the_second(name, owner):
    """Die the second time that `owner.name` is called."""
    true, calls = getattr(owner, name), []

    def once(*args, **kwargs):
        calls.append(1)
        return true(*args, **kwargs) if len(calls) < 2 else die()

    setattr(owner, name, once)


def half_written(folder):
    save, calls = torch.save, []

    def half(state, file):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half of it")
            file.flush()
            die()
        save(state, file)

    torch.save = half
    train(folder)


def before_it_is_safe(folder):
    at_the_second("fsync", os)
    train(folder)


def before_it_takes_its_place(folder):
    replace, calls = os.replace, []

    def last(source, target):
        calls.append(1)
        if len(calls) == 3:  # first checkpoint; the second's previous; the second's own
            die()
        replace(source, target)

    os.replace = last
    train(folder)


def full_disk(folder):
    def limit(epoch, step, steps):
        if epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # no file may grow further: EFBIG

    train(folder, on_step=limit)


def second_in_the_folder(folder):
    """While this one trains, another one begins."""

    def other(epoch, step, steps):
        if (epoch, step) == (0, 1):
            if os.fork() == 0:
                attempt(train, folder)
            os.wait()

    train(folder, on_step=other)


WAYS = [mid_epoch, half_written, before_it_is_safe, before_it_takes_its_place, full_disk, second_in_the_folder]


def attempt(body, folder):
    """`body` in this process, which then ends: 2 after a refusal, which is kept beside the folder."""
    try:
        body(folder)
    except RuleError as refusal:
        Path(f"{folder}.refused").write_text(str(refusal))
        os._exit(2)
    os._exit(0)


def main(root):
    torch.set_num_threads(1)
    found = {"whole": train()}
    for way in WAYS:
        folder = root / way.__name__
        if (child := os.fork()) == 0:
            attempt(way, folder)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        refused = Path(f"{folder}.refused")
        left = checkpoint.load(folder / "checkpoint.pt")["epoch"]  # whole, whatever happened
        curve = train(folder, resume=True)
        found[way.__name__] = [ended, refused.read_text() if refused.exists() else "", left, curve, sorted(path.name for path in folder.iterdir())]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
