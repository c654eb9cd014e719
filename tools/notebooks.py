"""The tutorials as notebooks: docs/tutorials/NAME.md is the source, NAME.ipynb beside it is made.

    python tools/notebooks.py          # write them
    python tools/notebooks.py --check  # exit 1 where one is not what its tutorial says

A ``python`` block becomes a cell of code; what stands between two of them becomes a cell of text.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
_CODE = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Write every notebook, or compare."""
    stale = []
    for source in sorted(TUTORIALS.glob("*.md")):
        made, path = notebook(source.read_text(encoding="utf-8")), source.with_suffix(".ipynb")
        if "--check" not in sys.argv:
            path.write_text(made, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != made:
            stale.append(path.name)
    if stale:
        sys.exit(f"{', '.join(stale)}: not what the tutorial says; run python tools/notebooks.py")


def notebook(text: str) -> str:
    r"""A tutorial as a notebook of format 4.5.

    Example:
        >>> cells = json.loads(notebook("# A\n\n```python\na = 1\n```\n\nso.\n"))["cells"]
        >>> [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        [('markdown', '# A'), ('code', 'a = 1'), ('markdown', 'so.')]
    """
    parts = _CODE.split(text)  # text, code, text, code, …, text
    cells = [_cell(part.strip("\n"), i, i % 2 == 1) for i, part in enumerate(parts)]
    about = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    kept = [cell for cell in cells if cell["source"]]
    book = {"cells": kept, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def _cell(text: str, number: int, is_code: bool) -> dict[str, object]:
    """A cell; links to other pages, which a notebook does not have, lose their target."""
    shown = text if is_code else re.sub(r"\[([^\]]*)\]\((?!\w+:)[^)]*\)", r"\1", text)
    common = {"id": f"cell-{number}", "metadata": {}, "source": shown.splitlines(keepends=True)}
    if is_code:
        return {"cell_type": "code", "execution_count": None, "outputs": [], **common}
    return {"cell_type": "markdown", **common}


if __name__ == "__main__":
    main()
