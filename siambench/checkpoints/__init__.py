"""Weights in, whoever wrote them: any known checkpoint, state dict or hub name becomes a backbone.

``source.py`` is the way in. What is named is fetched (``hubs.py``, ``hugging_face.py``); a file is read
without running anything in it (``leaves.py``, ``pickles.py``, ``walk.py``, ``inert.py``). Its ResNets are
found by names and shapes (``recognise.py``, ``names.py``), the one that is meant is chosen by the table
of layouts (``layouts.py``, ``pick.py``) and held against what a trained network looks like
(``sanity.py``); a module in memory is run as well (``same.py``). Every expected weight is found, or none is returned.
"""
