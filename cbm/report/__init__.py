"""Reports of a run (``write_report``) and tables over many runs (``cbm.report.compare``)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbm.report.report import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    # torch is loaded for a report only: comparing runs needs no more than their files
    if name == "write_report":
        from cbm.report.report import write_report

        return write_report
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
