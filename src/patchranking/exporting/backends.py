"""What writes a traced module to a file and runs it again: PyTorch, ONNX Runtime, OpenVINO."""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from patchranking.errors import UserError
from patchranking.exporting.layers import layers_in_onnx, layers_in_openvino
from patchranking.exporting.modules import ImageSide, Side, traced
from patchranking.exporting.quantise import Run, import_nncf, quantised, unit_features
from patchranking.exporting.settings import BackendName, PrecisionName
from patchranking.extras import import_extra

__all__ = ["BACKENDS", "Backend", "Lowering", "Run"]


@dataclass(frozen=True)
class Lowering:
    """How the image encoder's file becomes one of lower precision.

    Attributes:
        precision: bf16 or int8.
        side: Makes what is in the file, with weights of another floating type.
        calibration: Pixels that int8 takes its ranges from, ``(images, 3, height, width)``.
        widest: Channels of the widest predictor, 0 without any.
    """

    precision: PrecisionName
    side: Callable[[torch.dtype], Side]
    calibration: np.ndarray
    widest: int


class Backend(ABC):
    """A kind of file.

    Attributes:
        suffix: Of the file that is opened; others may stand beside it.
    """

    suffix: str

    @abstractmethod
    def check(self, precision: PrecisionName) -> None:
        """Raises UserError where what it needs is not installed, or this processor cannot run it."""

    @abstractmethod
    def write(self, program: ExportedProgram, names: Sequence[str], path: Path) -> None:
        """Writes a traced module.

        Args:
            program: What was traced.
            names: Of its input and its outputs.
            path: The file.
        """

    @abstractmethod
    def lower(self, path: Path, how: Lowering) -> None:
        """Makes a file that was written in float32 one of lower precision.

        Args:
            path: The file.
            how: To what, and by what.
        """

    @abstractmethod
    def load(self, path: Path, precision: PrecisionName = "fp32") -> Run:
        """What runs a file.

        Raises:
            UserError: If this processor cannot.
        """


