"""What is a frozen or fine-tuned encoder good for? `maskco eval knn|linear|regions|detection`, in Python:

    from maskco.evaluate.options import Regions
    from maskco.evaluate.run import evaluate

    rows = evaluate(Regions(("RUN", "timm:resnet50", "moco_v2.pth.tar"), data="COCO"))

encoders.py opens runs, timm's models and other projects' files alike; datasets.py labelled sets; features.py pools;
knn.py and linear.py read out; detection.py fine-tunes a detector; results.py keeps and prints the rows.
"""
