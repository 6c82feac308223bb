"""Asks a model facts and questions under the removals of all domains, with the package's own suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monet.errors import ConfigError
from monet.eval.core.chance import DEFAULT_CONTROLS
from monet.eval.core.controls import Controls
from monet.eval.suites.facts.evaluate import evaluate_facts
from monet.eval.suites.facts.read import Facts, read_facts
from monet.eval.suites.facts.verdicts import targets_of
from monet.eval.suites.questions.catalog import benchmarks
from monet.eval.suites.questions.general import evaluate_general
from monet.eval.suites.questions.tasks import load_tasks
from studies.knowledge.results import AskedFacts, AskedQuestions, LostFacts, LostQuestions
from studies.removal.measure import Measurement
from studies.removal.plan import JUDGING_SEED

BENCHMARKS = ("ARC-Easy", "SciQ", "PIQA", "LAMBADA")
# A domain of text is named after its form and its subject; facts are named after the subject only.
FORMS = ("dictionary_", "prose_")


@dataclass(frozen=True)
class Asking:
    """What is asked.

    Args:
        facts: files of facts; none asks no facts.
        facts_limit: facts of each relation, the first ones; None takes all.
        facts_controls: random removals of equal number for each removal, asked about its target.
        questions: folder with the benchmarks' data; None asks no questions.
        questions_limit: questions of each benchmark, the first ones; None takes all.
        questions_controls: random removals of equal number for each removal, asked all questions.
    """

    facts: Sequence[Path] = ()
    facts_limit: int | None = 8
    facts_controls: int = DEFAULT_CONTROLS
    questions: Path | None = None
    questions_limit: int | None = 50
    questions_controls: int = 4

    def check(self, domains: Sequence[str]) -> None:
        """Refuse facts and questions that cannot be asked, before hours of other measurements.

        Args:
            domains: the domains that are removed.

        Raises:
            ConfigError: a limit is out of range, or no domain has facts.
            DataError: a file of facts or a benchmark's data are missing or cannot be read.
        """
        if self.facts:
            targets(domains, read_facts(self.facts, self.facts_limit))
        if self.questions is not None:
            for one in benchmarks(names=BENCHMARKS):
                load_tasks(one.tasks, data=self.questions, limit=self.questions_limit)

    @property
    def missing(self) -> dict[str, str]:
        """The parts that are not measured, with the reason."""
        found = {}
        if not self.facts:
            found["Facts"] = "no file of facts was given (`--facts`)"
        if self.questions is None:
            found[", ".join(BENCHMARKS)] = "no folder of questions was given (`--questions`)"
        return found

    @property
    def described(self) -> dict[str, Any]:
        """The sizes, as a result records them."""
        return {
            "facts_limit": self.facts_limit, "facts_controls": self.facts_controls,
            "questions_limit": self.questions_limit, "questions_controls": self.questions_controls,
        }  # fmt: skip


def targets(domains: Sequence[str], facts: Facts) -> dict[str, str]:
    """The domain or relation of facts that each removed domain is judged by.

    Args:
        domains: domains of the text, for example dictionary_law and french.
        facts: the facts.

    Returns:
        Targets by domain, without the domains that have no facts; dictionary_law and prose_law have definitions/law.

    Raises:
        ConfigError: no domain has facts.
    """
    subjects = {
        domain: next((domain[len(form) :] for form in FORMS if domain.startswith(form)), domain) for domain in domains
    }
    known = targets_of(sorted(set(subjects.values())), facts)
    found = {domain: known[subject] for domain, subject in subjects.items() if known[subject]}
    if not found:
        raise ConfigError(
            f"none of the removed domains {', '.join(domains)} has the name of a domain or relation of the facts; give "
            "facts about them with --facts, or omit it"
        )
    return found


def ask_facts(one: Measurement, asking: Asking) -> AskedFacts:
    """Ask a model all facts under each removal that has a target, and its controls about the target.

    Removals are the ones that the loss was measured under. Outcomes in the plan's folder are not repeated.
    """
    candidate = one.candidate
    plan, facts = candidate.plan, read_facts(asking.facts, asking.facts_limit)
    judged = targets(list(one.masks), facts)
    result = evaluate_facts(
        candidate.model, {name: one.masks[name] for name in judged}, facts, out=plan.out / "facts" / candidate.name,
        targets=judged, controls=Controls(asking.facts_controls, seed=JUDGING_SEED), tokenizer=str(candidate.folder),
        bootstrap=plan.bootstrap, batch_size=plan.batch_size,
    )  # fmt: skip
    assert result is not None, "only a part has no result"
    scopes = [*result.domains, *result.relations]
    lost = []
    for removal in result.removals:
        target = result.target_change(removal)
        assert target is not None, "every removal here has a target"
        changes = [*removal.domains, *removal.relations]
        lost.append(LostFacts(
            removal.name, removal.target, target.log_odds, target.accuracy, removal.others_mean, target.random,
            removal.controls, removal.p, removal.q, removal.passes, removal.reason,
            [change.log_odds.value for change in changes], [change.accuracy.value for change in changes],
        ))  # fmt: skip
    return AskedFacts(
        candidate.name, candidate.kind, [scope.name for scope in scopes], [scope.facts for scope in scopes],
        [scope.log_odds for scope in scopes], [scope.accuracy for scope in scopes], lost,
    )  # fmt: skip


def ask_questions(one: Measurement, asking: Asking) -> AskedQuestions:
    """Ask a model ARC-Easy, SciQ and PIQA without examples, under each removal and its controls.

    Removals are the ones that the loss was measured under. Outcomes in the plan's folder are not repeated.
    """
    candidate = one.candidate
    plan = candidate.plan
    result = evaluate_general(
        candidate.model, one.masks, out=plan.out / "questions" / candidate.name, data=asking.questions,
        names=BENCHMARKS, shots=(0,), controls=Controls(asking.questions_controls, seed=JUDGING_SEED),
        limit=asking.questions_limit, tokenizer=str(candidate.folder), bootstrap=plan.bootstrap,
        batch_size=plan.batch_size,
    )  # fmt: skip
    assert result is not None, "only a part has no result"
    whole, *rows = (row for row in result.rows if row.control is None)
    random: Mapping[str | None, Any] = {row.label: row for row in result.random}
    names = list(whole.cells)
    return AskedQuestions(
        candidate.name, candidate.kind, names, [of.scored for of in result.denominators["0"]],
        [whole.cells[name].score for name in names],
        [
            LostQuestions(
                str(row.label), [row.cells[name].delta for name in names], row.average_delta,
                random[row.label].average_delta if row.label in random else None,
                row.controls or 0, 1.0 if row.p is None else row.p, 1.0 if row.q is None else row.q,
            )
            for row in rows
        ],
    )  # fmt: skip
