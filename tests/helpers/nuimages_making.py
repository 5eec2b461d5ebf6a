"""A small nuImages v1.0 folder: all ten tables after the published schema, and the images that they name."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from for_model.data.nuimages import PROMPT_NAMES

WIDTH, HEIGHT = 160, 90  # 1600 x 900 as published
SURFACES = ("flat.driveable_surface", "vehicle.ego")
TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "log", "object_ann", "sample", "sample_data", "sensor",
    "surface_ann",
)  # fmt: skip

# What is in each image of a split, by nuImages's own names; an object named twice is there twice.
Contents = list[list[str]]


def token(*parts: object) -> str:
    """A record's token: 32 hexadecimal digits, as published."""
    return hashlib.md5(repr(parts).encode(), usedforsecurity=False).hexdigest()


def write_nuimages(root: Path, **splits: Contents) -> Path:
    """Write splits (train=..., val=..., mini=...) of a nuImages folder to `root`; returns it.

    Every image has a camera and a lidar key frame and one earlier camera frame, as published; only the camera's key
    frame is drawn, a rectangle for each object, and annotated.
    """
    (root / "samples" / "CAM_FRONT").mkdir(parents=True, exist_ok=True)
    for split, contents in splits.items():
        folder = root / f"v1.0-{split}"
        folder.mkdir()
        for name, records in _tables(root, split, contents).items():
            (folder / f"{name}.json").write_text(json.dumps(records))
    return root


def change(root: Path, split: str, table: str, row: int, **values: Any) -> None:
    """Change values of one record."""
    path = root / f"v1.0-{split}" / f"{table}.json"
    records = json.loads(path.read_text())
    records[row].update(values)
    path.write_text(json.dumps(records))


def key_frame(split: str, image: int) -> str:
    """The id of a split's image, by its number."""
    return token(split, "camera", image)


def _tables(root: Path, split: str, contents: Contents) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for name in (*PROMPT_NAMES, *SURFACES):
        tables["category"].append({"token": token("category", name), "name": name, "description": name})
    tables["attribute"].append({"token": token("attribute"), "name": "vehicle.moving", "description": "It moves."})
    for channel, modality in (("CAM_FRONT", "camera"), ("LIDAR_TOP", "lidar")):
        tables["sensor"].append({"token": token(channel), "channel": channel, "modality": modality})
        tables["calibrated_sensor"].append(
            {"token": token("calibrated", channel), "sensor_token": token(channel), "translation": [1.7, 0.0, 1.5],
             "rotation": [1.0, 0.0, 0.0, 0.0], "camera_intrinsic": np.eye(3).tolist() if modality == "camera" else [],
             "camera_distortion": [0.0] * 5}
        )  # fmt: skip
    tables["log"].append(
        {"token": token("log"), "logfile": "n003-drive", "vehicle": "n003", "date_captured": "2018-01-02",
         "location": "singapore-onenorth"}
    )  # fmt: skip
    for number, names in enumerate(contents):
        _add_sample(tables, split, number)
        _add_objects(tables, root, split, number, names)
    return tables


def _add_sample(tables: dict[str, list[dict[str, Any]]], split: str, number: int) -> None:
    sample, time = token(split, "sample", number), 1_514_952_221_190_440 + number
    tables["sample"].append(
        {"token": sample, "timestamp": time, "log_token": token("log"), "key_camera_token": key_frame(split, number),
         "key_lidar_token": token(split, "lidar", number)}
    )  # fmt: skip
    tables["ego_pose"].append(
        {"token": token(split, "pose", number), "translation": [0.0] * 3, "rotation": [1.0, 0.0, 0.0, 0.0],
         "timestamp": time, "rotation_rate": [0.0] * 3, "acceleration": [0.0, 0.0, 9.8], "speed": 3.0}
    )  # fmt: skip
    for kind, channel, folder in (
        ("sweep", "CAM_FRONT", "sweeps"),
        ("camera", "CAM_FRONT", "samples"),
        ("lidar", "LIDAR_TOP", "samples"),
    ):
        suffix = "pcd.bin" if kind == "lidar" else "jpg"
        tables["sample_data"].append(
            {"token": token(split, kind, number), "sample_token": sample, "fileformat": suffix.split(".")[0],
             "ego_pose_token": token(split, "pose", number), "calibrated_sensor_token": token("calibrated", channel),
             "filename": f"{folder}/{channel}/n003-{split}__{channel}__{time - (kind == 'sweep')}.{suffix}",
             "width": WIDTH, "height": HEIGHT, "timestamp": time, "is_key_frame": kind != "sweep", "next": "",
             "prev": ""}
        )  # fmt: skip


def _add_objects(
    tables: dict[str, list[dict[str, Any]]], root: Path, split: str, number: int, names: list[str]
) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), (90, 100, 120))
    for place, name in enumerate(names):
        box = (place * 30, 20, place * 30 + 25, 60)
        colour = tuple(token("category", name).encode()[:3])
        ImageDraw.Draw(image).rectangle(box, fill=colour)
        tables["object_ann"].append(
            {"token": token(split, "object", number, place), "sample_data_token": key_frame(split, number),
             "category_token": token("category", name), "attribute_tokens": [token("attribute")], "bbox": list(box),
             "mask": _mask(box)}
        )  # fmt: skip
    tables["surface_ann"].append(
        {"token": token(split, "surface", number), "sample_data_token": key_frame(split, number),
         "category_token": token("category", SURFACES[0]), "mask": _mask((0, 70, WIDTH - 1, HEIGHT - 1))}
    )  # fmt: skip
    record = next(row for row in tables["sample_data"] if row["token"] == key_frame(split, number))
    image.save(root / record["filename"], quality=90)


def _mask(box: tuple[int, int, int, int]) -> dict[str, Any]:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[box[1] : box[3] + 1, box[0] : box[2] + 1] = 1
    rle = coco_mask.encode(pixels)
    return {"size": list(rle["size"]), "counts": base64.b64encode(rle["counts"]).decode()}
