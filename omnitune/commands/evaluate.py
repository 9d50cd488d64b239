"""Hold a run's weights against data that it was not trained on."""

from ..evaluate import EvaluateRequest, EvaluationResult, evaluator
from ..files import write_json
from ..run_folder import check_free, next_free


def evaluate_run(request: EvaluateRequest) -> EvaluationResult:
    """Measure a run and write what was found as JSON."""
    check_free(request.out)
    one = evaluator(request)
    measures, settings = one.measures(), one.described()
    file = request.out or next_free(request.folder / "evaluation" / f"{one.label}.json")
    write_json(file, {**settings, "metrics": [row.as_json() for row in measures]})
    return EvaluationResult(measures, settings, file)
