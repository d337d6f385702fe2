import io
import sys

import pytest

from cbm.files.streams import print_what_can_be


def test_what_the_encoding_lacks_is_printed_as_its_number(monkeypatch: pytest.MonkeyPatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(UnicodeEncodeError):
        print("≈")
    print_what_can_be()
    print("1.0 ± 0.1 ≈")
    output.flush()
    assert output.buffer.getvalue().decode("cp1252").split("\n")[0].rstrip("\r") == "1.0 ± 0.1 \\u2248"
