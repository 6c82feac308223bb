"""Renderers of `monet.eval.document.Report`, one module a form; none knows any suite."""
