"""This folder is the checkout; the package is the folder ``cbm`` in it.

A checkout is often named ``cbm`` too. From its parent folder ``import cbm`` finds this file, and gives the package.
"""

if __name__ == "cbm":
    import sys
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location("cbm", Path(__file__).parent / "cbm" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["cbm"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["cbm"])
