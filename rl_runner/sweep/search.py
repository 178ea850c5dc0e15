"""A search over hyperparameters: Optuna proposes, jobs answer, hopeless ones are stopped; a killed search goes on."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from hydra.core.override_parser.types import IntervalSweep, Override
from pydantic import Field, NonNegativeInt, PositiveInt

from rl_runner.commands import SCORE
from rl_runner.config.schema import Config
from rl_runner.config.targets import factory, read_group
from rl_runner.errors import RunFailed, UserError
from rl_runner.persistence import METRICS, RESULT, SEARCH, SWEEP, read_json, write_json
from rl_runner.report.load import read_curves
from rl_runner.sweep import conclude, engine_of, owned
from rl_runner.sweep.crew import Crew, crew_of
from rl_runner.sweep.jobs import Job, job_hash, placed, sweep_directory, without_updates

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError as missing:
    raise UserError("hydra/sweeper=optuna needs optuna: pip install 'rl-runner[optuna]'") from missing

STUDY = "study.db"
LOOK_EVERY = 2.0  # seconds, at the curves of running trials
ENOUGH_TO_TELL = 5  # different values

Values = FloatDistribution | IntDistribution | CategoricalDistribution
Space = Mapping[str, Values]
Compose = Callable[..., list[Config]]  # the configs of jobs that override these words


class Search:
    """Asks and tells until `n_trials` have finished, were pruned or failed; those that failed come again next time."""

    def __init__(
        self,
        *,
        space: Space,
        compose: Compose,
        directory: Path,
        n_trials: PositiveInt,
        n_seeds: PositiveInt,
        seed: NonNegativeInt,
        prune: bool,
        prune_after: Annotated[float, Field(ge=0, le=1)],
        prune_startup: NonNegativeInt,
    ):
        self._space, self._compose, self._directory = space, compose, directory
        self._n_trials, self._n_seeds, self._prune = n_trials, n_seeds, prune
        (self._base,) = compose([])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = str(URL.create("sqlite", database=str(directory / STUDY)))
        self.study = optuna.create_study(
            storage=storage, study_name="search", direction="maximize", load_if_exists=True
        )
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):  # Optuna 4
            # Trials that are at work count as bad ones, so that no other is proposed beside them.
            self.study.sampler = optuna.samplers.TPESampler(seed=seed + len(self.study.trials), constant_liar=True)
        warm_up = int(prune_after * self._base.total_steps)
        self.study.pruner = optuna.pruners.MedianPruner(prune_startup, n_warmup_steps=warm_up)

    def run(self, crew: Crew) -> int:
        """Go on with the trials that were open, then with new ones; how many jobs there were."""
        following: list[Iterator[None]] = []

        def begin(trial: optuna.Trial, reported: set[int]) -> None:
            following.append(self._follow(trial, crew, reported))
            next(following[-1])

        found = self.study.get_trials(deepcopy=False)
        known = [past.params for past in found if past.state != TrialState.FAIL]
        for past in found:
            if past.state == TrialState.RUNNING:  # that of a killed process is taken up under its own number
                begin(optuna.Trial(self.study, past._trial_id), set(past.intermediate_values))
            if past.params not in known:  # it has failed
                self.study.enqueue_trial(past.params)
                known.append(past.params)
        begun, looked = len(following), time.monotonic()
        wanted = self._n_trials - sum(past.state in (TrialState.COMPLETE, TrialState.PRUNED) for past in found)
        while following or begun < wanted:
            while begun < wanted and crew.free > 0:
                begin(self.study.ask(dict(self._space)), set())
                begun += 1
            ended = crew.poll()
            if crew.signals:
                break
            if ended or time.monotonic() - looked > LOOK_EVERY:
                following = [trial for trial in following if next(trial, "over") != "over"]
                looked = time.monotonic()
        return begun * self._n_seeds

    def record(self) -> dict[str, Any]:
        """What the search has found, for the report."""
        trials = self.study.get_trials(deepcopy=False)
        return {
            "score": SCORE,
            "trials": [
                {"number": t.number, "state": t.state.name.lower(), "value": t.value, "params": t.params}
                for t in trials
            ],
            "importance": importance(self.study),
        }

    def _follow(self, trial: optuna.Trial, crew: Crew, reported: set[int]) -> Iterator[None]:
        """Give the crew a trial's jobs, one for each seed; then at every `next` tell Optuna what is new, until it ends.

        `reported`: the steps whose evaluations Optuna knows.
        """
        seeds = [f"seed={self._base.seed + i}" for i in range(self._n_seeds)]
        configs = self._compose(*[[*(f"{key}={value}" for key, value in trial.params.items()), seed] for seed in seeds])
        short = [f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
                 for key, value in trial.params.items()]  # fmt: skip
        names = [[f"trial={trial.number}", *short, seed] for seed in seeds]
        jobs = [placed(self._directory, name, config) for name, config in zip(names, configs, strict=True)]
        for job in jobs:
            if not job.finished:
                job.save()
        crew.add(jobs)
        yield
        while not all(job.finished for job in jobs):
            if self._prune and self._hopeless(trial, jobs, reported):
                self.study.tell(trial, state=TrialState.PRUNED)
                for job in jobs:
                    crew.prune(job)
                return
            if not any(crew.has(job) for job in jobs):
                self.study.tell(trial, state=TrialState.FAIL)
                return
            yield
        self.study.tell(trial, fmean(read_json(job.directory / RESULT)[SCORE] for job in jobs))

    def _hopeless(self, trial: optuna.Trial, jobs: Sequence[Job], reported: set[int]) -> bool:
        """Report the evaluations that all seeds have reached; whether the pruner gives the trial up."""
        curves = [read_curves(job.directory / METRICS).get(SCORE) for job in jobs]
        points = [dict(zip(map(int, curve.steps), curve.values, strict=True)) if curve else {} for curve in curves]
        for step in sorted(set.intersection(*map(set, points)) - reported):
            trial.report(fmean(values[step] for values in points), step)
            reported.add(step)
            if trial.should_prune():
                return True
        return False


def search(space: Space, compose: Compose, settings: Mapping[str, Any], hydra: Any) -> None:
    """Search the space, then write the report; UserError before anything starts if a job could not."""
    (base,) = compose([])
    at_ends = compose(*[[f"{key}={value}"] for key, values in space.items() for value in extremes(values)])
    group = read_group("hydra.sweeper", {"_target_": "rl_runner.sweep.search.Search", **settings}, [])
    if group.problems:
        raise UserError("\n".join(group.problems))
    identity = [job_hash(base), sorted(f"{key} {values}" for key, values in space.items()), group.values["n_seeds"]]
    directory = sweep_directory(hydra.sweep.dir, identity, base.fresh)
    engine = engine_of(hydra, [base])
    print("".join(f"{line}\n" for line in without_updates(at_ends, "ends of the space")), end="")
    if base.dry_run:
        print(f"{group.values['n_trials']} trials of {group.values['n_seeds']} jobs in {directory} over")
        print("\n".join(f"  {key}: {values}" for key, values in space.items()))
        return
    with owned(directory), recorded(directory / STUDY):
        write_json(directory / SWEEP, {"command": sys.argv[1:], "resumable": False})
        at_work = factory("hydra.sweeper", group.values)(space=space, compose=compose, directory=directory)
        print(f"{directory}: {len(at_work.study.trials)} trials so far; {engine.n_jobs} jobs at once")
        with crew_of(engine) as crew:
            num_jobs = at_work.run(crew)
        write_json(directory / SEARCH, at_work.record())
        conclude(directory, num_jobs, crew)


@contextmanager
def recorded(study: Path) -> Iterator[None]:
    """Where Optuna's record is read and written; RunFailed if it cannot be."""
    try:
        yield
    except (optuna.exceptions.OptunaError, SQLAlchemyError) as error:
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
        reason = " ".join(str(getattr(cause, "orig", cause)).split())
        raise RunFailed(f"{study}: {reason}; the same command goes on, with fresh=true a search begins anew") from error


def space_of(overrides: Sequence[Override]) -> dict[str, Values]:
    """The space that swept overrides span: intervals, ranges of integers, and choices as they were typed."""
    space = {str(override.get_key_element()): _distribution(override) for override in overrides}
    if "seed" in space:
        raise UserError("seed is no hyperparameter: hydra.sweeper.n_seeds says how many seeds each trial has")
    return space


def extremes(values: Values) -> list[Any]:
    """The values between which all others lie, or all of them."""
    return list(values.choices) if isinstance(values, CategoricalDistribution) else [values.low, values.high]


def importance(study: optuna.Study) -> dict[str, float]:
    """The share of each hyperparameter in being among the best trials; {} where too few have finished to tell."""
    finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len({trial.value for trial in finished}) < ENOUGH_TO_TELL:
        return {}
    return optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())


def _distribution(override: Override) -> Values:
    swept = override.value()
    if not isinstance(swept, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    integers = isinstance(swept.start, int) and isinstance(swept.end, int)
    kind: Any = IntDistribution if integers else FloatDistribution
    return kind(swept.start, swept.end, log="log" in swept.tags)
