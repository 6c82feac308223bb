"""Renderers of `monet.eval.core.document.Report`, one module a form; none knows any suite."""
