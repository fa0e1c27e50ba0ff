"""The same judgement while a run goes on: its EMA weights, every `validate.every` steps, into the run's own folder.

Training never notices: noise comes from the samples' ids, and the global random state is given back. What a judgement
cannot do (a codec's weights are missing, the model still draws NaN, the disk is full) is told, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dittool.console import SILENT, Talk
from dittool.data.shards.read import ShardSet
from dittool.errors import DitError, from_os_error
from dittool.sampling.pipeline import Pipeline
from dittool.validate.run import validate_pipeline


def judge_on_the_way(shards: Path, run: Path, talk: Talk = SILENT) -> Callable[[Pipeline], None]:
    """A function that judges a pipeline and leaves `validation/stepNNNNNNN` in the folder `run`."""

    def judge(pipeline: Pipeline) -> None:
        # One of its own, so that the encoders leave the memory with it: training needs the room.
        own = Pipeline(pipeline.model, pipeline.config, pipeline.data, pipeline.step)
        folder = run / "validation" / f"step{pipeline.step:07d}"
        try:
            done = validate_pipeline(own, ShardSet.open(shards), folder, talk=talk, run=run)
        except (DitError, OSError) as error:
            told = error if isinstance(error, DitError) else from_os_error(error)
            if told is None:
                raise
            talk.warn(f"step {pipeline.step}: not judged: {told.message}; training goes on. {told.hint}")
            return
        failed = ", ".join(one.name for one in done.criteria if one.passed is False)
        talk.note(f"step {pipeline.step}: {done.verdict}{f' ({failed})' if failed else ''}: {done.report}")

    return judge
