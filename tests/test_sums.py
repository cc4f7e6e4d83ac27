"""Sums have the same bits on any number of threads, beside whatever else runs, and leave other threads alone."""

import threading
import time

import numpy as np
import pytest
import torch

import jvp_ops as jo
from jvp_ops import _sums

TERMS = torch.logspace(-12, 12, 400, dtype=torch.float64).view(20, 20) * torch.linspace(-1, 1, 20).double()


def add(item, total):
    total += item


def in_shares(terms):
    """Sum in the order that is promised, by hand."""
    total = torch.zeros_like(terms[0])
    for term in terms[:: _sums.SHARES]:
        total += term
    for number in range(1, _sums.SHARES):
        part = torch.zeros_like(total)
        for term in terms[number :: _sums.SHARES]:
            part += term
        total += part
    return total


def elsewhere(work):
    got = []
    thread = threading.Thread(target=lambda: got.append(work()))
    thread.start()
    thread.join()
    return got[0]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_shares_are_added_in_their_order(count, threads):
    threads(count)
    for _ in range(20):
        assert torch.equal(_sums.accumulate(add, TERMS.unbind(), torch.zeros(20).double()), in_shares(TERMS.unbind()))


def test_a_slow_share_is_waited_for(threads):
    threads(4)

    def slowly(item, total):
        time.sleep(0.03 if item[0] == TERMS[0, 0] else 0)
        total += item

    assert torch.equal(_sums.accumulate(slowly, TERMS.unbind(), torch.zeros(20).double()), in_shares(TERMS.unbind()))


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("number", [0, 1, 7, 19])
def test_an_error_comes_through_and_nobody_waits_for_ever(number, count, threads):
    threads(count)

    def failing(item, total):
        if item is terms[number]:
            raise ZeroDivisionError(f"term {number}")
        total += item

    terms = TERMS.unbind()
    with pytest.raises(ZeroDivisionError, match=f"term {number}"):
        _sums.accumulate(failing, terms, torch.zeros(20).double())


def test_one_tensor_is_held_for_each_thread_beside_the_sum(threads):
    held, lock = set(), threading.Lock()

    def note(item, total):
        with lock:
            held.add(total.data_ptr())
        time.sleep(0.001)

    for count in (2, 3):
        held.clear()
        threads(count)
        _sums.accumulate(note, TERMS.unbind(), torch.zeros(20).double())
        assert count <= len(held) <= count + 1


def test_work_runs_on_one_thread_each_and_no_other_thread_notices(threads):
    threads(16)
    within, beside = set(), set()

    def look(item, total):
        within.add(torch.get_num_threads())
        beside.add(elsewhere(torch.get_num_threads))

    for _ in range(3):
        _sums.accumulate(look, TERMS.unbind(), torch.zeros(20).double())
    assert within == {1}
    assert beside == {16}
    assert torch.get_num_threads() == elsewhere(torch.get_num_threads) == 16


def loss(dtype="float32"):
    random = np.random.default_rng(0)
    images = random.random((3000, 30)) * (random.random((3000, 30)) < 0.4)
    return jo.TwoLayerLoss(images, random.integers(0, 10, 3000), hidden=7, dtype=dtype)


def results(made):
    theta = made.initial(rng=1)
    H, V = made.hessian(theta), torch.ones(made.parameters.size, 3, dtype=made.dtype)
    return [made.value(theta), made.gradient(theta), H.apply(V), made.gauss_newton(theta).apply(V), H.dense()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_two_layer_network_has_the_same_bits_on_any_number_of_threads(dtype, threads):
    found = []
    for count in (1, 2, 3, 8, 12):
        threads(count)
        found.append(results(loss(dtype)))
    assert all(same(found[0], one) for one in found[1:])


def test_many_at_once_have_the_same_bits_as_one_alone(threads):
    threads(2)
    made = loss()
    alone = results(made)
    H = made.hessian(made.initial(rng=1))
    pairs = jo.eigenpairs(H, k=3, which="LA").vectors
    got, start = [], threading.Barrier(8)

    def work():
        start.wait()
        got.append(same(results(made), alone) and torch.equal(jo.eigenpairs(H, k=3, which="LA").vectors, pairs))

    running = [threading.Thread(target=work) for _ in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert got == [True] * 8
    assert same(elsewhere(lambda: results(made)), alone)


def test_where_threads_cannot_be_limited_one_does_all(monkeypatch, threads):
    threads(2)
    monkeypatch.setattr(_sums, "_torch_library", lambda: None)
    seen = set()

    def look(item, total):
        seen.add(threading.get_ident())
        total += item

    assert torch.equal(_sums.accumulate(look, TERMS.unbind(), torch.zeros(20).double()), in_shares(TERMS.unbind()))
    assert seen == {threading.get_ident()}
    assert _sums.worker_count(torch.device("cpu")) == 1
