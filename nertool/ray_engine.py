"""Predicting on a Ray cluster, or with Ray on this machine: the only module that imports Ray.

Ray Data shares out the chunks, holds reading back while the actors are busy, and gives what a lost node was working on
to others; each chunk's result is saved here, by its key, so however often it was made, it is there once.

Nodes read the documents and the model by the paths that they have here, and need nertool.
"""

import logging
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from typing import TYPE_CHECKING, Any, Self

from nertool.artefacts import read_facts
from nertool.bulk_prediction import ChunkPredictor, Job, PredictedChunk, Reading
from nertool.chunks import CheckedChunk, check_chunk
from nertool.errors import NertoolError
from nertool.extras import require

if TYPE_CHECKING:
    from ray.data import Dataset

# A trained model is large, and computes well with some threads.
_CORES_PER_TRAINED_MODEL = 4
# Reading waits for files most of the time, and must go on when all cores are taken. Being another share than the
# actors', it also keeps Ray from putting both into one process, where one large file would keep a single actor busy.
_CORES_PER_READER = 0
# So many actors are fed from one file that is read.
_CORES_PER_FILE = 8
# Rows as Ray's batches have them: one column, of pickled objects.
_Batch = dict[str, Any]


class RayEngine:
    """Works with the cluster that `RAY_ADDRESS` or `ray start` tells of, else with Ray on this machine.

    Args:
        job: What to do.

    Raises:
        NertoolError: If Ray isn't installed.
    """

    def __init__(self, job: Job) -> None:
        require("ray")
        self._job = job

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is worked on here is nobody else's business
        # What it tells of its own doings would stand between our lines; what went wrong it raises.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with ExitStack() as stack:
            logging.disable(logging.WARNING)
            stack.callback(logging.disable, logging.NOTSET)
            stack.enter_context(redirect_stdout(sys.stderr))  # to which it prints
            import ray  # noqa: PLC0415 (an optional package)

            stack.callback(ray.shutdown)
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = os.environ.get("RAY_ADDRESS")
                raise NertoolError(
                    f"Ray can't be started or reached: {_lines(error)[0]}",
                    f"RAY_ADDRESS is {where}; is that the cluster's address?" if where else "ray status says more",
                ) from error
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.target_max_block_size = 1  # so that each chunk can go to another actor
            self._resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def check(self, reading: Reading) -> Iterator[CheckedChunk]:
        """Looks at chunks; see `bulk_prediction.Engine`."""
        if (chunks := self._chunks(reading, ordered=True)) is not None:
            yield from _results(chunks.map_batches(_check, batch_size=1, num_cpus=1))

    def predict(self, reading: Reading) -> Iterator[PredictedChunk]:
        """Predicts chunks; see `bulk_prediction.Engine`."""
        if (chunks := self._chunks(reading, ordered=False)) is not None:
            exported = read_facts(self._job.model).get("export")
            torch_free = exported is not None and exported["format"] in ("onnx", "openvino")
            yield from _results(
                chunks.map_batches(
                    _Predictor,
                    fn_constructor_args=(self._job, 1 if torch_free else None),
                    batch_size=1,
                    **self._share(torch_free=torch_free),
                )
            )

    def _share(self, *, torch_free: bool) -> dict[str, Any]:
        """Returns how many actors there are to be, and what each gets: a GPU, a core, or some cores."""
        from ray.data import ActorPoolStrategy as pool  # noqa: N813, PLC0415

        cores, gpus = int(self._resources.get("CPU", 1)), int(self._resources.get("GPU", 0))
        device = self._job.settings.device
        if device.startswith("cuda") or (device == "auto" and gpus and not torch_free):
            if not gpus:
                raise NertoolError("the Ray cluster has no GPU", "--device cpu")
            return {"num_gpus": 1, "compute": pool(size=self._job.settings.workers or gpus)}
        each = 1 if torch_free else min(_CORES_PER_TRAINED_MODEL, cores)
        return {"num_cpus": each, "compute": pool(size=self._job.settings.workers or max(1, cores // each))}

    def _chunks(self, reading: Reading, *, ordered: bool) -> "Dataset | None":
        import ray  # noqa: PLC0415

        reading = reading.absolute()  # nodes have other current folders
        sources = [pickle.dumps(source) for source in reading.sources()]
        if not sources:
            return None
        ray.data.DataContext.get_current().execution_options.preserve_order = ordered
        files = ray.data.from_items([{"object": source} for source in sources], override_num_blocks=len(sources))
        return files.map_batches(
            _read,  # type: ignore[arg-type]  # its type leaves no room for arguments
            fn_args=(reading,),
            batch_size=1,
            num_cpus=_CORES_PER_READER,
            compute=ray.data.TaskPoolStrategy(size=max(2, int(self._resources.get("CPU", 1)) // _CORES_PER_FILE)),
        )


def _read(batch: _Batch, reading: Reading) -> Iterator[_Batch]:
    for chunk in reading.chunks_of(pickle.loads(source) for source in batch["object"]):
        yield {"object": [pickle.dumps(chunk)]}


def _check(batch: _Batch) -> _Batch:
    return {"object": [pickle.dumps(check_chunk(pickle.loads(chunk))) for chunk in batch["object"]]}


class _Predictor:
    def __init__(self, job: Job, threads: int | None) -> None:
        self._predict = ChunkPredictor(job, threads)

    def __call__(self, batch: _Batch) -> _Batch:
        return {"object": [pickle.dumps(self._predict(pickle.loads(chunk))) for chunk in batch["object"]]}


def _results(rows: "Dataset") -> Iterator[Any]:
    from ray.exceptions import RayError  # noqa: PLC0415

    try:
        for row in rows.iter_rows():
            yield pickle.loads(row["object"])
    except RayError as error:
        causes = [error, error.__cause__, getattr(error, "cause", None)]
        if ours := next((cause for cause in causes if isinstance(cause, NertoolError)), None):
            raise ours from None
        raise NertoolError(f"Ray gave up: {_lines(error)[-1]}", "the same command goes on where it was") from error


def _lines(error: Exception) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]
