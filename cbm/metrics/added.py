"""What training added to each class, in words: phrases that its class vector says and its class text does not.

After the proposals of BEE (released code). A bottleneck without activation has class vectors ``Z = W T``; a phrase with
unit text t speaks for class c by

    s(c, t) = z_c . t - min over c' of z_c' . t

and the same is asked of the class texts of zero-shot classification in the place of Z: what these say the encoder knew.
Both are counted in standard deviations over the vocabulary, so that they can be subtracted.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

ALIKE = 0.9
"""Cosine of two centred texts from which on they mean the same to the encoder (that of ``drop_near_duplicates``)."""


def added_by_training(class_vectors: Tensor, class_texts: Tensor, phrases: Tensor) -> Tensor:
    """How much more a class says a phrase than its text does, ``[C, V]`` in standard deviations over the phrases.

    Args:
        class_vectors: class vectors ``[C, D]`` of the trained model.
        class_texts: embeddings ``[C, D]`` of the class texts.
        phrases: unit-norm embeddings ``[V, D]`` of the vocabulary.

    Raises:
        ValueError: there is one phrase, or one class.

    Example:
        >>> import torch
        >>> learned, known = torch.tensor([[9.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> added_by_training(learned, known, torch.eye(2)).round(decimals=2).tolist()
        [[1.41, -1.41], [0.0, 0.0]]
    """
    if min(len(class_vectors), len(phrases)) < 2:
        raise ValueError(f"{len(class_vectors)} classes and {len(phrases)} phrases: expected two of each or more")
    return _said(class_vectors, phrases) - _said(class_texts, phrases)


def _said(vectors: Tensor, phrases: Tensor) -> Tensor:
    """How much each class says each phrase ``[C, V]``, in standard deviations over the phrases."""
    scores = vectors.double() @ phrases.double().T
    scores = scores - scores.min(dim=0).values
    away = scores - scores.mean(dim=1, keepdim=True)
    return away / scores.std(dim=1, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True)
class Added:
    """A phrase that training added.

    Attributes:
        phrase: its number in the vocabulary.
        alike: numbers of phrases that were added too and mean nearly the same to the encoder, the most added first.
        classes: classes to which it or one of these was added, with how much at most (standard deviations over the
            vocabulary); most first.
    """

    phrase: int
    alike: tuple[int, ...]
    classes: dict[int, float]


def first_added(added: Tensor, phrases: Tensor, count: int) -> list[Added]:
    """The phrases that training added most, each once, with all classes to which it added them more than the first
    phrase that is left out.

    Args:
        added: how much of each phrase was added to each class ``[C, V]``; what is not above 0 was not added.
        phrases: embeddings ``[V, D]`` of the vocabulary.
        count: number of phrases that mean different things (``ALIKE``).

    Example:
        >>> import torch
        >>> added, phrases = torch.tensor([[3.0, 1.0, 2.9], [2.0, 0.0, 0.9]]), torch.eye(3)[[0, 1, 0]]
        >>> first_added(added, phrases, 1)
        [Added(phrase=0, alike=(2,), classes={0: 3.0, 1: 2.0})]
    """
    texts = normalize(phrases.float(), dim=1)
    texts = normalize(texts - texts.mean(dim=0), dim=1)
    shown: list[int] = []  # phrases that stand for others
    group: dict[int, int] = {}  # of every phrase so far, the place in shown
    classes: list[dict[int, float]] = []
    values, order = added.flatten().sort(descending=True, stable=True)
    for value, place in zip(values.tolist(), order.tolist()):
        c, phrase = divmod(place, added.shape[1])
        if value <= 0:
            break
        if phrase not in group:
            near = texts[shown] @ texts[phrase]
            if len(shown) and float(near.max()) >= ALIKE:
                group[phrase] = int(near.argmax())
            elif len(shown) == count:
                break
            else:
                group[phrase] = len(shown)
                shown.append(phrase)
                classes.append({})
        classes[group[phrase]].setdefault(c, value)
    return [
        Added(phrase, tuple(k for k, of in group.items() if of == place and k != phrase), classes[place])
        for place, phrase in enumerate(shown)
    ]
