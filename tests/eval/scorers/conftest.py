"""Classifiers read the words of the toxicity suite's tests."""

from tests.eval.suites.toxicity.conftest import words_tokenizer as words_tokenizer
