"""Evaluates frozen or fine-tuned encoders, as `maskco eval knn|linear|regions|detection` does. In Python:

    from maskco.evaluate.options import Regions
    from maskco.evaluate.run import evaluate

    rows = evaluate(Regions(encoders=("RUN", "timm:resnet50", "moco_v2.pth.tar"), data="COCO"))

| file | |
|---|---|
| encoders.py | opens runs, timm's models and other projects' files alike |
| datasets.py | opens labelled sets |
| features.py | pools features |
| knn.py, linear.py | classify them |
| detection.py | fine-tunes a detector |
| results.py | keeps and prints the rows |
"""
