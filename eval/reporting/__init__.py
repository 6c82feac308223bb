"""Renderers of `monet.eval.core.document.Report`, one module per form; they do not depend on any suite."""
