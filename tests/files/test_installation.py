import importlib.metadata as metadata
import sys
from pathlib import Path

import pytest

from cbm.errors import UserError
from cbm.files import installation
from cbm.files.installation import Needs, differing, others_of_this_name, read_needs, unmet

RECORD = """Metadata-Version: 2.4
Name: Any-Name
Version: 1.2
Provides-Extra: fast
Provides-Extra: all
Requires-Dist: numpy>=2
Requires-Dist: tomli>=2; python_version < "3"
Requires-Dist: nosuchpackage>=1; extra == "fast"
Requires-Dist: any-name[fast]; extra == "all"
"""


def test_a_distribution_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "any_name-1.2.dist-info").mkdir()
    (tmp_path / "any_name-1.2.dist-info" / "METADATA").write_text(RECORD)
    monkeypatch.syspath_prepend(tmp_path)
    needs = read_needs(["any-name"])
    assert needs == Needs("Any-Name", "the installed Any-Name 1.2", ["numpy>=2"], {
        "fast": ["nosuchpackage>=1"], "all": ["any-name[fast]"],
    })  # fmt: skip
    assert unmet(needs.always, needs) == []
    assert unmet(needs.extras["all"], needs) == ["nosuchpackage>=1 (not installed)"]


def test_a_checkout_says_it_in_its_project_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs = read_needs([])
    assert needs.said_in.endswith("pyproject.toml")
    assert any(line.startswith("torch>=") for line in needs.always)
    assert not unmet([f"{needs.name}[heic]"], needs)  # an extra of a checkout stands for what it asks for
    monkeypatch.setattr(installation, "PROJECT_FILE", tmp_path / "pyproject.toml")
    with pytest.raises(UserError, match="not installed"):
        read_needs([])


def test_another_version_than_is_needed():
    assert unmet(["numpy>=1000"], Needs("cbm", "", [])) == [f"numpy>=1000 ({metadata.version('numpy')} is installed)"]


def test_versions_that_differ(tmp_path: Path):
    file = tmp_path / "constraints.txt"
    file.write_text(f"# a line\nnumpy=={metadata.version('numpy')}\npillow==0.0.1\nnosuchpackage==1\n")
    assert differing(file) == ([f"pillow {metadata.version('pillow')} (0.0.1)"], 2)


def test_another_package_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(installation.ROOT), str(tmp_path)])
    assert others_of_this_name() == []
    (tmp_path / "cbm.py").touch()
    assert others_of_this_name() == [tmp_path / "cbm.py"]
