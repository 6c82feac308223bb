"""The rows that are asked, the source of examples, and the counts of faulty data."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from monet.errors import ConfigError, DataError
from monet.eval.choices.scoring import Outcome, log_probability
from monet.eval.choices.texts import content_of
from monet.eval.suites.questions.catalog import OTHERS, benchmarks
from monet.eval.suites.questions.categories import CATEGORIES, CATEGORY_OF, SUBJECTS, category_of
from monet.eval.suites.questions.scoring import correct
from monet.eval.suites.questions.tasks import SOLVED, load_tasks
from tests.eval.suites.questions.samples import labelled_rows, mmlu_rows, other_rows, write_jsonl, write_mmlu

ARC = next(spec for benchmark in benchmarks() for spec in benchmark.tasks if spec.name == "arc_easy")
GRANDE = next(spec for benchmark in benchmarks() for spec in benchmark.tasks if spec.name == "winogrande")
LAMBADA = next(spec for benchmark in OTHERS for spec in benchmark.tasks if spec.name == "lambada_openai")
ANATOMY, VIROLOGY = (spec for spec in benchmarks()[0].tasks if spec.subject in ("anatomy", "virology"))


def test_the_table_of_categories():
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 57 and len(CATEGORIES) == 14
    counts = {name: sum(found == name for found in CATEGORY_OF.values()) for name in CATEGORIES}
    assert list(counts.values()) == [2, 3, 2, 4, 3, 1, 8, 4, 3, 5, 10, 6, 4, 2]
    # test questions of MMLU's subjects; the paper's "Other" has 2,343
    other = {"global_facts": 100, "high_school_geography": 198, "high_school_government_and_politics": 193,
             "human_sexuality": 131, "miscellaneous": 783, "professional_accounting": 282, "public_relations": 110,
             "security_studies": 245, "sociology": 201, "us_foreign_policy": 100}  # fmt: skip
    assert {subject for subject, category in CATEGORY_OF.items() if category == "other"} == other.keys()
    assert sum(other.values()) == 2343
    with pytest.raises(DataError, match="'high_school_latin' is not one of MMLU's 57 subjects"):
        category_of("high_school_latin")


def arc(root, **splits):
    for split, rows in splits.items():
        write_jsonl(root / "arc_easy" / f"{split}.jsonl", rows)
    return root


@pytest.mark.parametrize(
    ("splits", "asked", "examples"),
    [
        (["train", "validation", "test"], "test", "train"),
        (["validation", "test"], "test", "validation"),
        (["validation"], "validation", "validation"),
        (["test"], "test", "test"),
        (["train", "validation"], "validation", "train"),
    ],
)
def test_examples_never_hold_the_question(splits, asked, examples, tmp_path):
    arc(tmp_path, **{split: labelled_rows(split, 6) for split in splits})
    (task,), _ = load_tasks([ARC], 5, data=tmp_path)
    assert (task.split, task.examples_from) == (asked, examples)
    for question in task.questions:
        assert question.pairs[0][0].count(question.text) == 1
        assert question.pairs[0][0].count("Question:") == 6
    (plain,), _ = load_tasks([ARC], 0, data=tmp_path)
    assert (plain.split, plain.examples_from) == (asked, None)
    assert [q.text for q in plain.questions] == [q.text for q in task.questions]


def respelled(row):
    """The same question under another id, with different capitals and spaces, and its options in another order."""
    choices, order = row["choices"], [2, 0, 3, 1]
    text = [choices["text"][k].upper() + " " for k in order]
    answer = "ABCD"[order.index("ABCD".index(row["answerKey"]))]
    question = "  " + row["question"].title().replace(" ", "  ")
    return {"id": "twin", "question": question, "choices": {**choices, "text": text}, "answerKey": answer}


def test_a_question_solved_by_an_example_from_another_split_is_left_out(tmp_path):
    rows = labelled_rows("t", 4)
    like = {**labelled_rows("a", 1)[0], "question": rows[2]["question"]}  # the same question with other options
    arc(tmp_path, test=rows, train=[*labelled_rows("b", 4), respelled(rows[1]), like])
    (task,), _ = load_tasks([ARC], 6, data=tmp_path)
    assert all("twin" not in question.id for question in task.questions)
    assert [question.id for question in task.questions] == ["arc_easy/0", "arc_easy/2", "arc_easy/3"]
    assert (task.rows, task.skipped) == (4, {SOLVED: 1})
    with pytest.raises(
        DataError, match=r"1 with a question solved in its own prompt: the examples come from split 'train'"
    ):
        load_tasks([ARC], 6, data=tmp_path, faults="refuse")
    (plain,), _ = load_tasks([ARC], 0, data=tmp_path, faults="refuse")
    assert len(plain.questions) == 4


def test_a_question_whose_twin_is_among_the_examples_is_left_out(tmp_path):
    """With one split, the harness leaves out the row itself, but not its twin under a second id."""
    rows = labelled_rows("t", 5)
    arc(tmp_path, test=[*rows, respelled(rows[0])])
    (task,), _ = load_tasks([ARC], 5, data=tmp_path)
    assert [question.id for question in task.questions] == [f"arc_easy/{number}" for number in range(1, 5)]
    assert task.skipped == {SOLVED: 2}


DATA_SETS = {
    "mmlu_anatomy": ("question", mmlu_rows("anatomy", "test", 4)),
    "winogrande": ("sentence", other_rows("winogrande", 4)),
    "piqa": ("goal", other_rows("piqa", 4)),
    "sciq": ("question", other_rows("sciq", 4)),
    "social_iqa": ("context", other_rows("siqa", 4)),
    "openbookqa": ("question_stem", labelled_rows("o", 4, question="question_stem")),
    "hellaswag": ("ctx_a", other_rows("hellaswag", 4)),
    "commonsense_qa": ("question", labelled_rows("c", 4, options=5)),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_examples_are_compared_in_every_data_set(name, tmp_path):
    known = (*benchmarks(), *OTHERS)
    spec = next(spec for benchmark in known for spec in benchmark.tasks if spec.name == name)
    column, rows = DATA_SETS[name]
    twins = [
        {**rows[1], column: spelled(rows[1][column]), "id": number}
        for number, spelled in enumerate((str.upper, str.title))
    ]
    asked, examples = ("test", "dev") if name == "mmlu_anatomy" else ("validation", "train")
    write_jsonl(tmp_path / name / f"{asked}.jsonl", rows)
    write_jsonl(tmp_path / name / f"{examples}.jsonl", twins)
    (task,), _ = load_tasks([spec], 1, data=tmp_path)
    assert task.skipped == {SOLVED: 1} and [question.id[-1] for question in task.questions] == ["0", "2", "3"]


def test_the_harness_may_draw_one_example_more(tmp_path):
    """Without a test split, the harness draws one more row than it shows."""
    write_jsonl(tmp_path / "winogrande" / "validation.jsonl", other_rows("winogrande", 4))
    write_jsonl(tmp_path / "winogrande" / "train.jsonl", other_rows("winogrande", 1))
    with pytest.raises(DataError, match=r"'train' of winogrande: 1 of 1 rows can be asked, but 2 are needed"):
        load_tasks([GRANDE], 1, data=tmp_path)


def test_equal_content_whatever_the_spelling():
    assert content_of("What  IS\tx+1?", ["a", "B c"]) == content_of("what is x+1? ", ["b  c", "A"])
    assert content_of("what is x+1?", ["a", "b"]) != content_of("what is x-1?", ["a", "b"])
    assert content_of("ﬁnd it", ["1", "2"]) == content_of("find it", ["2", "1"])
    assert content_of("a", ["b", "b"]) != content_of("a", ["b"])


def broken_arc():
    rows = labelled_rows("a", 12)
    rows[1]["question"] = "  "
    rows[2]["choices"]["text"][1] = ""
    rows[3]["choices"]["text"][1] = None
    rows[4]["answerKey"] = "Z"
    rows[5]["id"] = rows[0]["id"]
    rows[6]["question"] = None
    rows[7]["choices"] = {"text": ["one"], "label": ["A"]}
    return rows


def test_faults_are_counted_or_refused(tmp_path):
    arc(tmp_path, test=broken_arc())
    (task,), _ = load_tasks([ARC], 0, data=tmp_path)
    assert task.skipped == {
        "an empty question": 2,
        "a missing option": 3,
        "no right answer": 1,
        "an id that occurred before": 1,
    }
    assert task.rows == 12
    assert [question.id for question in task.questions] == [f"arc_easy/{number}" for number in (0, 8, 9, 10, 11)]
    with pytest.raises(DataError, match=r"2 with an empty question \(first: row 1\).*--faults count"):
        load_tasks([ARC], 0, data=tmp_path, faults="refuse")


def test_broken_rows_are_no_examples_either(tmp_path):
    arc(tmp_path, train=broken_arc(), test=labelled_rows("t", 3))
    (task,), _ = load_tasks([ARC], 5, data=tmp_path)
    assert not task.skipped and all("one" not in question.pairs[0][0].split() for question in task.questions)
    with pytest.raises(DataError, match=r"'train'.*5 of 12 rows can be asked.*but 6 are needed"):
        load_tasks([ARC], 6, data=tmp_path)


def test_a_sentence_without_a_blank_asks_nothing(tmp_path):
    rows = other_rows("winogrande", 4)
    rows[2] = {**rows[2], "sentence": "no blank here"}
    write_jsonl(tmp_path / "winogrande" / "validation.jsonl", rows)
    (task,), _ = load_tasks([GRANDE], 0, data=tmp_path)
    assert task.skipped == {"an empty question": 1} and len(task.questions) == 3


def test_limit_takes_the_first_and_keeps_their_prompts(tmp_path):
    arc(tmp_path, train=labelled_rows("a", 9), test=labelled_rows("b", 9))
    (whole,), _ = load_tasks([ARC], 3, data=tmp_path)
    (some,), _ = load_tasks([ARC], 3, data=tmp_path, limit=4)
    assert some.questions == whole.questions[:4] and some.fingerprint != whole.fingerprint


@pytest.mark.parametrize("change", ["question", "option", "answer"])
def test_other_content_is_another_fingerprint(change, tmp_path):
    rows = labelled_rows("b", 3)
    arc(tmp_path / "a", test=rows)
    other = copy.deepcopy(rows)
    if change == "question":
        other[0]["question"] += "!"
    elif change == "option":
        other[0]["choices"]["text"][0] += "!"
    else:
        other[0]["answerKey"] = "A" if rows[0]["answerKey"] != "A" else "B"
    arc(tmp_path / "b", test=other)
    prints = {load_tasks([ARC], 0, data=tmp_path / name)[0][0].fingerprint for name in "ab"}
    assert len(prints) == 2


def test_missing_data_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no data for arc_easy below .*ai2_arc.*test\.jsonl"):
        load_tasks([ARC], 0, data=tmp_path)
    arc(tmp_path, train=labelled_rows("a", 3))
    with pytest.raises(DataError, match=r"no split test or validation to ask; its splits are \['train'\]"):
        load_tasks([ARC], 0, data=tmp_path)
    write_jsonl(tmp_path / "mmlu/anatomy/test.jsonl", mmlu_rows("anatomy", "test", 2))
    with pytest.raises(DataError, match="5-shot prompts of mmlu_anatomy take their examples from split 'dev'"):
        load_tasks([ANATOMY], 5, data=tmp_path)
    write_jsonl(tmp_path / "mmlu/anatomy/test.jsonl", [{"question": "a", "choices": list("abcd")}])
    with pytest.raises(DataError, match=r"no column 'answer'; its columns are \['question', 'choices'\]"):
        load_tasks([ANATOMY], 0, data=tmp_path)
    write_jsonl(tmp_path / "mmlu/anatomy/test.jsonl", [{"question": "", "choices": list("abcd"), "answer": 0}])
    with pytest.raises(DataError, match=r"not a single row can be asked: 1 rows of mmlu_anatomy.*an empty question"):
        load_tasks([ANATOMY], 0, data=tmp_path)
    write_jsonl(tmp_path / "mmlu/virology/test.jsonl", mmlu_rows("virology", "test", 2))
    (first, second), _ = load_tasks([ANATOMY, VIROLOGY], 0, data=tmp_path)
    assert (len(first.questions), first.skipped, len(second.questions)) == (0, {"an empty question": 1}, 2)


def test_subjects_without_data_are_counted_or_refused(tmp_path):
    write_mmlu(tmp_path, subjects=["anatomy", "virology"], questions=2)
    specs = [spec for spec in benchmarks()[0].tasks if spec.subject in ("anatomy", "virology", "astronomy")]
    # Subjects are together: a subject without rows has nothing to ask.
    with pytest.raises(DataError, match="mmlu_astronomy"):
        load_tasks(specs, 0, data=tmp_path, faults="refuse")
    tasks, missing = load_tasks(specs, 0, data=tmp_path)
    assert [task.spec.subject for task in tasks] == ["anatomy", "virology"] and missing == ["mmlu_astronomy"]


def test_without_a_folder_and_a_hub_the_remedy_is_told(monkeypatch, tmp_path):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"allenai/ai2_arc \(ARC-Easy\).*ConnectionError: offline.*--local_data"):
        load_tasks([ARC], 0)


def test_the_hubs_data_are_taken_without_a_folder(monkeypatch):
    import datasets

    asked = []

    def loaded(path, name):
        asked.append((path, name))
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(labelled_rows("h", 3))})

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    (task,), _ = load_tasks([ARC], 0)
    assert asked == [("allenai/ai2_arc", "ARC-Easy")]
    assert len(task.questions) == 3 and task.source == "allenai/ai2_arc"


@pytest.mark.parametrize(("shots", "limit"), [(-1, None), (0, 0)])
def test_numbers_out_of_range(shots, limit, data):
    with pytest.raises(ConfigError, match="at least"):
        load_tasks([ARC], shots, data=data, limit=limit)


def test_other_benchmarks_are_asked_only_if_they_are_named():
    named = benchmarks("cloze", ["SciQ", "ARC-Easy", "PIQA"])
    assert [[spec.name for spec in one.tasks] for one in named] == [["sciq"], ["arc_easy"], ["piqa"]]
    assert len(benchmarks()) == 8 and not {"SciQ", "ARC-Easy"} & {one.name for one in benchmarks()}


def test_the_last_word_of_a_passage_is_asked(tmp_path):
    rows = [{"text": "She gave the key to Ann"}, {"text": "word"}, {"text": "  "}]
    write_jsonl(tmp_path / "lambada" / "test.jsonl", rows)
    (task,), _ = load_tasks([LAMBADA], data=tmp_path)
    (question,) = task.questions
    assert question.pairs == (("She gave the key to", " Ann"),)
    assert (question.text, question.options, question.answer) == ("She gave the key to", ("Ann",), 0)
    assert task.skipped == {"an empty question": 2}


def test_a_single_option_is_right_if_greedy_decoding_gives_it(tmp_path):
    write_jsonl(tmp_path / "lambada" / "test.jsonl", [{"text": "a b"}, {"text": "c d"}, {"text": "e f"}])
    (task,), _ = load_tasks([LAMBADA], data=tmp_path)
    outcomes = [Outcome((-1.0,), greedy=True), Outcome((-0.5,), greedy=False), Outcome(None, reason="no")]
    assert correct(task.questions, outcomes, False).tolist()[:2] == [1.0, 0.0]
    assert log_probability(task.questions, outcomes).tolist()[:2] == [-1.0, -0.5]
    assert np.isnan(correct(task.questions, outcomes, False)[2])


def test_unknown_benchmarks_are_refused():
    with pytest.raises(ConfigError, match="no benchmark 'GLUE'; choose from MMLU, ARC"):
        benchmarks("cloze", ["GLUE"])
    with pytest.raises(ConfigError, match="each once"):
        benchmarks("cloze", ["ARC", "ARC"])
