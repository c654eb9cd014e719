"""Build what is published, check it, install it into an empty environment and try it there.

    python tools/release.py [OPTIONS OF PIP]   # make release

sdist and wheel go to dist/. The wheel comes from the sdist, so that the sdist is known to build.
twine reads the metadata; then the README's first example, `shoal --help` and a training by the
command run from the wheel, outside the repository. Uploading is left to a person:
``twine upload dist/*``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"


def main() -> None:
    """Build, check, install, try."""
    pip_options = [str(Path(x).resolve()) if Path(x).is_file() else x for x in sys.argv[1:]]
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    files = sorted(DIST.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, files))
    with tempfile.TemporaryDirectory(prefix="shoal-release-") as folder:
        try_wheel(next(x for x in files if x.suffix == ".whl"), Path(folder), pip_options)
    for path in files:
        print(f"{path.name}  {path.stat().st_size / 2**20:.1f} MiB")


def try_wheel(wheel: Path, folder: Path, pip_options: list[str]) -> None:
    """Install a wheel into an empty environment and use it, standing in `folder`."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(str(python), "-m", "pip", "install", "--quiet", str(wheel), *pip_options, cwd=folder)
    code = first_example((ROOT / "README.md").read_text(encoding="utf-8"))
    run(str(python), "-W", "error", "-c", code, cwd=folder)
    words = run(str(python), "-m", "shoal", "--help", cwd=folder)
    assert words.startswith("usage: shoal")
    begin = time.perf_counter()
    run(str(python), "-c", "import shoal", cwd=folder)
    print(f"import shoal: {time.perf_counter() - begin:.2f} s with Python's own start")
    table = "text,labels\n" + "".join(f"a {x} mug,{x}\n" for x in ("red", "blue") * 20)
    (folder / "mugs.csv").write_text(table, encoding="utf-8")
    train = ["train", "labels", "mugs.csv", "--epochs", "1", "--out", "run"]
    run(str(python), "-m", "shoal", *train, cwd=folder)
    run(str(python), "-m", "shoal", "query", "a red mug", "--run", "run", cwd=folder)


def first_example(readme: str) -> str:
    r"""The first Python block of a document.

    Example:
        >>> first_example("x\n```python\na = 1\n```\n```python\nb = 2\n```\n")
        'a = 1\n'
    """
    found = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def run(program: str, *rest: str, cwd: Path | None = None) -> str:
    """What a command prints; it ends the release where it fails."""
    words = [program, *rest]
    print("--", *words[:6], "…" if len(words) > 6 else "", file=sys.stderr)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    told = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    if told.returncode:
        sys.exit(f"{told.stdout}\n{told.stderr}\nrelease: {program} failed")
    return told.stdout


if __name__ == "__main__":
    main()
