"""How long an exported model takes to its first prediction, in an environment without torch.

    nox -s torch_free -- FOLDER

Runs with no other package than those that such an environment has.
"""

import time

STARTED = time.perf_counter()

import importlib.util  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from nertool.documents import Document, Section  # noqa: E402
from nertool.inference import load_tagger, predict_documents  # noqa: E402
from nertool.settings import PredictSettings  # noqa: E402

TEXT = "EGFR mutations confer sensitivity to gefitinib in patients with lung cancer."


def main():
    here = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name)]
    imported = time.perf_counter()
    tagger = load_tagger(Path(sys.argv[1]), PredictSettings())
    loaded = time.perf_counter()
    (documents,) = predict_documents(tagger, [Document("1", (Section("title", TEXT),))], 256)
    done = time.perf_counter()
    print(f"runs on: {tagger.runs_on}; of torch, transformers and safetensors there is {', '.join(here) or 'none'}")
    print(f"found: {', '.join(f'{one.match} ({one.label})' for one in documents[0].sections[0].entities)}")
    times = {"imports": imported - STARTED, "loading": loaded - imported, "first prediction": done - loaded}
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items()), f"together {done - STARTED:.2f} s")


if __name__ == "__main__":
    main()
