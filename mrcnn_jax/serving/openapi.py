"""Description of the HTTP interface (OpenAPI 3.1)."""

from typing import Any

from mrcnn_jax import __version__
from mrcnn_jax.serving.uploads import Limits

_NUMBERS, _SENTENCE = {"type": "array", "items": {"type": "number"}}, {"$ref": "#/components/schemas/Error"}
_RUN_LENGTH_CODE = {
    "type": "object", "required": ["size", "counts"],
    "description": "Mask as COCO's compressed run-length code, which pycocotools.mask.decode reads.",
    "properties": {
        "size": {"type": "array", "items": {"type": "integer"}, "description": "Height and width."},
        "counts": {"type": "string"},
    },
}  # fmt: skip
_SCHEMAS = {
    "Error": {
        "type": "object", "required": ["error"],
        "properties": {"error": {"type": "string", "description": "A sentence."}},
    },
    "Image": {
        "type": "object", "required": ["id", "file_name", "height", "width"],
        "description": "The image, upright as its EXIF orientation says.",
        "properties": {
            "id": {"type": "integer"}, "file_name": {"type": "string"}, "height": {"type": "integer"},
            "width": {"type": "integer"},
        },
    },
    "Category": {
        "type": "object", "required": ["id", "name"],
        "properties": {
            "id": {"type": "integer"}, "name": {"type": "string"},
            "keypoints": {"type": "array", "items": {"type": "string"}},
            "skeleton": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}},
                         "description": "Pairs of keypoints to join, counted from 1."},
        },
    },
    "Annotation": {
        "type": "object", "required": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "score"],
        "properties": {
            "id": {"type": "integer"}, "image_id": {"type": "integer"}, "category_id": {"type": "integer"},
            "bbox": _NUMBERS | {"description": "x, y, width and height in pixels of the image."},
            "area": {"type": "number", "description": "Pixels of the mask, or of the box without masks."},
            "iscrowd": {"const": 0},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "segmentation": _RUN_LENGTH_CODE,
            "keypoints": _NUMBERS | {"description": "x, y and visibility (0 or 2) of each."},
            "keypoint_scores": _NUMBERS, "num_keypoints": {"type": "integer"},
        },
    },
    "Prediction": {
        "type": "object", "required": ["images", "annotations", "categories"],
        "description": "A data set in COCO's format of this one image, best objects first.",
        "properties": {
            name: {"type": "array", "items": {"$ref": f"#/components/schemas/{kind}"}}
            for name, kind in (("images", "Image"), ("annotations", "Annotation"), ("categories", "Category"))
        },
    },
}  # fmt: skip


def openapi(limits: Limits, score_threshold: float) -> dict[str, Any]:
    """Returns the description of an interface with given limits and default minimum score."""
    refusals = {
        "400": "The upload was broken off.",
        "408": f"The upload took more than {limits.seconds:g} seconds.",
        "413": f"More than {limits.megabytes:g} MB, or more than {limits.megapixels:g} million pixels.",
        "415": "No image, or another Content-Type.",
        "422": "The image is damaged, the form is, or the parameter is no number from 0 to 1.",
        "500": "The image could not be computed.",
        "503": f"More than {limits.requests} requests at once; Retry-After says when to try again.",
    }
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["image"], "properties": {"image": binary}}
    predict = {
        "summary": "Detect objects in an image", "operationId": "predict",
        "parameters": [{
            "name": "score_threshold", "in": "query", "description": "Minimum score of the objects.",
            "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": score_threshold},
        }],
        "requestBody": {
            "required": True,
            "description": "An image as file of a form, or as it is: JPEG, PNG, WebP, TIFF, BMP, GIF, ...",
            "content": {
                "multipart/form-data": {"schema": form},
                "image/*": {"schema": binary}, "application/octet-stream": {"schema": binary},
            },
        },
        "responses": {"200": _json("The objects.", {"$ref": "#/components/schemas/Prediction"})}
        | {status: _json(text, _SENTENCE) for status, text in refusals.items()},
    }  # fmt: skip
    anything = {"type": "object"}
    paths = {
        "/predict": {"post": predict},
        "/health": {"get": {
            "summary": "Tell whether images are computed, and how many requests there are",
            "responses": {"200": _json("They are.", anything), "503": _json("They are not.", anything)},
        }},
        "/model": {"get": {
            "summary": "Name and categories of the detector, default minimum score, limits",
            "responses": {"200": _json("The detector.", anything)},
        }},
    }  # fmt: skip
    info = {"title": "mrcnn_jax", "version": __version__, "license": {"name": "Apache-2.0"}}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": _SCHEMAS}}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
