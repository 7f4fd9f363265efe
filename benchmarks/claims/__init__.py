"""The paper's three claims, measured on pictures small enough for a laptop: `python -m benchmarks.claims --help`.

1. Trained on pictures of one object, MaskCo is about as good as MoCo v2.
2. Trained on scenes of several objects, it is better.
3. Without its mask prediction head, it is worse.

pictures.py makes the sets, encoder.py the network, settings.py says how each method is trained and how that was chosen,
run.py trains and scores one of them, study.py all; table.py and figure.py show them.
"""
