"""Open a trained label model and predict; runs on any revision, so it uses what all have.

python worker.py FOLDER TEXTS.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import shoal


def main() -> None:
    folder, texts = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    # revisions before the rebuild open models by load
    opened: Any = getattr(shoal, "open", shoal.load)
    getattr(shoal, "LabelModel", None)  # its imports are not what opening costs
    begin = time.process_time()
    model = opened(folder)
    seconds = {"open": time.process_time() - begin}
    begin = time.process_time()
    model.predict(texts, k=5)
    seconds["predict"] = time.process_time() - begin
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
