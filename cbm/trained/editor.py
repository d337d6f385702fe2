"""``cbm.Editor``: correct a trained model's concepts and see what changes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cbm.concepts.units import former_names
from cbm.data import FeatureSplit
from cbm.editing import (
    Comparison,
    Edit,
    EditSet,
    alike,
    counterfactual,
    edited_logits,
    edited_model,
    energy_guided_edits,
    label_counterfactual,
    label_margin_edits,
    load_edits,
    look_alikes,
    margin_edits,
    returned_share,
    signed,
    without_words,
)
from cbm.editing.lookalikes import LEAST
from cbm.editing.prune import ALIKE
from cbm.editing.record import Record, model_key
from cbm.errors import UserError, did_you_mean
from cbm.files.console import warn_once
from cbm.layers import (
    Coded,
    ConceptBottleneck,
    EnergyBottleneck,
    SparseCode,
    UnitCode,
    predict_logits,
    require_concepts,
    require_linear,
    save_model,
)
from cbm.trained.label_comparison import LabelComparison, compared
from cbm.trained.model import Picture, Prediction, TrainedModel

Names = str | Sequence[str] | None


class Editor:
    """Edits of one model, made one after the other. The model itself is not changed.

        editor = cbm.Editor(cbm.load("runs/NAME"))
        editor.remove("water in the background", why="spurious").set("yellow belly", "present", samples="a.png")
        editor.predict(["a.png"]); editor.compare(split); editor.undo(); editor.save("edits.yaml")

    Args:
        model: a trained concept bottleneck.
        edits: edits to start with, or a file of edits.
        who: author of the edits made here; by default the user of this computer.
        domain: name of the domain that the images come from: edits that are bound to other domains do not act.

    Raises:
        UserError: the model has no concepts, or an edit does not fit it.

    Attributes:
        bottleneck: the model's concepts and head, or its energies; concepts of energies can only be set, masked, scaled
            and shifted, for all classes at once.
    """

    def __init__(
        self,
        model: TrainedModel,
        edits: EditSet | str | Path | None = None,
        *,
        who: str | None = None,
        domain: str | None = None,
    ):
        self.bottleneck = require_concepts(model.model, model.bank)
        assert model.bank is not None
        self.model, self.bank, self.who, self.domain = model, model.bank, who, domain
        given = load_edits(edits) if isinstance(edits, str | Path) else edits or EditSet()
        self.edits = given.renamed(former_names(model.bank))
        self.edits.check(self.bank.texts, model.classes)
        self._undone: list[EditSet] = []
        self._history: list[EditSet] = []
        self._compared: tuple[EditSet, Comparison | LabelComparison] | None = None

    def set(
        self,
        concept: str,
        value: float | str,
        *,
        classes: Names = None,
        samples: Names = None,
        why: str | None = None,
        exclusive: bool = True,
    ) -> "Editor":
        """Set a concept's activation.

        Args:
            concept: text of the concept.
            value: the new activation: a number, "present" or "absent". Of a concept that is a number (a diameter), the
                number in its unit.
            classes: classes whose logits the edit changes; all by default.
            samples: names of the images that the edit changes; all by default.
            why: reason, kept with the edit.
            exclusive: where the value is "present", also set the other concepts of its exclusive group to "absent", by
                edits of their own that are undone with it; False leaves them as they are.

        Raises:
            UserError: an unknown concept or class, or a value that is not allowed.
        """
        layer = getattr(self.bottleneck, "activation", None)
        value, why = self._in_deviations(concept, value, why)
        free = isinstance(layer, SparseCode) and bool(layer.free)
        if isinstance(layer, Coded) and not free and not isinstance(value, str) and value < 0:
            part = "unit" if isinstance(layer, UnitCode) else "word"
            warn_once(f"set '{concept}': a {part}'s weight is never below 0 in this model, so it is set to 0")
            value = 0.0
        edit = Edit("set", concept, value, _tuple(classes), _tuple(samples), why=why)
        return self.apply(self.exclusively(edit) if exclusive else edit)

    def mask(self, concept: str, *, classes: Names = None, samples: Names = None, why: str | None = None) -> "Editor":
        """Set a concept's activation to its average, so that it says nothing; arguments as for ``set``."""
        return self.apply(Edit("mask", concept, None, _tuple(classes), _tuple(samples), why=why))

    def scale(
        self, concept: str, value: float, *, classes: Names = None, samples: Names = None, why: str | None = None
    ) -> "Editor":
        """Multiply a concept's activation by ``value``; other arguments as for ``set``."""
        return self.apply(Edit("scale", concept, value, _tuple(classes), _tuple(samples), why=why))

    def remove(
        self,
        concept: str,
        *,
        classes: Names = None,
        samples: Names = None,
        why: str | None = None,
        resolve: bool = False,
    ) -> "Editor":
        """Make all classes, or some, ignore a concept.

        Args:
            concept: text of the concept.
            classes: classes that ignore it; all by default.
            samples: names of the images that the edit changes; all by default.
            why: reason, kept with the edit.
            resolve: in a model of sparse codes, write images anew without the word, so that other words may say what it
                said (``returned`` tells how much); by default its weight is zero and the others stay.

        Raises:
            UserError: an unknown concept or class, or ``resolve`` in a model without a sparse code.
        """
        edit = Edit("remove", concept, None, _tuple(classes), _tuple(samples), why=why, resolve=resolve or None)
        edits = EditSet((edit,)).renamed(former_names(self.bank))
        if isinstance(self.bottleneck, ConceptBottleneck):
            edits.check(self.bank.texts, self.model.classes)
            without_words(self.bottleneck, edits, self.bank.texts)
        return self.apply(edits)

    def returned(self, concept: str, x: Tensor) -> Tensor:
        """Which part of what a word adds to the decision comes back by other words, if images are written anew without
        it: ``[N]``, NaN where it adds nothing (``cbm.editing.apply.returned_share``).

        Args:
            concept: text of the word.
            x: unit-norm features ``[N, D]``.

        Raises:
            UserError: an unknown concept, or a model without a sparse code.
        """
        return returned_share(require_linear(self.bottleneck), x, self.bank.index(concept))

    def reweight(
        self, concept: str, value: float, *, classes: Names = None, samples: Names = None, why: str | None = None
    ) -> "Editor":
        """Change a concept's weight: one standard deviation of it adds ``value`` to the logit of these classes.

        Other arguments as for ``set``.
        """
        return self.apply(Edit("reweight", concept, value, _tuple(classes), _tuple(samples), why=why))

    def exclusively(self, edit: Edit) -> EditSet:
        """An edit, and those of the concepts that cannot be present beside the one that it sets "present".

        Exclusive are the variables of an energy-based model, and elsewhere the groups of the bank, unless some class
        owns two concepts of one. Steps of a level go together: with one that is present all lower ones are, with one
        that is absent no higher one is.

        Raises:
            UserError: an unknown concept.
        """
        edits = EditSet((edit,)).renamed(former_names(self.bank))
        edit = edits.edits[0]
        if edit.op != "set" or edit.value not in ("present", "absent"):
            return edits
        edits.check(self.bank.texts, self.model.classes)
        steps = self.bank.concepts[self.bank.index(edit.concept)].provenance.get("steps") or []
        if edit.concept in steps:  # "severe" is also "mild or more", and what is not "mild or more" is not severe
            place = steps.index(edit.concept)
            implied = steps[:place] if edit.value == "present" else steps[place + 1 :]
            why = edit.why or f"'{edit.concept}' is {edit.value}"
            return edits + EditSet(tuple(replace(edit, concept=text, why=why) for text in implied))
        if edit.value != "present":
            return edits
        if isinstance(self.bottleneck, EnergyBottleneck):
            others = [self.bank.texts[k] for k in self.bottleneck.blocks.excluded_by(self.bank.index(edit.concept))]
        else:
            others = self.bank.excluded_by(edit.concept)
        why = edit.why or f"'{edit.concept}' is present"
        return edits + EditSet(tuple(replace(edit, concept=text, value="absent", why=why) for text in others))

    def alike(
        self, concept: str, cosine: float = ALIKE, *, split: FeatureSplit | None = None, correlation: float = LEAST
    ) -> list[str]:
        """The concepts that show the same thing as this one (itself included), in the order of the bank.

        With ``split`` they are found by what they do: their scores go together on pictures of a class
        (``cbm.editing.look_alikes``). Without, by their directions, which the encoder cannot tell apart.

        Args:
            concept: text of the concept.
            cosine: smallest cosine of two directions that counts as alike, without ``split``.
            split: features and labels of images.
            correlation: smallest correlation of two scores that counts, with ``split``.

        Raises:
            UserError: an unknown concept, or a model without concept directions.
        """
        EditSet((Edit("mask", concept),)).check(self.bank.texts, self.model.classes)
        linear, column = self._linear(), torch.zeros(len(self.bank), dtype=torch.bool)
        column[self.bank.index(concept)] = True
        if split is None:
            found = alike(linear, column, cosine)
        else:
            found = column.clone()
            found[[each.concept for each in look_alikes(linear, column, split.x, split.y, correlation)]] = True
        return [self.bank.texts[k] for k in found.nonzero()[:, 0].tolist()]

    def apply(self, edit: Edit | EditSet) -> "Editor":
        """Add edits, signed with author and time; returns the editor.

        Raises:
            UserError: an unknown concept or class (the message names the nearest); nothing is changed then.
        """
        more = (EditSet((edit,)) if isinstance(edit, Edit) else edit).renamed(former_names(self.bank))
        more.check(self.bank.texts, self.model.classes)
        more = EditSet(tuple(each if each.when else signed(each, self.who) for each in more.edits))
        self._history.append(self.edits)
        self._undone.clear()
        self.edits = self.edits + more
        return self

    def follow_names(self) -> None:
        """Take over the names that the model's units have by now (``cbm.trained.names``): edits of a unit stay edits of
        that unit."""
        assert self.model.bank is not None
        self.bank = self.model.bank
        names = former_names(self.bank)
        self.edits = self.edits.renamed(names)
        self._history, self._undone = ([each.renamed(names) for each in some] for some in (self._history, self._undone))

    def undo(self) -> "Editor":
        """Take the last change back.

        Raises:
            UserError: there is no change to take back.
        """
        if not self._history:
            raise UserError("there is no edit to undo")
        self._undone.append(self.edits)
        self.edits = self._history.pop()
        return self

    @property
    def timeline(self) -> tuple[list[EditSet], int]:
        """The edits after every change, from none to those that were taken back last, and which is the present one."""
        return [*self._history, self.edits, *reversed(self._undone)], len(self._history)

    def go_to(self, step: int) -> "Editor":
        """Undo or redo until a step of ``timeline``.

        Raises:
            UserError: there is no such step.
        """
        states, here = self.timeline
        if not 0 <= step < len(states):
            raise UserError(f"no step {step}: expected 0 to {len(states) - 1}")
        for _ in range(abs(step - here)):
            self.undo() if step < here else self.redo()
        return self

    def redo(self) -> "Editor":
        """Make the change again that was taken back last.

        Raises:
            UserError: there is no change to make again.
        """
        if not self._undone:
            raise UserError("there is no edit to make again")
        self._history.append(self.edits)
        self.edits = self._undone.pop()
        return self

    def save(self, path: str | Path, *, split: str | None = None) -> None:
        """Write the edits to ``edits.yaml``, with the record of the model and of the last comparison of these edits.

        Args:
            path: the file.
            split: images on which the edits were chosen, such as ``birds/val``.
        """
        EditSet(self.edits.edits, self.record(split)).save(path)

    def record(self, split: str | None = None) -> Record:
        """For which model the edits were made, and what the last comparison of these edits found.

        Args:
            split: images on which they were chosen.
        """
        key = model_key(self.bottleneck, self.bank.texts, self.model.classes)
        found = Record(self.model.path.name, key, split)
        if self._compared is None or self._compared[0] != self.edits:
            return found
        comparison = self._compared[1]
        if not isinstance(comparison, Comparison):
            return replace(found, pictures=len(comparison.y))
        values = comparison.metrics()
        before, after = (values[f"edits/accuracy_macro_{when}"] for when in ("before", "after"))
        return replace(found, pictures=len(comparison.y), before=before, after=after, p=comparison.p_value)

    def save_model(self, path: str | Path) -> None:
        """Write the edited model to a ``model.safetensors``.

        Raises:
            UserError: some edits are for single images, which a model cannot hold, or the model has no linear head.
        """
        if self.edits.samples:
            raise UserError("edits of single pictures cannot become part of a model: undo them, or save the edits")
        save_model(self._linear(), Path(path))

    def as_model(self) -> nn.Module:
        """The edited model as a new bottleneck (or new energies), without the edits of single images."""
        return edited_model(self.bottleneck, self.edits, self.bank.texts, self.model.classes, self.domain)

    def predict(self, images: Sequence[Picture] | Tensor) -> Prediction:
        """Classify images after the edits.

        Args:
            images: paths or PIL images, or preprocessed images ``[N, 3, H, W]``. An edit of a single image applies to a
                path that ends with the name in the edit.

        Raises:
            UserError: an image cannot be read.
        """
        before = self.model.predict(images)
        names = None if isinstance(images, Tensor) else [self._name(image) for image in images]
        logits = self.logits(before.features, names, before.logits)
        return Prediction(logits, before.classes, before.features, self.as_model(), self.bank)

    def logits(self, x: Tensor, names: Sequence[str] | None = None, before: Tensor | None = None) -> Tensor:
        """Logits after the edits, ``[N, C]``.

        Args:
            x: unit-norm features ``[N, D]``.
            names: names of the N images, for edits of single images.
            before: logits ``[N, C]`` before the edits, if they are known already.
        """
        return self.preview(self.edits, x, names, before)

    def preview(
        self, edits: EditSet, x: Tensor, names: Sequence[str] | None = None, before: Tensor | None = None
    ) -> Tensor:
        """Logits ``[N, C]`` as they would be after other edits in place of those made here; see ``logits``."""
        return self._logits(edits, x, names, before)

    def compare(self, split: FeatureSplit, edits: EditSet | Edit | None = None) -> Comparison | LabelComparison:
        """Decisions about labelled images before and after the edits. Nothing is applied, and the flips are exact.

        Args:
            split: features and labels of the images.
            edits: further edits to preview: then the comparison is between now and after these edits.

        Raises:
            UserError: an edit of an image that is not in the split, or the split is none.
        """
        if not isinstance(split, FeatureSplit):
            given = f"'{split}'" if isinstance(split, str) else f"a {type(split).__name__}"
            raise UserError(f"compare: {given} is no split with features and labels; say model.split('test')")
        logits = predict_logits(self.bottleneck, split.x)
        before, after = EditSet(), self.edits
        if edits is not None:
            before, after = self.edits, self.edits + edits
        after.check_pictures(split.names)
        old, new = (self._logits(each, split.x, split.names, logits) for each in (before, after))
        found = compared(self.bottleneck, old, new, split.y, self.model.classes)
        if edits is None:
            self._compared = self.edits, found
        return found

    def correct(
        self,
        x: Tensor,
        label: str,
        concept: str,
        *,
        margin: float = 0.2,
        present: bool = True,
        why: str | None = None,
    ) -> "Editor":
        """Change the weights of one concept just enough for images to be classified as ``label``.

        The manual editing of Label-free CBM: see ``cbm.editing.margin``. Look at ``compare`` before you keep it.

        Args:
            x: unit-norm features ``[D]`` or ``[n, D]`` of the images.
            label: class that the images should have.
            concept: text of the concept whose weights change.
            margin: distance in logits by which the class should win.
            present: in a model of labels, False if the images should not have the label.
            why: reason, kept with the edits.

        Raises:
            UserError: an unknown class or concept, or a concept that is average on these images.
        """
        EditSet((Edit("mask", concept, classes=(label,)),)).check(self.bank.texts, self.model.classes)
        column, row = self.bank.index(concept), self.model.classes.index(label)
        edited, texts = self._linear(), self.bank.texts
        if edited.many:
            classes = self.model.classes
            return self.apply(
                label_margin_edits(edited, x, row, column, texts, classes, present=present, margin=margin, why=why)
            )
        return self.apply(margin_edits(edited, x, row, column, texts, self.model.classes, margin=margin, why=why))

    def follow(self, x: Tensor, told: dict[str, str]) -> EditSet:
        """Propose which other concepts of an image change when some are set, as edits to look at and to apply.

        Energy-based models only: the known concepts are held fixed, and the concepts and class of lowest energy are
        found.

        Args:
            x: unit-norm features ``[D]`` of the image.
            told: known concepts, each "present" or "absent".

        Raises:
            UserError: an unknown concept, or a model whose concepts do not depend on each other.
        """
        if not isinstance(self.bottleneck, EnergyBottleneck):
            raise UserError("the concepts of this model do not follow from each other: train one with method=energy")
        edits = EditSet(tuple(Edit("set", concept, value) for concept, value in told.items()))
        edits.check(self.bank.texts, self.model.classes)
        return energy_guided_edits(self.bottleneck, x, edits, self.bank.texts)

    def smallest_flip(
        self, x: Tensor, target: str | None = None, *, budget: int = 5, frozen: Sequence[str] = ()
    ) -> EditSet | None:
        """The fewest concepts that change the edited model's decision about one image, as edits to apply.

        Args:
            x: unit-norm features ``[D]`` of the image.
            target: class that the image should have; any other class by default. In a model of labels, the label that
                should be there if it is not, and not if it is.
            budget: largest number of concepts to change.
            frozen: concepts that must stay as they are.

        Returns:
            The edits, or None if no change within the budget flips the decision. The edit of a number has it in
            standard deviations, as the model reads it, and says in ``why`` what that is in its unit.

        Raises:
            UserError: an unknown concept or class, features of another shape, or a model without a linear head.
        """
        if not isinstance(x, Tensor) or tuple(x.shape) != (self.model.dim,):
            given = list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise UserError(f"smallest_flip: x is {given}; expected the features [{self.model.dim}] of one image")
        EditSet(tuple(Edit("mask", text) for text in frozen)).check(self.bank.texts, self.model.classes)
        if target is not None and target not in self.model.classes:
            raise UserError(f"no class '{target}' in this model: {did_you_mean(target, self.model.classes)}")
        goal = None if target is None else self.model.classes.index(target)
        columns = [self.bank.index(text) for text in frozen]
        linear = self._linear()
        if linear.many and goal is None:
            raise UserError(f"this model says any number of labels: say which one, target={self.model.classes[0]!r}")
        if linear.many and goal is not None:
            change = label_counterfactual(linear, x, goal, budget=budget, frozen=columns)
        else:
            change = counterfactual(linear, x, target=goal, budget=budget, frozen=columns)
        if change is None:
            return None
        pairs = zip(change.columns, change.values)
        return EditSet(tuple(Edit("set", self.bank.texts[k], value, why=self._in_unit(k, value)) for k, value in pairs))

    def _in_deviations(self, concept: str, value: float | str, why: str | None) -> tuple[float | str, str | None]:
        """A number in the unit of its concept as the model reads it, in standard deviations of training images; other
        values as they are.

        Raises:
            UserError: the concept is a number, and the value is none.
        """
        names = former_names(self.bank)
        text = names.get(concept, concept)
        if text not in self.bank.texts or not (
            of := self.bank.concepts[self.bank.index(text)].provenance.get("number")
        ):
            return value, why
        unit = f" {of['unit']}" if of["unit"] else ""
        if isinstance(value, str):
            raise UserError(f"set '{concept}': it is a number{unit and ' in' + unit}, and '{value}' is none")
        if not of["low"] <= value <= of["high"]:
            seen = f"{of['low']:g} to {of['high']:g}{unit}"
            warn_once(f"set '{concept}' to {value:g}{unit}: no training image has that, they have {seen}")
        return (value - of["mean"]) / of["sd"], why or f"{value:g}{unit}"

    def _in_unit(self, column: int, deviations: float) -> str | None:
        """What a number in standard deviations is in the unit of its concept (``80 kg``); None for other concepts."""
        of = self.bank.concepts[column].provenance.get("number")
        return of and f"{of['mean'] + deviations * of['sd']:g} {of['unit']}".rstrip()

    def _linear(self) -> ConceptBottleneck:
        """The edited model, if it has a linear head."""
        require_linear(self.bottleneck)
        edited = self.as_model()
        assert isinstance(edited, ConceptBottleneck)
        return edited

    def _logits(self, edits: EditSet, x: Tensor, names: Sequence[str] | None, before: Tensor | None) -> Tensor:
        return edited_logits(self.bottleneck, edits, self.bank, self.model.classes, x, names, before, self.domain)

    def _name(self, image: Picture) -> str:
        """How an edit may call an image: a path by the longest of its ends that an edit names."""
        path = Path(image).as_posix() if isinstance(image, str | Path) else ""
        ends = [name for name in self.edits.samples if path == name or path.endswith("/" + name)]
        return max(ends, key=len, default=path)


def _tuple(names: Names) -> tuple[str, ...] | None:
    return (names,) if isinstance(names, str) else None if names is None else tuple(names)
