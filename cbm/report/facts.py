"""What stands at the head and at the foot of every report: what was run, of what kind, and how long it took."""

from omegaconf import DictConfig
from torch import nn

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData
from cbm.layers import Activation, Coded, ConceptBottleneck, Cube, Largest, Sigmoid, SparseCode, TopK, UnitCode
from cbm.report.units import part_name

FIDELITY = {
    "repaired": "the published method with its mistakes repaired: the page of the method says what differs",
    "paper": "the formulas as they were published",
    "released": "what the authors' published code computes",
}
TIMES = {
    "time/encode_s": "Encoding the pictures (or reading them from the store)",
    "time/concepts_s": "Preparing the concepts",
    "time/fit_s": "Fitting",
    "time/controls_s": "Fitting the controls",
    "time/total_s": "Everything",
}


def header_facts(
    model: nn.Module, bank: ConceptBank | None, data: FeatureData, cfg: DictConfig
) -> list[tuple[str, str, str]]:
    """What was run, as name, value and, where the value is a word of ours, its meaning."""
    encoder = "none: features were given"
    if cfg.encoder is not None:
        encoder = str(cfg.encoder.model) + (f" ({cfg.encoder.pretrained})" if cfg.encoder.pretrained else "")
    pictures = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    facts = [] if cfg.dataset.root is None else [("Data", str(cfg.dataset.root))]
    facts += [("Encoder", encoder), ("Pictures", pictures)]
    facts.append(("Labels" if data.many else "Classes", f"{len(data.classes):,}"))
    if bank is not None:
        facts.append(("Concepts", f"{len(bank):,}"))
    if isinstance(model, ConceptBottleneck):
        if model.mixing is not None:
            kind = "Random" if cfg.method.get("mixing") == "random" else "Learned"
            rows, columns = model.mixing.shape
            weights = f"{rows:,} × {columns:,} weights, {int(model.mixing.count_nonzero()):,} not zero"
            facts.append((f"{kind} layer", weights))
        if model.activation is not None:
            facts.append(("Per picture", what_is_read(model.activation, part_name(bank))))
    shots = "all" if str(cfg.shots) == "all" else f"{cfg.shots} per {'label' if data.many else 'class'}"
    facts += [("Shots", shots), ("Seed", str(cfg.seed))]
    if "fidelity" in cfg.method:
        facts.append(("Fidelity", str(cfg.method.fidelity)))
    return [(name, value, FIDELITY.get(value, "") if name == "Fidelity" else "") for name, value in facts]


def what_is_read(activation: Activation, part: str = "word") -> str:
    """What the head reads of a picture.

    Args:
        activation: what makes it of the scores.
        part: what a sparse code is made of: word, or unit.
    """
    if isinstance(activation, TopK) and int(activation.k) > 1:
        return f"the {int(activation.k):,} concepts with the largest scores"
    if isinstance(activation, (TopK, Largest)):
        return "the concept with the largest score"
    if isinstance(activation, Sigmoid):
        return "probabilities of the concepts"
    if isinstance(activation, Cube):
        return "cubes of the scores"
    if isinstance(activation, SparseCode):
        count = f"exactly {int(activation.k)} {part}s" if int(activation.k) else f"a few {part}s"
        return f"{count} whose sum comes nearest to the picture"
    if isinstance(activation, UnitCode):
        return f"the {int(activation.k):,} units that fire most" if int(activation.k) else "the units that fire"
    return type(activation).__name__


def unit_of_weights(model: ConceptBottleneck) -> str:
    """What adds one weight of the head to a logit."""
    if isinstance(model.activation, Cube):
        return "one unit of the concept's cubed score"
    if isinstance(model.activation, Sigmoid):
        return "the concept's being certain"
    if isinstance(model.activation, Largest):
        return "having the largest score"
    if isinstance(model.activation, UnitCode):
        return "firing by 1"
    if isinstance(model.activation, Coded):
        return "one unit of the word's weight in the picture"
    unit_norm = bool(((model.concepts.norm(dim=1) - 1).abs() < 1e-3).all())
    return "one unit of cosine" if unit_norm else "one unit of the concept's score"
