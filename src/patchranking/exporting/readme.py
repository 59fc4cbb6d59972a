"""The README.md of an exported model: what it is, and a program that runs it without this package."""

from __future__ import annotations

from patchranking.exporting.folder import Exported
from patchranking.towers.preprocessing import Preprocessing

__all__ = ["readme"]

_PAGE = """# {model}, exported

{about}

Features of a picture, by {runtime}, numpy and Pillow alone:

```python
{program}
```

Run it in this folder: `python run.py picture.jpg`, with these lines in `run.py`.{more}
"""

_PROGRAM = """import json
import sys
import numpy as np
import {module}
from PIL import Image, ImageOps

how = json.load(open("{preprocessing}"))
height, width = how["size"]
picture = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
{resize}
levels = np.asarray(picture, np.float32) / 255
pixels = ((levels - np.float32(how["mean"])) / np.float32(how["std"])).transpose(2, 0, 1)[None]
{run}
print(features[0].tolist())"""

_SHORTEST = """short, shortest = how.get("short_side", height), min(picture.size)
picture = picture.resize([side * short // shortest for side in picture.size], Image.Resampling.{filter})
left, top = {whole}((picture.width - width) / 2), {whole}((picture.height - height) / 2)
picture = picture.crop((left, top, left + width, top + height))"""

_SQUASH = "picture = picture.resize((width, height), Image.Resampling.{filter})"

_RUN = {
    "onnx": 'features, *kept = onnxruntime.InferenceSession("{image}").run(None, {{"image": pixels}})',
    "openvino": 'model = openvino.compile_model("{image}", "CPU", {{"INFERENCE_PRECISION_HINT": "{hint}"}})\n'
    "features, *kept = model(pixels).values()",
    "torch": 'features, *kept = torch.export.load("{image}").module()(torch.from_numpy(pixels))',
}
_MODULES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
_RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}


def readme(about: Exported, preprocessing: Preprocessing, has_text: bool) -> str:
    """The page.

    Args:
        about: What config.json says.
        preprocessing: How pictures become pixels.
        has_text: Whether a text encoder stands beside the image encoder.
    """
    resize = _SQUASH if preprocessing.resize_mode == "squash" else _SHORTEST
    places = {"preprocessing": about.preprocessing, "module": _MODULES[about.backend]}
    places["resize"] = resize.format(
        filter=preprocessing.interpolation.upper(), whole="int" if preprocessing.floors else "round"
    )
    places["run"] = _RUN[about.backend].format(image=about.image, hint="bf16" if about.precision == "bf16" else "f32")
    if about.schedule is None:
        told = "The image encoder as it is."
    else:
        told = (
            f"The image encoder on the {about.keep:.0%} of the patches that matter, with {about.macs_share:.0%} of the "
            "multiply-accumulates; its second output is which these are."
        )
    more = ""
    if has_text:
        more += f"\n\n`{about.text}` turns ids of texts, int32 `(texts, {about.context_length})`, into unit features."
    if about.class_names:
        more += f"\n\n`{about.classes}` holds unit features of the classes that `config.json` names."
    program = _PROGRAM.format(**places)
    runtime = _RUNTIMES[about.backend]
    return _PAGE.format(model=about.model, about=told, runtime=runtime, program=program, more=more)
