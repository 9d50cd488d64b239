"""Hold a run's weights against data that it was not trained on."""

from collections.abc import Mapping
from dataclasses import replace

from ..evaluate import (
    METRICS,
    ConversationEvaluator,
    EvaluateRequest,
    EvaluationResult,
    Evaluator,
    MediaEvaluator,
    Subject,
)
from ..evaluate.data import deterministic
from ..files import write_json
from . import sample as after
from . import train as session

EVALUATORS: Mapping[str, type[Evaluator]] = {
    "captions": MediaEvaluator,
    "conversations": ConversationEvaluator,
}
"""By what a family is trained on."""


def evaluate(request: EvaluateRequest) -> EvaluationResult:
    """Measure a run and write what was found as JSON."""
    one = evaluator(request)
    measures = one.measures()
    settings = one.described()
    file = request.out or request.folder / "evaluation" / f"{one.label}.json"
    write_json(file, {**settings, "metrics": [row.as_json() for row in measures]})
    return EvaluationResult(measures, settings, file)


def evaluator(request: EvaluateRequest) -> Evaluator:
    """Resolve a run and its data, and say which metrics are left out; nothing is generated yet."""
    stated = session.read_run(request.folder)
    given = {name: getattr(request, name) for name in ("steps", "guidance", "seed")}
    options = after.overridden(stated.validation, given)
    saved = None if request.base else after.find_checkpoint(request.folder, request.checkpoint)
    job = session.make_job(deterministic(stated))
    subject = Subject(
        job=job,
        options=options,
        saved=saved,
        with_data=lambda data: session.make_job(replace(job.run, data=data), job.earlier),
        load=lambda job, mesh: after.trained(job, mesh, saved, not request.raw),
        sample_size=lambda size: after.sample_size(size, request.folder, job),
    )
    return EVALUATORS[job.family_class.trained_on](request, subject, METRICS)
