from pathlib import Path

from cbm.files.memory import memory_bytes


def test_what_linux_says():
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert memory_bytes() == int(total.split()[1]) * 1024
