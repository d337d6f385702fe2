"""Nonlinear concept bottleneck without the N x K scores: logits, and the loss with its gradients.

    u = inv_norm_n (x_n . t_k)        a = phi(alpha_k u + beta_k)        logits = a W^T + bias

Rows go through in chunks. On a CPU the scores of a chunk stay in cache, between products of the library. On a GPU a
chunk is what a budget of memory allows (``cbm.kernels.chunks.CHUNK_BYTES``): one kernel makes its activations, written
once, in half precision if the features are; the library multiplies them with the head, and the gradient of the logits
with them. The loss computes its gradients in the same pass, as the Liger kernels do for language-model heads; logits
compute their activations again in the backward pass. Nothing of size N x K outlives a chunk.

A kernel that keeps the scores in registers would save the 4 bytes a score that half precision writes and reads, and
pay 2D FLOP for each to be computed again in the backward pass: at D = 512 the price is the higher one on every GPU with
tensor cores, so there is none.

Plans:

    eager      plain autograd through the scores: what small problems take, and what the other is tested against
    chunked    the default

``backend`` says what computes a plan: "eager" is PyTorch, "chunked" is PyTorch or Triton between the products.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cbm.kernels.backend import Backend, use_triton
from cbm.kernels.chunks import accumulate, as_operand, product, rows_per_chunk, slices
from cbm.kernels.scores import ACTIVATIONS, Activation, check_activation, concept_scores, slope
from cbm.kernels.shapes import (
    check_labels,
    check_matrix,
    check_row_factors,
    check_vector,
    compute_dtype,
    may_read,
    scaled_alpha,
)

Plan = Literal["auto", "eager", "chunked"]
_SMALL = {"cpu": 2**20, "cuda": 2**24}
"""Scores that plain autograd may hold: 4 and 64 MB of float32. With fewer, a GPU waits for its orders."""
_WHOLE = 8  # classes: the tensor cores' loads want rows of 16 bytes
_NEVER_NEGATIVE = ("sigmoid", "relu")


def fused_bottleneck_logits(
    x: Tensor,
    concepts: Tensor,
    head: Tensor,
    *,
    activation: Activation,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | Tensor = 1.0,
    inv_norm: Tensor | None = None,
    plan: Plan = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """Logits of a nonlinear bottleneck, ``phi(scale * alpha * inv_norm * x T^T + beta) W^T + bias``.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        head: Class weights over concepts [C, K].
        activation: "identity", "sigmoid", "relu", "tanh" or "cube".
        alpha: Factor on every concept's score [K]; None for 1.
        beta: Added to every concept's score [K]; None for 0.
        bias: Class bias [C]; None for 0.
        scale: Factor on the scores, a number or a 0-d tensor.
        inv_norm: A factor on every row of x [N], such as 1 / |x|; None for 1.
        plan: See above; "auto" for "eager" if there are few scores and Triton is not asked for, else "chunked".
        backend: "auto", "torch" or "triton".

    Returns:
        Logits [N, C], float32 or float64. Differentiable once in every other tensor.

    Raises:
        ValueError: If a shape does not fit, a word is unknown, or the plan or backend cannot take the tensors.
    """
    problem, way, triton = _checked(x, concepts, head, activation, alpha, beta, bias, scale, inv_norm, plan, backend)
    if way == "eager":
        return problem.eager()[1]
    logits = torch.ops.cbm.bottleneck_logits(*problem.tensors, activation, triton)
    return logits if bias is None else logits + bias.to(compute_dtype(logits, bias))


def fused_bottleneck_loss(
    x: Tensor,
    concepts: Tensor,
    head: Tensor,
    y: Tensor,
    *,
    activation: Activation,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | Tensor = 1.0,
    inv_norm: Tensor | None = None,
    label_smoothing: float = 0.0,
    l1_scores: float = 0.0,
    chunk_rows: int | Literal["auto"] = "auto",
    plan: Plan = "auto",
    backend: Backend = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of ``fused_bottleneck_logits``, plus ``l1_scores`` times the mean absolute activation.

    Gradients are computed in the forward pass, for those tensors that require one, and handed on by the backward pass.

    Args:
        x: Image features [N, D].
        concepts: Concept embeddings [K, D].
        head: Class weights over concepts [C, K].
        y: Classes [N] (int64).
        activation: "identity", "sigmoid", "relu", "tanh" or "cube".
        alpha: Factor on every concept's score [K]; None for 1.
        beta: Added to every concept's score [K]; None for 0.
        bias: Class bias [C]; None for 0.
        scale: Factor on the scores, a number or a 0-d tensor.
        inv_norm: A factor on every row of x [N]; None for 1.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
        l1_scores: Weight of the mean of |a|.
        chunk_rows: Rows per step; "auto" for as many as ``CHUNK_BYTES`` allows.
        plan: As for the logits.
        backend: As for the logits.

    Returns:
        The loss, 0-d, and ``accuracy`` and ``mean_abs_score`` (mean of |a|), 0-d, without a gradient. On a GPU the
        labels are not looked at before: a label that is no class makes the loss and the gradients NaN.

    Raises:
        ValueError: If a shape does not fit, a word is unknown, a number is out of range, or the plan or backend cannot
            take the tensors.
    """
    problem, way, triton = _checked(x, concepts, head, activation, alpha, beta, bias, scale, inv_norm, plan, backend)
    n, c = len(x), len(head)
    if may_read(y):
        check_labels(y, n, c)
    elif list(y.shape) != [n] or y.dtype != torch.int64:
        raise ValueError(f"y has shape {list(y.shape)} and dtype {y.dtype}; expected an int64 [{n}] vector")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected 0 <= label_smoothing < 1")
    if chunk_rows != "auto" and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; expected >= 1 or 'auto'")
    if way == "eager":
        activations, logits = problem.eager()
        loss = torch.nn.functional.cross_entropy(logits, y, label_smoothing=label_smoothing)
        right = (logits.detach().argmax(1) == y).to(loss.dtype).mean()
        size = (activations if l1_scores else activations.detach()).abs().mean()
        return loss + l1_scores * size if l1_scores else loss, {"accuracy": right, "mean_abs_score": size.detach()}
    need = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (*problem.tensors[:5], bias)]
    rows = problem.rows(triton, inner=any((*need[:2], *need[3:5]))) if chunk_rows == "auto" else chunk_rows
    loss, right, size, *_ = torch.ops.cbm.bottleneck_loss(
        *problem.tensors, bias, y, activation, label_smoothing, l1_scores, rows, triton, need
    )
    return loss, {"accuracy": right, "mean_abs_score": size}