class Onnx(Backend):
    """ONNX by the exporter of PyTorch 2, run by ONNX Runtime; weights of more than 2 GB are in a file beside it.

    Args:
        side_file: Whether weights are in a file beside it whatever their size.
    """

    suffix = ".onnx"

    def __init__(self, side_file: bool = False) -> None:
        self.side_file = side_file

    def check(self, precision: PrecisionName) -> None:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            import_extra(module, f"ONNX needs {module}", "onnx")
        if precision == "int8":
            import_nncf()

    def write(self, program: ExportedProgram, names: Sequence[str], path: Path) -> None:
        outputs = list(names[1 : 1 + len(program.graph_signature.user_outputs)])
        with _quiet(), sdpa_kernel(SDPBackend.MATH):  # fused kernels lay their output out in other ways
            found = torch.onnx.export(
                program,
                input_names=[names[0]],
                output_names=outputs,
                dynamo=True,
                verbose=False,
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            )
        assert found is not None
        found.save(path, external_data=self.side_file or None)

    def lower(self, path: Path, how: Lowering) -> None:
        onnx, outside = import_extra("onnx", "ONNX needs onnx", "onnx"), f"{path.name}.data"
        reference = unit_features(self.load(path), how.calibration)

        def run_of(model: Any) -> Run:
            return self._run_of(model.SerializeToString())

        whole = onnx.load(path)
        layers = layers_in_onnx(whole, how.widest)
        model = quantised(whole, run_of, ImageSide.names[0], how.calibration, reference, layers)
        large = path.with_name(outside).exists()
        path.with_name(outside).unlink(missing_ok=True)
        onnx.save(model, path, save_as_external_data=large, location=outside)

    def load(self, path: Path, precision: PrecisionName = "fp32") -> Run:
        return self._run_of(path)

    def _run_of(self, model: Path | bytes) -> Run:
        runtime = import_extra("onnxruntime", "This model needs onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the exporter says of steps that go well."""
    known = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(known)


def _stable_sort(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """``torch.sort(stable=True)`` in ONNX, whose ``TopK`` puts the lower index first among equals."""
    ops: Any = import_extra("onnxscript", "ONNX needs onnxscript", "onnx").opset18
    length = ops.Gather(ops.Shape(self), [dim])
    return ops.TopK(self, length, axis=dim, largest=int(descending), sorted=1)


class OpenVino(Backend):
    """OpenVINO's own files, made from ONNX; weights stand beside the graph."""

    suffix = ".xml"

    def check(self, precision: PrecisionName) -> None:
        import_extra("openvino", "OpenVINO needs openvino", "openvino")
        for module in ("onnx", "onnxscript"):
            import_extra(module, f"OpenVINO is written by way of {module}", "onnx")
        if precision == "int8":
            import_nncf()
        self._core(precision)

    def write(self, program: ExportedProgram, names: Sequence[str], path: Path) -> None:
        with TemporaryDirectory(dir=path.parent) as folder:
            between = Path(folder) / "model.onnx"
            Onnx().write(program, names, between)
            self.convert(between, path)

    def convert(self, model: Path, path: Path) -> None:
        """Writes what is in an ONNX file."""
        openvino = import_extra("openvino", "OpenVINO needs openvino", "openvino")
        openvino.save_model(openvino.convert_model(model), path, compress_to_fp16=False)

    def lower(self, path: Path, how: Lowering) -> None:
        if how.precision == "int8":
            openvino = import_extra("openvino", "OpenVINO needs openvino", "openvino")
            reference = unit_features(self.load(path), how.calibration)
            core = self._core(how.precision)
            whole = core.read_model(path)

            def run_of(model: Any) -> Run:
                return self._run_of(core, model, "f32")

            layers = layers_in_openvino(whole, how.widest)
            model = quantised(whole, run_of, ImageSide.names[0], how.calibration, reference, layers)
            openvino.save_model(model, path.with_name("lower.xml"), compress_to_fp16=False)
            for suffix in (".bin", ".xml"):
                path.with_name(f"lower{suffix}").replace(path.with_suffix(suffix))

    def load(self, path: Path, precision: PrecisionName = "fp32") -> Run:
        core = self._core(precision)
        hint = "bf16" if precision != "fp32" and _runs_bf16(core) else "f32"  # of int8, what stays in floating point
        return self._run_of(core, path, hint)

    def _run_of(self, core: Any, model: Any, precision: str) -> Run:
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(model, "CPU", hints)
        return lambda batch: [np.array(output) for output in compiled(batch).values()]

    def _core(self, precision: PrecisionName) -> Any:
        core = import_extra("openvino", "This model needs openvino", "openvino").Core()
        if precision == "bf16" and not _runs_bf16(core):
            raise UserError("This processor has no instructions for bfloat16: export in fp32 or int8.")
        return core


def _runs_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Torch(Backend):
    """The archive of ``torch.export``, which PyTorch alone runs; none of it is pickled."""

    suffix = ".pt2"

    def check(self, precision: PrecisionName) -> None:
        """Nothing is missing."""

    def write(self, program: ExportedProgram, names: Sequence[str], path: Path) -> None:
        program.example_inputs = None
        torch.export.save(program, path)

    def lower(self, path: Path, how: Lowering) -> None:
        lowered = how.side(torch.bfloat16)
        self.write(traced(lowered, torch.from_numpy(how.calibration[:2])), lowered.names, path)

    def load(self, path: Path, precision: PrecisionName = "fp32") -> Run:
        _check_not_pickled(path)
        module = torch.export.load(path).module()

        @torch.inference_mode()
        def run(batch: np.ndarray) -> list[np.ndarray]:
            return [output.numpy() for output in module(torch.from_numpy(batch))]

        return run


def _check_not_pickled(path: Path) -> None:
    """Raises UserError where an archive holds what PyTorch would unpickle, which may run any code."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name) if name.endswith("_config.json") else b"{}"
            payloads = json.loads(content).get("config", {}).values()
            samples = "sample_inputs" in name and archive.getinfo(name).file_size > 0
            if samples or any(payload.get("use_pickle") for payload in payloads):
                raise UserError(f"'{path}' holds pickled objects, which may run any code: export the model again.")


BACKENDS: dict[BackendName, Backend] = {"onnx": Onnx(), "openvino": OpenVino(), "torch": Torch()}
"""Name, as in ``--format``, -> what writes and runs it."""
