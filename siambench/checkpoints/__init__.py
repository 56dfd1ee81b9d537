"""Weights in, whoever wrote them: any known checkpoint, state dict or hub name becomes a backbone.

``source.py`` is the way in. A file is read without running anything in it (``leaves.py``,
``pickles.py``, ``walk.py``, ``inert.py``), or fetched by name first (``hubs.py``, ``hugging_face.py``). Its ResNet is found by names and shapes (``recognise.py``, ``names.py``), chosen by the
table of layouts (``layouts.py``, ``pick.py``) and held against what a trained network looks like
(``sanity.py``). Every expected weight is found, or none is returned.
"""