def _checked(
    x, concepts, head, activation, alpha, beta, bias, scale, inv_norm, plan, backend
) -> tuple[_Bottleneck, str, bool]:
    """Check the arguments against each other, pick the plan, and say whether Triton computes it."""
    check_activation(activation)
    if plan not in ("auto", "eager", "chunked"):
        raise ValueError(f"plan is {plan!r}; expected 'auto', 'eager' or 'chunked'")
    k = len(check_matrix("concepts", concepts, columns=check_matrix("x", x).shape[1]))
    check_matrix("head", head, columns=k)
    check_row_factors("inv_norm", inv_norm, len(x))
    alpha = scaled_alpha(scale, alpha, concepts)
    check_vector("beta", beta, k)
    check_vector("bias", bias, len(head))
    triton = use_triton(backend, x, concepts, head, alpha, beta, bias, inv_norm)
    if plan == "auto":
        small = len(x) * k <= _SMALL.get(x.device.type, _SMALL["cpu"])
        plan = "eager" if small and backend != "triton" else "chunked"
    if plan == "eager" and backend == "triton":
        raise ValueError("plan is 'eager', which is PyTorch, and backend 'triton'; expected 'chunked'")
    return _Bottleneck(x, concepts, head, alpha, beta, inv_norm, activation, bias), plan, triton


@dataclass
class _Gradients:
    """Sums over chunks, in float32 or float64; None where no gradient is wanted."""

    x: Tensor | None = None
    products: Tensor | None = None  # [K, D], the gradient of concepts but for alpha
    head: Tensor | None = None
    alpha: Tensor | None = None
    beta: Tensor | None = None
    bias: Tensor | None = None

    @property
    def inner(self) -> bool:
        """Whether anything below the activation is wanted."""
        return any(g is not None for g in (self.x, self.products, self.alpha, self.beta))


