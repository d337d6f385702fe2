"""Adam for dictionaries: atoms stay on the sphere, and everything else is Adam."""

from itertools import pairwise
from types import SimpleNamespace

import torch
from torch.nn.functional import normalize

from cbm.solvers.dictionary_adam import FLOOR, DictionaryAdam, schedule


def dictionary(seed: int = 0) -> SimpleNamespace:
    g = torch.Generator().manual_seed(seed)
    made = {
        "decoder": torch.nn.Parameter(normalize(torch.randn(6, 4, generator=g), dim=1)),
        "encoder": torch.nn.Parameter(torch.randn(6, 4, generator=g)),
        "offset": torch.nn.Parameter(torch.zeros(6)),
    }
    return SimpleNamespace(**made, silent=torch.zeros(6, dtype=torch.long), replacement=None)


def loss(d: SimpleNamespace, x: torch.Tensor) -> torch.Tensor:
    return (x - ((x @ d.encoder.T + d.offset).relu() @ d.decoder)).square().sum(1).mean()


def parameters(d: SimpleNamespace) -> list:
    return [d.decoder, d.encoder, d.offset]


def test_atoms_keep_their_length_and_the_rest_is_adam():
    d, plain, x = dictionary(), dictionary(), torch.randn(30, 4)
    optimizer = DictionaryAdam([d], parameters(d), lr=0.01, total=10**9, warmup=1)
    adam = torch.optim.Adam(parameters(plain), lr=0.01)
    for _ in range(5):
        for each, one in ((d, optimizer), (plain, adam)):
            one.zero_grad()
            loss(each, x).backward()
        with torch.no_grad():
            along = (plain.decoder.grad * plain.decoder).sum(1, keepdim=True)
            plain.decoder.grad -= along * plain.decoder
        optimizer.step()
        adam.step()
        with torch.no_grad():
            plain.decoder.copy_(normalize(plain.decoder, dim=1))
        torch.testing.assert_close(d.decoder.norm(dim=1), torch.ones(6), atol=1e-6, rtol=0)
    for own, other in zip(parameters(d), parameters(plain)):
        torch.testing.assert_close(own, other)


def test_with_a_closure_as_lightning_has_it():
    d, other, x = dictionary(), dictionary(), torch.randn(30, 4)
    a = DictionaryAdam([d], parameters(d), lr=0.01, total=100, warmup=1)
    b = DictionaryAdam([other], parameters(other), lr=0.01, total=100, warmup=1)

    def closure() -> torch.Tensor:
        a.zero_grad()
        value = loss(d, x)
        value.backward()
        return value

    for _ in range(3):
        a.step(closure)
        b.zero_grad()
        loss(other, x).backward()
        b.step()
    for own, again in zip(parameters(d), parameters(other)):
        assert own.equal(again)
    assert not d.decoder.grad.requires_grad  # memory grew with every step: a gradient held those before


def test_it_goes_on_where_it_stopped():
    d, x = dictionary(), torch.randn(30, 4)
    whole = DictionaryAdam([d], parameters(d), lr=0.01, total=20, warmup=5)
    other = dictionary()
    first = DictionaryAdam([other], parameters(other), lr=0.01, total=20, warmup=5)
    for step in range(8):
        if step == 4:  # another process
            state = first.state_dict()
            first = DictionaryAdam([other], parameters(other), lr=0.01, total=20, warmup=5)
            first.load_state_dict(state)
        for each, one in ((d, whole), (other, first)):
            one.zero_grad()
            loss(each, x).backward()
            one.step()
    for own, again in zip(parameters(d), parameters(other)):
        assert own.equal(again)


def test_the_schedule():
    values = [schedule(step, 1000, 100) for step in range(1200)]
    assert values[0] == 0.01
    assert max(values) == values[values.index(max(values))]
    assert 90 <= values.index(max(values)) <= 110
    assert all(a >= b for a, b in pairwise(values[110:]))
    assert values[1000:] == [FLOOR] * 200
