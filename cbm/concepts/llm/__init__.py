"""Concepts written by a language model: ask, keep every answer, filter, write a bank that can be reviewed.

Needs the extra ``llm`` (openai, pydantic, tenacity); nothing is imported here, so that the rest runs without them.
"""

import importlib.util

from cbm.errors import UserError
from cbm.files.shipped import install_command

NEEDS = ("openai", "pydantic", "tenacity")


def check_installed() -> None:
    """Say which package is missing.

    Raises:
        UserError: one of ``NEEDS`` cannot be imported.
    """
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(f"concepts from a language model need the package '{missing[0]}': {install_command('llm')}")
