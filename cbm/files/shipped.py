"""Where things lie: files of the working folder, and those that come with cbm (configs, cards, banks)."""

from importlib.util import find_spec
from pathlib import Path

VERSION = "0.1.0"
"""Of this package."""
DISTRIBUTION = "clip-concept-bottleneck"
"""The name under which pip knows this package; it is imported as ``cbm``."""
PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package ``cbm``."""
SHIPPED = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent
"""The folder with ``configs/``, ``datasets/`` and ``concepts/``: inside an installed package, or the checkout."""


def in_checkout() -> bool:
    """Whether this cbm is a checkout of the repository, not an installed package."""
    return PACKAGE.parent == SHIPPED


def resolve_path(path: str | Path) -> Path:
    """``path`` as given if it exists from the working folder, else among what comes with cbm, else as given."""
    path = Path(path).expanduser()
    place = PACKAGE.parent if path.parts[:1] == (PACKAGE.name,) else SHIPPED
    return place / path if not path.exists() and (place / path).exists() else path


def relative_name(path: Path) -> str:
    """A name without the folders of this computer: what ``resolve_path`` finds again, or the name of the file alone."""
    place = PACKAGE.parent if path.is_relative_to(PACKAGE / "encoders") else SHIPPED
    return path.relative_to(place).as_posix() if path.is_relative_to(place) else path.name


def named_files(folder: Path, *patterns: str) -> dict[str, Path]:
    """Files by name (without its ending): those of a shipped folder, and those of the same folder where the command
    runs, which hide the shipped ones.

    Args:
        folder: the shipped folder, such as ``SHIPPED / "datasets"``.
        patterns: patterns of the files' names, such as ``*.yaml``.
    """
    own = folder.relative_to(SHIPPED) if folder.is_relative_to(SHIPPED) else folder
    places = [folder, *([own] if own.is_dir() and not own.samefile(folder) else [])]
    files = [file for place in places for pattern in patterns for file in sorted(place.glob(pattern))]
    return dict(sorted((file.stem, file) for file in files if file.is_file()))  # no folders, pipes, broken links


def script_command(name: str) -> str:
    """How to start training or evaluation here: ``python train.py`` in a checkout, ``cbm train`` elsewhere.

    Args:
        name: ``train`` or ``eval``.
    """
    return f"python {name}.py" if in_checkout() else f"cbm {name}"


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation: an editable one from its checkout, others by name.

    Args:
        extra: an extra of ``pyproject.toml``, such as ``app``.
    """
    pip = "uv pip" if find_spec("pip") is None else "pip"
    if not in_checkout():
        return f"{pip} install '{DISTRIBUTION}[{extra}]'"
    if Path("pyproject.toml").is_file() and Path.cwd() == SHIPPED:
        return f"{pip} install -e '.[{extra}]' -c constraints.txt"
    return f"{pip} install -e '{SHIPPED}[{extra}]' -c '{SHIPPED / 'constraints.txt'}'"