@dataclass
class _Bottleneck:
    """The tensors of a problem."""

    x: Tensor
    concepts: Tensor
    head: Tensor
    alpha: Tensor | None
    beta: Tensor | None
    inv_norm: Tensor | None
    activation: str
    bias: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Arguments of the registered operations."""
        return self.x, self.concepts, self.head, self.alpha, self.beta, self.inv_norm

    def eager(self) -> tuple[Tensor, Tensor]:
        """Activations [N, K] and logits [N, C] by plain autograd."""
        # a factor that is trained stays out of the product: its gradient would be a product of the same size
        apart = self.alpha if self.alpha is not None and self.alpha.requires_grad else None
        alpha, beta = (self.alpha, self.beta) if apart is None else (None, None)
        z = concept_scores(self.x, self.concepts, inv_norm=self.inv_norm, alpha=alpha, beta=beta, backend="torch")
        if apart is not None:
            z = z * apart if self.beta is None else torch.addcmul(self.beta, z, apart)
        activations = ACTIVATIONS[self.activation](z)
        with torch.autocast(self.x.device.type, enabled=False):
            dtype = compute_dtype(activations, self.head, self.bias)
            bias = None if self.bias is None else self.bias.to(dtype)
            return activations, torch.nn.functional.linear(activations.to(dtype), self.head.to(dtype), bias)

    @property
    def operand(self) -> torch.dtype:
        """Of the activations, and of what they are multiplied with on a GPU: whatever the head is kept in."""
        return torch.promote_types(self.x.dtype, self.concepts.dtype)

    def rows(self, triton: bool, inner: bool) -> int:
        """Of a chunk: activations, their gradient if it is wanted, and logits with theirs."""
        wide = compute_dtype(*self.tensors, self.bias).itemsize
        (c, k), size = self.head.shape, self.operand.itemsize if triton else wide
        each = k * size * (2 if inner else 1) + c * (wide + size) if triton else k * 4
        return rows_per_chunk(len(self.x), each, self.x.device)

    def prepare(self, keep_scores: bool, triton: bool) -> _Prepared:
        """Cast once: operands of products, and float vectors. PyTorch takes alpha into the concepts where it may."""
        dtype = compute_dtype(*self.tensors, self.bias)
        operand = self.operand if triton else dtype
        alpha, beta, inv_norm = (
            None if v is None else v.to(dtype).contiguous() for v in (self.alpha, self.beta, self.inv_norm)
        )
        folded = not triton and not keep_scores
        weight = self.concepts.to(operand)
        if folded and alpha is not None:
            weight = weight * alpha[:, None]
        votes = self.head.to(operand)
        if triton and operand.itemsize == 2:
            votes = self._padded(votes)
        return _Prepared(
            self.x, weight, votes, len(self.head), alpha, beta, inv_norm, self.activation, self.bias, dtype, operand,
            triton, folded,
        )  # fmt: skip

    def _padded(self, votes: Tensor) -> Tensor:
        """As many classes as tensor cores like: one more votes with 1 for every concept, which sums activations that
        are never negative; the others with 0."""
        classes = len(votes)
        spare = -classes % _WHOLE
        if self.activation in _NEVER_NEGATIVE:
            spare = spare or _WHOLE
        padded = votes.new_zeros(classes + spare, votes.shape[1])
        padded[:classes] = votes
        padded[classes : classes + 1] = 1
        return padded


@dataclass
class _Prepared:
    """A problem as its chunks take it.

    Attributes:
        x: features [N, D], cast chunk by chunk.
        weight: concepts [K, D], times alpha where that is folded in.
        votes: head [C, K], or [C + some, K] (see ``_padded``).
        classes: C.
        alpha: factor on every concept's score [K], or None.
        beta: added to it [K], or None.
        inv_norm: factor on every row [N], or None.
        activation: its name.
        bias: of the classes [C], or None; as it came.
        dtype: of sums, vectors and gradients.
        operand: the type of what matrix products take.
        fused: whether Triton makes activations and what is elementwise.
        folded: whether alpha is in the weight.
    """

    x: Tensor
    weight: Tensor
    votes: Tensor
    classes: int
    alpha: Tensor | None
    beta: Tensor | None
    inv_norm: Tensor | None
    activation: str
    bias: Tensor | None
    dtype: torch.dtype
    operand: torch.dtype
    fused: bool
    folded: bool
    _buffers: dict[str, Tensor] = field(default_factory=dict)

    def buffer(self, name: str, shape: torch.Size | tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Memory of this shape that is used again by the next chunk."""
        size = shape[0] * shape[1]
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=dtype, device=self.x.device)
        return self._buffers[name][:size].view(shape)

    def activations(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Features [n, D], raw scores [n, K] (lost unless PyTorch keeps them) and activations [n, K] of some rows."""
        x = self.x[rows].to(self.operand)
        inv_norm = None if self.inv_norm is None else self.inv_norm[rows]
        if self.fused:
            from cbm.kernels.gpu import scores as gpu

            x = x if x.stride(1) == 1 else x.contiguous()
            a = self.buffer("activations", (len(x), len(self.weight)), self.operand)
            return x, a, gpu.scores(x, self.weight, inv_norm, self.alpha, self.beta, self.activation, a)
        if inv_norm is not None:
            x = x * inv_norm[:, None]
        scores = self.buffer("scores", (len(x), len(self.weight)), self.dtype)
        if self.folded:
            if self.beta is None:
                torch.mm(x, self.weight.T, out=scores)
            else:
                torch.addmm(self.beta, x, self.weight.T, out=scores)
            return x, scores, _in_place(scores, self.activation)
        torch.mm(x, self.weight.T, out=scores)
        a = self.buffer("activations", scores.shape, self.operand).copy_(scores)
        a = a if self.alpha is None else a.mul_(self.alpha)
        a = a if self.beta is None else a.add_(self.beta)
        return x, scores, _in_place(a, self.activation)

    def logits(self, a: Tensor) -> Tensor:
        """[n, C] of activations [n, K], or as many columns as there are votes."""
        logits = product(a, self.votes.T, self.buffer("logits", (len(a), len(self.votes)), self.dtype))
        if self.bias is not None:
            logits[:, : self.classes] += self.bias.to(self.dtype)
        return logits

    def size(self, a: Tensor, logits: Tensor) -> Tensor:
        """Sum of |a| of a chunk: where there is a column for it, without another look at the activations."""
        if self.activation in _NEVER_NEGATIVE and logits.shape[1] > self.classes:
            return logits[:, self.classes].sum()
        return torch.linalg.vector_norm(a, 1, dtype=self.dtype)

    def gradients(self, need: list[bool]) -> _Gradients:
        """Zeros for every gradient that is needed: of x, concepts, head, alpha, beta, bias."""
        (n, d), (c, k) = self.x.shape, self.votes.shape
        need = [*need]
        need[1] = need[1] or (self.fused and need[3])  # alpha's gradient is made from that of the concepts
        shapes = [(n, d), (k, d), (c, k), (k,), (k,), (c,)]
        return _Gradients(
            *(self.x.new_zeros(s, dtype=self.dtype) if wanted else None for s, wanted in zip(shapes, need))
        )

    def pull(
        self, rows: slice, x: Tensor, scores: Tensor, a: Tensor, upstream: Tensor, penalty: float, into: _Gradients
    ) -> None:
        """Add what a chunk contributes: ``upstream`` is the gradient of its logits, ``penalty`` that of |a|."""
        if into.head is not None:
            accumulate(into.head, upstream.T, a)
        if into.bias is not None:
            into.bias += upstream.sum(0, dtype=self.dtype)
        if not into.inner:
            return
        dz, d_beta = self.slopes(rows, a, upstream, penalty, into.beta is not None)
        if into.beta is not None and d_beta is not None:
            into.beta += d_beta
        if into.alpha is not None and not self.fused:
            into.alpha += scores.mul_(dz).sum(0)
        if into.products is not None:
            accumulate(into.products, dz.T, x)
        if into.x is not None:
            if not self.folded and self.alpha is not None:
                dz = (dz * self.alpha).to(self.operand)
            product(dz, self.weight, into.x[rows])
            if self.inv_norm is not None and not self.fused:
                into.x[rows] *= self.inv_norm[rows, None]

    def slopes(
        self, rows: slice, a: Tensor, upstream: Tensor, penalty: float, need_beta: bool
    ) -> tuple[Tensor, Tensor | None]:
        """dz [n, K], the gradient before the activation (times inv_norm if Triton makes it), and its sum over rows."""
        dz = product(upstream, self.votes, self.buffer("upstream", a.shape, self.operand))
        if self.fused:
            from cbm.kernels.gpu import elementwise

            inv_norm = None if self.inv_norm is None else self.inv_norm[rows]
            return dz, elementwise.slope_chunk(dz, a, inv_norm, self.activation, penalty, need_beta)
        if penalty:
            dz.add_(torch.sign(a, out=self.buffer("signs", a.shape, self.dtype)), alpha=penalty)
        dz = _slope_in_place(dz, a, self.activation)
        return dz, dz.sum(0) if need_beta else None

    def finished(self, g: _Gradients, concepts: Tensor, factor: float | Tensor) -> list[Tensor]:
        """``factor`` times the gradients of x, concepts, head, alpha, beta and bias; empty where none is wanted."""
        of_concepts, of_alpha = g.products, g.alpha
        if of_alpha is not None and self.fused and of_concepts is not None:
            of_alpha = torch.linalg.vecdot(of_concepts, concepts.to(self.dtype))
        if of_concepts is not None and self.alpha is not None:
            of_concepts = of_concepts * self.alpha[:, None]
        of_head, of_bias = (None if sums is None else sums[: self.classes] for sums in (g.head, g.bias))
        found = g.x, of_concepts, of_head, of_alpha, g.beta, of_bias
        return [self.x.new_empty(0) if gradient is None else gradient.mul_(factor) for gradient in found]


def _in_place(z: Tensor, activation: str) -> Tensor:
    """phi(z), written over z."""
    if activation in ("sigmoid", "relu", "tanh"):
        return {"sigmoid": torch.sigmoid_, "relu": torch.relu_, "tanh": torch.tanh_}[activation](z)
    return z.copy_(ACTIVATIONS[activation](z)) if activation != "identity" else z


def _slope_in_place(upstream: Tensor, a: Tensor, activation: str) -> Tensor:
    """``upstream * phi'(z)`` written over ``upstream``: a new chunk of memory would cost more than the arithmetic."""
    if activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward.grad_input(upstream, a, grad_input=upstream)
    if activation == "tanh":
        return torch.ops.aten.tanh_backward.grad_input(upstream, a, grad_input=upstream)
    if activation == "relu":
        return torch.ops.aten.threshold_backward.grad_input(upstream, a, 0, grad_input=upstream)
    return upstream if activation == "identity" else upstream.mul_(slope(a, activation))


@torch.library.custom_op("cbm::bottleneck_loss", mutates_args=())
def _loss(
    x: Tensor, concepts: Tensor, head: Tensor, alpha: Tensor | None, beta: Tensor | None, inv_norm: Tensor | None,
    bias: Tensor | None, y: Tensor, activation: str, smoothing: float, l1: float, rows: int, triton: bool,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, accuracy and mean |a|, then gradients of x, concepts, head, alpha, beta and bias."""
    with torch.autocast(x.device.type, enabled=False):
        whole = _Bottleneck(x, concepts, head, alpha, beta, inv_norm, activation, bias)
        problem = whole.prepare(keep_scores=need[3], triton=triton)
        n, k = len(x), len(concepts)
        into = problem.gradients(need)
        loss, right, size = x.new_zeros(3, dtype=problem.dtype)

        for chunk in slices(n, rows):
            features, scores, a = problem.activations(chunk)
            logits = problem.logits(a)
            size += problem.size(a, logits)
            part, hits, upstream = _cross_entropy(logits, y[chunk], smoothing, problem)
            loss, right = loss + part, right + hits
            problem.pull(chunk, features, scores, a, upstream, l1 / k, into)
        size = size / (n * k)
        total = loss / n + l1 * size if l1 else loss / n
        return (total, right / n, size, *problem.finished(into, concepts, 1 / n))


def _cross_entropy(logits: Tensor, y: Tensor, smoothing: float, problem: _Prepared) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the losses, right answers, and the gradient of that sum in the logits, 0 where they are no class.

    Not that of the mean: divided by the number of rows its entries would be lost in float16.
    """
    if problem.fused:
        from cbm.kernels.gpu import elementwise

        upstream = problem.buffer("errors", logits.shape, problem.operand)
        return *elementwise.cross_entropy_chunk(logits, y, smoothing, upstream, problem.classes), upstream
    lse = logits.logsumexp(1, keepdim=True)
    right = (logits.argmax(1) == y).sum()
    losses = lse - (1 - smoothing) * logits.gather(1, y[:, None])
    if smoothing:
        losses -= smoothing * logits.mean(1, keepdim=True)
    upstream = logits.sub_(lse).exp_()
    upstream.scatter_add_(1, y[:, None], upstream.new_full((len(y), 1), smoothing - 1))
    if smoothing:
        upstream -= smoothing / logits.shape[1]
    return losses.sum(), right, upstream


@_loss.register_fake
def _(x, concepts, head, alpha, beta, inv_norm, bias, y, activation, smoothing, l1, rows, triton, need):
    dtype = compute_dtype(x, concepts, head, alpha, beta, inv_norm, bias)
    (n, d), (c, k) = x.shape, head.shape
    shapes = [(n, d), (k, d), (c, k), (k,), (k,), (c,)]
    numbers = (x.new_empty((), dtype=dtype) for _ in range(3))
    return (*numbers, *(x.new_empty(s if w else (0,), dtype=dtype) for s, w in zip(shapes, need)))


def _keep_gradients(ctx, inputs, output):
    tensors = (*inputs[:5], inputs[6])
    ctx.dtypes = [None if t is None else t.dtype for t in tensors]
    ctx.need = inputs[-1]
    ctx.save_for_backward(*output[3:])


def _hand_on(ctx, upstream, *_):
    gradients = [
        (gradient * upstream).to(dtype) if wanted else None
        for gradient, dtype, wanted in zip(ctx.saved_tensors, ctx.dtypes, ctx.need)
    ]
    return (*gradients[:5], None, gradients[5], *[None] * 7)


_loss.register_autograd(_hand_on, setup_context=_keep_gradients)


@torch.library.custom_op("cbm::bottleneck_logits", mutates_args=())
def _logits(
    x: Tensor, concepts: Tensor, head: Tensor, alpha: Tensor | None, beta: Tensor | None, inv_norm: Tensor | None,
    activation: str, triton: bool,
) -> Tensor:  # fmt: skip
    with torch.autocast(x.device.type, enabled=False):
        whole = _Bottleneck(x, concepts, head, alpha, beta, inv_norm, activation)
        problem = whole.prepare(keep_scores=False, triton=triton)
        logits = x.new_empty(len(x), len(head), dtype=problem.dtype)
        for chunk in slices(len(x), whole.rows(triton, inner=False)):
            product(problem.activations(chunk)[2], problem.votes[: problem.classes].T, logits[chunk])
        return logits


@_logits.register_fake
def _(x, concepts, head, alpha, beta, inv_norm, activation, triton):
    return x.new_empty(len(x), len(head), dtype=compute_dtype(x, concepts, head, alpha, beta, inv_norm))


@torch.library.custom_op("cbm::bottleneck_logits_backward", mutates_args=())
def _logits_backward(
    upstream: Tensor, x: Tensor, concepts: Tensor, head: Tensor, alpha: Tensor | None, beta: Tensor | None,
    inv_norm: Tensor | None, activation: str, triton: bool, need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, concepts, head, alpha and beta; the scores are computed again."""
    with torch.autocast(x.device.type, enabled=False):
        whole = _Bottleneck(x, concepts, head, alpha, beta, inv_norm, activation)
        problem = whole.prepare(keep_scores=need[3], triton=triton)
        into = problem.gradients([*need, False])
        errors, factor = as_operand(upstream, problem.operand)
        errors = torch.nn.functional.pad(errors, (0, len(problem.votes) - problem.classes))
        for chunk in slices(len(x), whole.rows(triton, inner=into.inner)):
            problem.pull(chunk, *problem.activations(chunk), errors[chunk], 0.0, into)
        found = problem.finished(into, concepts, 1.0 if factor is None else factor)
        x_, concepts_, head_, alpha_, beta_, _ = found
        return x_, concepts_, head_, alpha_, beta_


@_logits_backward.register_fake
def _(upstream, x, concepts, head, alpha, beta, inv_norm, activation, triton, need):
    dtype = compute_dtype(x, concepts, head, alpha, beta, inv_norm)
    (n, d), (c, k) = x.shape, head.shape
    shapes = [(n, d), (k, d), (c, k), (k,), (k,)]
    return tuple(x.new_empty(s if w else (0,), dtype=dtype) for s, w in zip(shapes, need))


def _keep_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.how = inputs[6:]


def _pull_logits(ctx, upstream):
    tensors = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:5])
    found = torch.ops.cbm.bottleneck_logits_backward(upstream.contiguous(), *tensors, *ctx.how, need)
    gradients = (g.to(t.dtype) if w else None for g, t, w in zip(found, tensors, need))
    return (*gradients, None, None, None)


_logits.register_autograd(_pull_logits, setup_context=_keep_inputs)
