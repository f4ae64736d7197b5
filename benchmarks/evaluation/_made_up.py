"""Made-up ground truth and predictions with the numbers and sizes of COCO's."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.structures import DatasetInfo, Predictions

HEIGHT, WIDTH = 480, 640
RESIZED = 800, 1067
CLASSES = 80
INFO = DatasetInfo("made up", tuple(range(1, CLASSES + 1)), tuple(f"class {i}" for i in range(CLASSES)))


def random_boxes(random: np.random.Generator, number: int, height: int = HEIGHT, width: int = WIDTH):
    """Draws boxes (x1, y1, x2, y2) of COCO's sizes: two fifths below 32 pixels of 640, a quarter above 96."""
    side = np.exp(random.normal(np.log(45), 1.0, number)) * width / 640
    ratio = np.exp(random.normal(0, 0.35, (number, 1)) * [-1, 1])
    sides = np.clip(side[:, None] * ratio, 4, [width, height])
    corner = random.uniform(0, [width, height] - sides)
    return np.float32(np.concatenate([corner, corner + sides], axis=1))


def random_masks(random: np.random.Generator, number: int, cells: int = 28):
    """Draws probabilities [number, cells, cells] of wobbly ellipses, which are sharp at their edges."""
    places = (np.arange(cells) + 0.5) / cells * 2 - 1
    x, y = np.meshgrid(places, places)
    angle, wave = np.arctan2(y, x), random.uniform(0, 0.25, (2, number, 1, 1))
    phase = random.uniform(0, 2 * np.pi, (2, number, 1, 1))
    radius = 0.8 + wave[0] * np.sin(2 * angle + phase[0]) + wave[1] * np.sin(5 * angle + phase[1])
    logits = 12 * (radius - np.hypot(x, y)) + random.normal(0, 0.3, (number, cells, cells))
    return np.float32(1 / (1 + np.exp(-logits)))


def ground_truth(images: int) -> dict[str, list[dict[str, Any]]]:
    """Makes a COCO data set with 7.3 objects an image on average, a hundredth of them crowds."""
    random, annotations = np.random.default_rng(0), []
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for image_id in range(1, images + 1):
        number = min(int(random.geometric(1 / 8.3)) - 1, 60)
        classes = random.zipf(1.6, 4) % CLASSES + 1  # an image has objects of a few classes
        for x1, y1, x2, y2 in random_boxes(random, number).tolist():
            radius = random.uniform(0.6, 1, len(angles))
            outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
            outline = np.array([x1 + x2, y1 + y2]) / 2 + outline * [(x2 - x1) / 2, (y2 - y1) / 2]
            (rle,) = coco_mask.frPyObjects([outline.ravel().tolist()], HEIGHT, WIDTH)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": int(random.choice(classes)),
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(coco_mask.area(rle)),
                "iscrowd": int(random.random() < 0.01),
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
            })  # fmt: skip
    return {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": id_, "name": f"class {id_ - 1}"} for id_ in range(1, CLASSES + 1)],
    }


def predictions(truth: dict[str, list[dict]], detections: int = 100) -> Iterator[tuple[int, Predictions]]:
    """Yields the predictions in each image: its objects, a tenth of them missed, and false alarms."""
    random = np.random.default_rng(1)
    bank = random_masks(random, 2000)
    objects: dict[int, list] = {image["id"]: [] for image in truth["images"]}
    for each in truth["annotations"]:
        x, y, width, height = each["bbox"]
        objects[each["image_id"]].append([x, y, x + width, y + height, each["category_id"] - 1])
    scale = np.float32([RESIZED[1] / WIDTH, RESIZED[0] / HEIGHT] * 2)
    for image_id, known in objects.items():
        rows = np.array(known).reshape(-1, 5)
        rows = rows[random.random(len(rows)) < 0.9]
        copies = np.repeat(rows, 3, axis=0)  # found, and twice more at lower scores and worse places
        spread = np.repeat([[0.04, 0.2, 0.4]], len(rows), axis=0).reshape(-1, 1)
        sides = np.tile(copies[:, 2:4] - copies[:, :2], 2)
        boxes = copies[:, :4] + random.normal(size=(len(copies), 4)) * sides * spread
        sure = random.beta(4, 2, len(copies)) * np.where(spread[:, 0] < 0.1, 1, 0.4)
        false = max(detections - len(copies), 0)
        boxes = np.concatenate([boxes, random_boxes(random, false)])[:detections]
        scores = np.concatenate([sure, random.beta(1, 8, false)])[:detections]
        likely = np.append(random.integers(0, CLASSES, 8), rows[:, 4])
        classes = np.concatenate([copies[:, 4], random.choice(likely, false)])[:detections]
        best = np.argsort(-scores)
        yield image_id, Predictions(
            boxes=np.clip(boxes, 0, [WIDTH, HEIGHT] * 2).astype(np.float32)[best] * scale,
            scores=scores.astype(np.float32)[best], classes=classes.astype(np.int32)[best],
            valid=np.ones(detections, bool), masks=bank[random.integers(0, len(bank), detections)],
        )  # fmt: skip
