"""Random annotations and detections, and what pycocotools 2.0.11 says of them: python make_coco.py > coco.json"""

import contextlib
import io
import json
import random

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def scene(seed):
    r = random.Random(seed)
    images = [{"id": i} for i in r.sample(range(50), r.randint(1, 4))]
    categories = [{"id": c} for c in r.sample(range(1, 20), r.randint(1, 3))]
    annotations, detections = [], []

    def number(low, high):
        return round(r.uniform(low, high), r.choice([0, 2]))

    def found(image, category, box):
        score = round(r.random(), r.choice([1, 3]))
        detections.append({"image_id": image, "category_id": category, "bbox": box, "score": score})

    for image in images:
        for _ in range(r.randint(0, 5)):
            box = [number(0, 100), number(0, 100), number(3, 150), number(3, 150)]
            category = r.choice(categories)["id"]
            area = round(box[2] * box[3] * r.choice([1, 0.6]), 2)
            crowd = int(r.random() < 0.2)
            about = {"image_id": image["id"], "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
            annotations.append({"id": len(annotations) + 1, **about})
            for _ in range(r.randint(0, 3)):
                found(image["id"], category, [round(side + r.choice([0, 2, 5]) * r.random(), 2) for side in box])
        for _ in range(105 if seed == 0 else 1):
            box = [number(0, 100), number(0, 100), number(3, 100), number(3, 100)]
            found(image["id"], r.choice(categories)["id"], box)
    return {"images": images, "categories": categories, "annotations": annotations}, detections


def evaluated(truth, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {**json.loads(json.dumps(truth)), "info": {}}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(detections))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., -1]
    return {
        "truth": truth,
        "detections": detections,
        "stats": evaluation.stats.tolist(),
        # Sums over the recalls, to keep the file small: threshold, category, area.
        "precision": precision.sum(1).ravel().tolist(),
        "recall": evaluation.eval["recall"].ravel().tolist(),
    }


print(json.dumps([evaluated(*scene(seed)) for seed in range(8)]))
