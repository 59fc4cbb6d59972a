from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchranking import Encoder, ExportSettings, UserError, export
from patchranking.data import load_data
from patchranking.exporting import backends, quality
from patchranking.exporting.layers import Layers
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


KINDS = [["query 0", "query 1"], ["hidden 0", "hidden 1"], ["pixels"]]


@pytest.fixture
def int8(images, data, monkeypatch):
    """Quantises "model", of which an attempt's cosine is what is given; tells the attempts and which was taken."""
    import nncf

    tried = []

    def quantize(model, calibration, ignored_scope, advanced_parameters, **settings):
        assert model == "model"
        assert [set(one) for one in calibration.get_data([0, 1])] == [{"image"}, {"image"}]
        tried.append((advanced_parameters is None, ignored_scope.names))
        return tried[-1]

    monkeypatch.setattr(nncf, "quantize", quantize)
    pixels, _ = pictured(images, data, PICTURES, 0)

    def run(cosine_of):
        tried.clear()

        def run_of(attempt):
            cosine = cosine_of(*attempt)
            return lambda batch: [np.tile(np.float32([cosine, (1 - cosine**2) ** 0.5]), (len(batch), 1))]

        reference = torch.tensor([[1.0, 0.0]]).expand(PICTURES, 2)
        return quantised("model", run_of, "image", pixels, reference, Layers(["scores"], KINDS)), list(tried)

    return run


def test_int8_throughout_is_taken_where_it_is_near_enough(int8):
    assert int8(lambda smooth, kept: 0.9911) == ((True, []), [(True, [])])
    assert int8(lambda smooth, kept: 0.95 if smooth else 0.992) == ((False, []), [(True, []), (False, [])])


@pytest.mark.parametrize("smooth", [True, False])
def test_predictors_stay_in_float_first_by_the_better_way_to_treat_outliers(int8, smooth):
    taken, tried = int8(lambda own, kept: 0.992 if kept else 0.96 if own == smooth else 0.95)
    assert taken == (smooth, ["scores"])
    assert tried == [(True, []), (False, []), (smooth, ["scores"])]


def test_then_kinds_of_layers_do_always_the_one_that_brings_most(int8):
    gains = {"scores": 0.01, "query 0": 0.005, "hidden 0": 0.015, "pixels": 0.001}
    taken, tried = int8(lambda smooth, kept: 0.962 + sum(gains.get(name, 0) for name in kept))
    assert taken == (False, ["scores", *KINDS[1], *KINDS[0]])
    assert tried[3:] == [
        (False, kept)
        for kept in (
            ["scores", *KINDS[0]],
            ["scores", *KINDS[1]],
            ["scores", *KINDS[2]],
            ["scores", *KINDS[1], *KINDS[0]],
            ["scores", *KINDS[1], *KINDS[2]],
        )
    ]


def test_the_nearest_is_taken_where_none_is_near_enough(int8):
    taken, tried = int8(lambda smooth, kept: 0.9 + 0.01 * (kept == ["scores", "pixels"]))
    assert taken == (False, ["scores", "pixels"])
    assert len(tried) == 3 + 3 + 2  # a second kind brought nothing


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
