"""Weights in, whoever wrote them: any known checkpoint, state dict or hub name becomes a backbone.

``source.py`` is the way in. A file is read without running anything in it (``leaves.py``,
``pickles.py``), its ResNet is found by names and shapes (``recognise.py``, ``names.py``), told apart by
the table of layouts (``layouts.py``) and held against what a trained network looks like
(``sanity.py``). Every expected weight is found, or none is returned.
"""
