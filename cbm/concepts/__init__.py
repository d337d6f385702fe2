"""Concepts: banks, their readers and filters, controls, and selection."""

from cbm.concepts.bank import Concept, ConceptBank, Dropped, load_bank
from cbm.concepts.cav import distances, learn_cavs, read_concept_folders
from cbm.concepts.conceptnet import read_conceptnet
from cbm.concepts.control import CONTROLS, apply_control
from cbm.concepts.hygiene import clean_class_name, clean_class_names, drop_class_names, drop_unfit, hygiene_reason
from cbm.concepts.readers import merge_duplicates, phrase_bank, read_bank
from cbm.concepts.selection import claim_concepts, select_concepts
from cbm.concepts.tokenizer import ConceptTokenizer
from cbm.concepts.wordnet import read_wordnet

__all__ = [
    "CONTROLS",
    "Concept",
    "ConceptBank",
    "ConceptTokenizer",
    "Dropped",
    "apply_control",
    "claim_concepts",
    "clean_class_name",
    "clean_class_names",
    "distances",
    "drop_class_names",
    "drop_unfit",
    "hygiene_reason",
    "learn_cavs",
    "load_bank",
    "merge_duplicates",
    "phrase_bank",
    "read_bank",
    "read_concept_folders",
    "read_conceptnet",
    "read_wordnet",
    "select_concepts",
]
