"""MMLU's 57 subjects in the 14 categories of MMLU-Pro.

The paper regroups MMLU this way (arXiv 2412.04139, appendix D.1). The table follows MMLU's own list of subject fields
(arXiv 2009.03300), except that geography, politics and culture go under "other", as in MMLU-Pro (arXiv 2406.01574). It
agrees with the two sizes that the paper names: 2,343 questions in "other", the largest category, and 145 in
"engineering", the smallest.
"""

from __future__ import annotations

from monet.errors import DataError

_SUBJECTS: dict[str, str] = {
    "biology": "college_biology high_school_biology",
    "business": "business_ethics management marketing",
    "chemistry": "college_chemistry high_school_chemistry",
    "computer science": "college_computer_science computer_security high_school_computer_science machine_learning",
    "economics": "econometrics high_school_macroeconomics high_school_microeconomics",
    "engineering": "electrical_engineering",
    "health": "anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition professional_medicine"
    " virology",
    "history": "high_school_european_history high_school_us_history high_school_world_history prehistory",
    "law": "international_law jurisprudence professional_law",
    "math": "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics"
    " high_school_statistics",
    "other": "global_facts high_school_geography high_school_government_and_politics human_sexuality miscellaneous"
    " professional_accounting public_relations security_studies sociology us_foreign_policy",
    "philosophy": "formal_logic logical_fallacies moral_disputes moral_scenarios philosophy world_religions",
    "physics": "astronomy college_physics conceptual_physics high_school_physics",
    "psychology": "high_school_psychology professional_psychology",
}

CATEGORIES: tuple[str, ...] = tuple(_SUBJECTS)
CATEGORY_OF: dict[str, str] = {
    subject: category for category, subjects in _SUBJECTS.items() for subject in subjects.split()
}
SUBJECTS: tuple[str, ...] = tuple(sorted(CATEGORY_OF))


def category_of(subject: str) -> str:
    """Category of an MMLU subject.

    Args:
        subject: name of the subject in the data set, e.g. "high_school_us_history".

    Raises:
        DataError: the subject is not one of the 57; the message names it and the most similar subjects.
    """
    import difflib

    if subject in CATEGORY_OF:
        return CATEGORY_OF[subject]
    near = difflib.get_close_matches(subject, SUBJECTS, n=3)
    hint = f"; the most similar are {', '.join(near)}" if near else ""
    raise DataError(f"{subject!r} is not one of MMLU's 57 subjects{hint}; its questions have no category")
