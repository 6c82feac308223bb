"""Routing statistics: which sums are collected over labelled or scored text, and how they are added up."""
