"""Answers that say something about other concepts."""

import torch

from cbm.editing import propagate, source_covariance


def test_two_correlated_concepts():
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    told, values = torch.tensor([[True, False]]), torch.tensor([[2.0, 9.0]])
    after = propagate(torch.zeros(1, 2), told, values, covariance)
    torch.testing.assert_close(after, torch.tensor([[2.0, 1.6]]))


def test_conditional_means_one_picture_at_a_time():
    g = torch.Generator().manual_seed(0)
    root = torch.randn(7, 7, generator=g, dtype=torch.float64)
    covariance = root @ root.T
    a, values = torch.randn(2, 40, 7, generator=g, dtype=torch.float64)
    told = torch.rand(40, 7, generator=g) < 0.4
    told[0] = False
    told[1] = True
    after = propagate(a, told, values, covariance)
    for row in range(40):
        inside, outside = told[row].nonzero()[:, 0], (~told[row]).nonzero()[:, 0]
        expected = a[row].clone()
        expected[inside] = values[row, inside]
        if len(inside):
            inner = torch.linalg.inv(covariance[inside][:, inside])
            expected[outside] += covariance[outside][:, inside] @ inner @ (values[row, inside] - a[row, inside])
        torch.testing.assert_close(after[row], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(after[told], values[told])


def test_without_correlation_only_the_told_change():
    g = torch.Generator().manual_seed(1)
    a, values = torch.randn(2, 20, 5, generator=g)
    told = torch.rand(20, 5, generator=g) < 0.5
    after = propagate(a, told, values, torch.diag(torch.rand(5, generator=g) + 0.1))
    torch.testing.assert_close(after, torch.where(told, values, a))
    assert torch.equal(propagate(a, told & False, values, torch.eye(5)), a)
    assert propagate(a[:0], told[:0], values[:0], torch.eye(5)).shape == (0, 5)


def test_concepts_that_were_not_asked_about_are_known_better():
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(3000, 2, generator=g)
    truth = hidden[:, [0, 0, 0, 1, 1, 1]] + 0.3 * torch.randn(3000, 6, generator=g)
    shade = torch.randn(3000, 2, generator=g)  # what makes one concept look wrong does so to its relatives
    seen = truth + shade[:, [0, 0, 0, 1, 1, 1]] + 0.3 * torch.randn(3000, 6, generator=g)
    told = torch.zeros(3000, 6, dtype=torch.bool)
    told[:, [0, 3]] = True
    after = propagate(seen, told, truth, source_covariance(seen))
    rest = [1, 2, 4, 5]
    error = [(each[:, rest] - truth[:, rest]).square().mean() for each in (seen, after)]
    assert error[1] < 0.5 * error[0]
