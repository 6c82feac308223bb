"""Routing statistics: what is added up over labelled or scored text, and how it is added up."""
