"""Large outputs live on recycled memory; nobody can tell."""

import copy
import gc
import os
import pickle
import subprocess
import sys

import pytest
import torch

import snn_rules
from snn_rules.kernels.buffers import PAGE, SMALLEST, Pool, _capacity, memory


def test_a_block_comes_back_when_its_last_user_is_gone():
    pool = Pool(4 * PAGE)
    first = pool.take(SMALLEST)
    view = memoryview(first)
    del first
    gc.collect()
    assert pool.waiting == 0  # the view still needs it
    del view
    gc.collect()
    assert pool.waiting == SMALLEST
    again = pool.take(SMALLEST - 5)
    assert pool.waiting == 0 and len(again) >= SMALLEST - 5


def test_the_pool_is_capped():
    pool = Pool(3 * PAGE)
    blocks = [pool.take(2 * PAGE) for _ in range(3)]
    del blocks
    gc.collect()
    assert pool.waiting == 2 * PAGE


def test_sizes_that_are_used_no_more_make_room():
    pool = Pool(8 * PAGE)
    before = [pool.take(2 * PAGE) for _ in range(4)]
    del before
    gc.collect()
    assert pool.waiting == 8 * PAGE
    for size in (3, 3, 5):  # the pages that come back are those that are taken next
        block = pool.take(size * PAGE)
        block[0] = b"x"
        del block
        gc.collect()
        assert pool.waiting <= 8 * PAGE
        again = pool.take(size * PAGE)
        assert again[0] == b"x" and pool.waiting + size * PAGE <= 8 * PAGE
        del again
        gc.collect()
    whole, too_large = pool.take(8 * PAGE), pool.take(9 * PAGE)
    del too_large
    gc.collect()
    assert 0 < pool.waiting <= 8 * PAGE  # for the sake of what never fits, nothing is dropped
    del whole
    gc.collect()
    assert pool.waiting == 8 * PAGE


def test_a_capacity_that_is_none_is_said_in_one_line():
    for given in ("-1", "1.5", ""):
        with pytest.raises(snn_rules.RuleError, match=rf"^SNN_RULES_POOL_MB='{given}' should be a whole number of megabytes, at least 0"):
            _capacity(given)
    given = {**os.environ, "SNN_RULES_POOL_MB": "abc"}
    done = subprocess.run([sys.executable, "-c", "import snn_rules.kernels"], env=given, capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1].startswith("snn_rules.rule.RuleError: SNN_RULES_POOL_MB='abc' should be")


def test_tensors_of_the_pool_are_ordinary():
    x = torch.randn(3, 1 << 19)
    made = memory(x)(x).copy_(x)
    row = made[1]
    twin, loaded = copy.deepcopy(made), pickle.loads(pickle.dumps(made))
    del made
    gc.collect()
    memory(x)(x).zero_()  # takes whatever came back
    assert torch.equal(row, x[1]) and torch.equal(twin, x) and torch.equal(loaded, x)
    assert memory(x)(x[0]).data_ptr() != row.data_ptr()


def test_training_on_recycled_memory_is_the_same():
    torch.manual_seed(0)
    x, g = torch.randn(8, 4, 40000), torch.randn(8, 4, 40000)
    node, found = snn_rules.RuleNode("tssl", step_mode="m"), []
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        out = node(leaf)
        out.backward(g)
        found.append((out.detach().clone(), leaf.grad.clone()))
        node.reset()
    small = x[:, :, :4000].clone().requires_grad_()
    out = node(small)
    out.backward(g[:, :, :4000])
    for spikes, grad in found:
        assert torch.equal(spikes[:, :, :4000], out) and torch.equal(grad[:, :, :4000], small.grad)


def test_the_allocator_can_be_tuned():
    code = "import snn_rules, torch; print(snn_rules.tune_cpu_allocator()); a = torch.ones(1 << 24); del a; print(float(torch.ones(1 << 24).sum()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(float(1 << 24))]
