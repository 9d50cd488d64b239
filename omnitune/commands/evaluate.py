"""Hold a run's weights against data that it was not trained on."""

from ..evaluate import EvaluateRequest, EvaluationResult, evaluator
from ..files import write_json


def evaluate_run(request: EvaluateRequest) -> EvaluationResult:
    """Measure a run and write what was found as JSON."""
    one = evaluator(request)
    measures, settings = one.measures(), one.described()
    file = request.out or request.folder / "evaluation" / f"{one.label}.json"
    write_json(file, {**settings, "metrics": [row.as_json() for row in measures]})
    return EvaluationResult(measures, settings, file)
