from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchranking import Encoder, ExportSettings, UserError, export
from patchranking.data import load_data
from patchranking.exporting import backends, quality
from patchranking.exporting.quality import Quality, pictured, processor
from patchranking.exporting.quantise import quantised

PICTURES = 24


@pytest.fixture(scope="module")
def data():
    return load_data("demo:val", 2 * PICTURES)


@pytest.mark.parametrize(
    ("format", "precision"), [("torch", "bf16"), ("openvino", "bf16"), ("openvino", "int8"), ("onnx", "int8")]
)
def test_lower_precision_is_near_to_float32_and_measured_on_images(images, data, pruner, tmp_path, format, precision):
    if precision == "bf16" and format == "openvino" and "avx512_bf16" not in processor()["instructions"]:
        pytest.skip("this processor has no bfloat16")
    settings = ExportSettings(format, precision, calibration=PICTURES)
    about = export(images, tmp_path / "out", pruner, settings, data)
    _, held = pictured(images, data, PICTURES, 0)
    with torch.inference_mode(), pruner.attached(images.model):
        expected = images.model.encode_image(torch.from_numpy(held))
    found = torch.from_numpy(Encoder.from_pretrained(tmp_path / "out").run(held)[0])
    cosines = F.cosine_similarity(found, expected)
    assert about.precision == precision
    assert about.check["images"] == PICTURES
    assert about.check["feature_cosine"] == pytest.approx(cosines.mean().item(), abs=1e-3)
    assert 0.99 < cosines.mean() < 1 - 1e-7
    assert about.processor == processor()


def test_predictors_and_then_layers_stay_in_float_until_the_cosine_is_high_enough(images, data, monkeypatch):
    import nncf

    tried = []

    def quantize(model, calibration, ignored_scope, **settings):
        tried.append((model, ignored_scope.names))
        return len(tried)

    monkeypatch.setattr(nncf, "quantize", quantize)
    monkeypatch.setattr(nncf, "quantize_with_accuracy_control", lambda *given, **settings: (given, settings))
    pixels, _ = pictured(images, data, PICTURES, 0)
    reference = F.normalize(torch.randn(PICTURES, 24), dim=-1)

    def int8(good=None):
        """What int8 makes of a model, where only one attempt has the features of float32."""
        tried.clear()
        near = iter([reference[:16], reference[16:]])
        return quantised(
            "model",
            lambda one: lambda batch: [next(near).numpy() if one == good else np.ones((len(batch), 24))],
            "image",
            pixels,
            reference,
            ["scores"],
        )

    assert int8(good=1) == 1
    assert int8(good=2) == 2
    assert tried == [("model", []), ("model", ["scores"])]
    (model, calibration, validation, measured), settings = int8()
    assert model == "model"
    assert settings["ignored_scope"].names == ["scores"]
    assert [set(one) for one in calibration.get_data([0, 1])] == [{"image"}, {"image"}]
    mean, cosines = measured("compiled", validation.get_data([3, 5]))
    expected = F.cosine_similarity(torch.ones(1, 24), reference[[3, 5]])
    assert cosines == pytest.approx(expected.tolist(), abs=1e-6)
    assert mean == pytest.approx(expected.mean().item(), abs=1e-6)
    assert settings["max_drop"] == pytest.approx(0.009)


def test_what_is_too_far_is_refused_with_the_figures(images, data, pruner, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "LEAST_OVERLAP", 1.01)
    settings = ExportSettings("torch", "bf16", calibration=PICTURES)
    with pytest.raises(UserError, match=r"not written in bf16: on 24 images .* cosine of (0\.99|1\.00).*--force"):
        export(images, tmp_path / "out", pruner, settings, data)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"cosine of 0\.9800"):
        Quality(0.98, 1.0, 30).check("int8")


def test_quality_is_of_features_and_of_who_stays_a_neighbour():
    reference = F.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert quality.quality(reference, reference) == Quality(pytest.approx(1.0), 1.0, 12)
    turned = quality.quality(reference.roll(1, 0), reference)
    assert turned.feature_cosine == pytest.approx((reference.roll(1, 0) * reference).sum(1).mean().item())
    assert turned.index_overlap_at_10 < 1


def test_pictures_to_calibrate_on_are_not_those_to_measure_on(images, data):
    calibration, held = pictured(images, data, 20, 1)
    assert calibration.shape == held.shape == (20, 3, 32, 32)
    assert not (calibration[:, None] == held[None]).all((2, 3, 4)).any()
    with pytest.raises(UserError, match="at least 40 are needed"):
        pictured(images, load_data("demo:val", 30), 128, 0)


def test_the_processor_is_told_by_its_instructions(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert processor(tmp_path / "cpuinfo") == {"name": "Some CPU", "instructions": ["avx2", "avx512_vnni"]}
    assert processor(tmp_path / "nowhere")["instructions"] == []


def test_bad_input(images, pruner, data, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="give some with --images"):
        export(images, tmp_path / "out", pruner, ExportSettings("onnx", "int8"))
    with pytest.raises(UserError, match="not run in bf16 on CPUs: give --format openvino or torch"):
        ExportSettings("onnx", "bf16")
    with pytest.raises(UserError, match="not run in int8 on CPUs: give --format onnx or openvino"):
        ExportSettings("torch", "int8")
    with pytest.raises(UserError, match="'calibration'"):
        ExportSettings(calibration=0)

    class Core:
        def get_property(self, *_):
            return ["FP32", "INT8"]

    openvino = type("openvino", (), {"Core": Core})
    monkeypatch.setattr(backends, "import_extra", lambda *_: openvino)
    with pytest.raises(UserError, match="no instructions for bfloat16"):
        export(images, tmp_path / "out", pruner, ExportSettings("openvino", "bf16"), data)
    assert list(tmp_path.iterdir()) == []
