"""Squares of three hues and brightnesses: two labels, an attribute of values, one of levels, a number and a group."""

from pathlib import Path

from conftest import paint

SAID = """
labels: [reddish, bright]
cells: {"": unknown}
concepts:
  hue: {values: [red, green, blue]}
  level: {ordered: [dark, middle, light]}
  glow: {unit: cd, range: [0, 100]}
"""
"""What stands in their columns.yaml."""
HUES = {"red": (1.0, 0.1, 0.1), "green": (0.1, 1.0, 0.1), "blue": (0.1, 0.2, 1.0)}


def draw_squares(root: Path, count: int = 90) -> None:
    """Draw them, with a table; every tenth cell of the second label is empty."""
    lines = ["path,reddish,bright,hue,level,glow,site"]
    for i in range(count):
        hue, level = list(HUES)[i % 3], i // 3 % 3
        paint(root / f"{i}.png", tuple(int((70 + 85 * level) * part) for part in HUES[hue]), i)
        reddish, bright = int(hue == "red"), "" if i % 10 == 4 else int(level == 2)
        word, site = ["dark", "middle", "light"][level], "AB"[i // 9 % 2]
        lines.append(f"{i}.png,{reddish},{bright},{hue},{word},{10 + 40 * level + i % 7},{site}")
    (root / "images.csv").write_text("\n".join(lines) + "\n")
