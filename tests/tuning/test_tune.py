from __future__ import annotations

import json
import math
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from patchranking import Pruner, load_data, load_model
from patchranking.checkpoint import notes
from patchranking.data import of_classes
from patchranking.errors import UserError
from patchranking.prompts.insert import prompted_features
from patchranking.pruning.schedule import Schedule
from patchranking.towers.zero_shot import class_features
from patchranking.tuning.checkpoint import Checkpoint
from patchranking.tuning.few_shot import few_shots, hold_out, passes
from patchranking.tuning.tune import TuneSettings, tune
from patchranking.tuning.views import Views

QUICK = TuneSettings(shots=2, epochs=2, num_tokens=2, batch_size=8)


@pytest.fixture(scope="module")
def model():
    return load_model("demo")


@pytest.fixture(scope="module")
def data():
    """Some scenes of five classes."""
    scenes = load_data("demo:train", 400)
    for _ in range(4):
        scenes = of_classes(scenes, "base")
    return scenes


@pytest.fixture
def pruner(model):
    torch.manual_seed(0)
    return Pruner.unfitted(model.tower, "demo", Schedule({3: 0.5}))


def tokens_of(pruner):
    return {name: value.clone() for name, value in pruner.prompts.state_dict().items()}


@pytest.fixture
def noise(noise_folder):
    """Eight pictures of noise of each of two classes."""
    return load_data(str(noise_folder("noise", ("cat", "dog"), 8)))


@pytest.fixture
def captioned(noise):
    """The same pictures with a caption each, and without classes."""
    noise.labels, noise.class_names = None, []
    noise.captions = [[f"a picture of {word}"] for word in "abcdefghijklmnop"]
    return noise


def tiny_pruner(tiny):
    """Prunes half of the patches and corrects the others, so that features of the dense model are far off."""
    pruner = Pruner.unfitted(tiny.tower, "tiny", Schedule({3: 0.5}))
    torch.nn.init.normal_(pruner.predictor(3).correction.weight)
    return pruner


def pruned_logits(tiny, data, tuned, images, texts):
    """By hand: ten times the cosines of the images to texts that carry the tuned context."""
    pixels = torch.stack([tiny.preprocess(data.image(index)) for index in images])
    with torch.no_grad(), tuned.attached(tiny.model):
        features = torch.nn.functional.normalize(tiny.tower(pixels), dim=1)
        return 10 * features @ prompted_features(tiny.text, tuned.prompts.context, texts).T


STILL = TuneSettings(num_tokens=2, batch_size=16, epochs=2, learning_rate=1e-30, weight_decay=0.0, augment=False)


@pytest.mark.parametrize("batch_size", [4, 16])
def test_the_loss_of_classes_is_the_cross_entropy_on_the_pruned_model(tiny, noise, tmp_path, batch_size):
    tuned, report = tune(tiny, noise, tiny_pruner(tiny), tmp_path, replace(STILL, batch_size=batch_size))
    logits = pruned_logits(tiny, noise, tuned, range(16), ["cat.", "dog."])
    expected = -logits.log_softmax(1)[torch.arange(16), noise.labels].mean().item()
    assert report.loss == pytest.approx([expected, expected], abs=1e-4)
    assert report.steps == 2 * 16 // batch_size
    with torch.no_grad():
        texts = prompted_features(tiny.text, tuned.prompts.context, ["cat.", "dog."])
    torch.testing.assert_close(tuned.text_features(["cat", "dog"]), texts)


def test_the_loss_of_captions_is_the_mean_of_finding_texts_and_finding_images(tiny, captioned, tmp_path):
    tuned, report = tune(tiny, captioned, tiny_pruner(tiny), tmp_path, STILL)
    logits = pruned_logits(tiny, captioned, tuned, range(16), [own[0] for own in captioned.captions])
    by_image, by_text = (-logits.log_softmax(axis).diagonal().mean().item() for axis in (1, 0))
    assert abs(by_image - by_text) > 1e-3
    assert report.loss == pytest.approx([(by_image + by_text) / 2] * 2, abs=1e-4)


def test_the_learning_rate_warms_up_over_an_epoch_and_falls_by_half_a_cosine(tiny, noise, tmp_path, optimiser_steps):
    settings = replace(STILL, batch_size=4, epochs=3, learning_rate=0.5, weight_decay=0.25)
    tune(tiny, noise, tiny_pruner(tiny), tmp_path, settings)
    falling = [0.25 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [step["lr"] for step in optimiser_steps] == pytest.approx([0.1, 0.2, 0.3, 0.4, *falling])
    assert {(step["weight_decay"], step["momentum"]) for step in optimiser_steps} == {(0.25, 0.9)}


@pytest.mark.parametrize("kind", ["classes", "captions"])
def test_the_share_found_is_of_the_images_held_out(tiny, noise, tmp_path, kind, request):
    data = noise if kind == "classes" else request.getfixturevalue("captioned")
    tuned, report = tune(tiny, data, tiny_pruner(tiny), tmp_path, replace(STILL, held_out_share=0.5))
    assert (report.n_tuned, report.n_held_out) == (8, 8)
    if kind == "classes":
        chosen, _ = few_shots(data, 16, 0)
        held_out = hold_out(chosen, data.labels, 0.5)[1]
        texts, targets = ["cat.", "dog."], torch.tensor([data.labels[index] for index in held_out])
    else:
        held_out, targets = range(8, 16), torch.arange(8)
        texts = [data.captions[index][0] for index in held_out]
    found = pruned_logits(tiny, data, tuned, held_out, texts).argmax(1)
    assert report.held_out == [(found == targets).float().mean().item()] * 2


def test_the_tokens_are_those_of_the_best_epoch_on_images_held_out(tiny, noise, tmp_path, monkeypatch):
    seen = []

    def watched(self, progress, best, save=Checkpoint.save):
        save(self, progress, best)
        seen.append(self.prompts.context.clone())

    monkeypatch.setattr(Checkpoint, "save", watched)
    settings = replace(STILL, held_out_share=0.5, epochs=12, patience=20, learning_rate=0.5)
    tuned, report = tune(tiny, noise, tiny_pruner(tiny), tmp_path, settings)
    assert report.epoch == 1 + report.held_out.index(max(report.held_out))
    assert 1 < report.epoch < len(seen) == 12
    assert torch.equal(tuned.prompts.context, seen[report.epoch - 1])


def test_tokens_start_from_the_phrase_and_the_mean_patch_of_their_level(tiny, noise, tmp_path):
    settings = replace(STILL, tokens="both", coupled=False, num_tokens=8, depth=2, init_text="red umbrella")
    prompts = tune(tiny, noise, tiny_pruner(tiny), tmp_path, settings)[0].prompts
    ids = tiny.text.tokenize(["red umbrella"])[0, 1:3]
    assert torch.equal(prompts.context[0], tiny.text.embedding(ids).repeat(4, 1))
    pixels = torch.stack([tiny.preprocess(noise.image(index)) for index in range(16)])
    for level in range(2):
        mean = tiny.tower.embed(pixels, level)[:, 1:].mean((0, 1))
        assert (prompts.free[level] - mean).std().item() == pytest.approx(0.02, rel=0.3)


def test_without_a_phrase_tokens_are_small_random_numbers_of_the_seed(tiny, noise, tmp_path):
    def start(seed):
        (folder := tmp_path / str(len([*tmp_path.iterdir()]))).mkdir()
        settings = replace(STILL, tokens="both", coupled=False, init_text="", seed=seed)
        return tune(tiny, noise, tiny_pruner(tiny), folder, settings)[0].prompts

    first, again, other = start(0), start(0), start(1)
    assert torch.equal(first.context, again.context)
    assert torch.equal(first.free, again.free)
    assert not torch.equal(first.context, other.context)
    assert first.context.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("change", ["schedule", "images", "predictor", "model", "settings"])
def test_progress_is_of_one_pruner_model_and_set_of_images(tiny, noise, tmp_path, change):
    pruner, settings = tiny_pruner(tiny), replace(STILL, epochs=1)
    tune(tiny, noise, pruner, tmp_path, settings)
    match change:
        case "schedule":
            pruner.keep = 0.75
        case "images":
            noise.keys = [f"other {key}" for key in noise.keys]
        case "predictor":
            pruner = tiny_pruner(tiny)
        case "model":
            tiny.name = "another"
        case "settings":
            settings = replace(settings, learning_rate=1e-3)
    with pytest.raises(UserError, match="choose another folder, or delete"):
        tune(tiny, noise, pruner, tmp_path, settings)


def test_the_order_of_images_and_their_views_are_those_of_the_seed(tiny, noise, tmp_path, monkeypatch):
    made = []

    class Watched(Views):
        def __init__(self, data, order, view, seed):
            made.append((order, seed))
            super().__init__(data, order, view, seed)

    monkeypatch.setattr("patchranking.tuning.tune.Views", Watched)
    tune(tiny, noise, tiny_pruner(tiny), tmp_path, replace(STILL, batch_size=5, epochs=1, seed=3))
    assert made == [(passes(few_shots(noise, 16, 3)[0], 20, 3), 3)]


def test_steps_see_crops_where_they_are_to(tiny, noise, tmp_path):
    """Tokens stand still here, so that epochs differ by their views alone."""
    tuned, cropped = tune(tiny, noise, tiny_pruner(tiny), tmp_path, replace(STILL, augment=True))
    assert abs(cropped.loss[0] - cropped.loss[1]) > 1e-3
    logits = pruned_logits(tiny, noise, tuned, range(16), ["cat.", "dog."])
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor(noise.labels)).item()
    assert all(abs(loss - plain) > 1e-3 for loss in cropped.loss)


def test_a_pruner_of_another_model_is_refused(tiny, noise, tmp_path):
    pruner = tiny_pruner(tiny)
    tiny.tower.identity()[0].mul_(2)
    with pytest.raises(UserError, match="the model has other weights"):
        tune(tiny, noise, pruner, tmp_path, STILL)


def test_a_pruner_that_was_fitted_to_hand_on_tokens_is_refused(tiny, noise, tmp_path):
    own = tiny_pruner(tiny)
    pruner = Pruner({own.fitted.block: own.predictor(own.fitted.block)}, own.base, own.fitted, hands_on=-1)
    with pytest.raises(UserError, match="fitted with --target tokens"):
        tune(tiny, noise, pruner, tmp_path, STILL)


def test_shots_are_those_of_the_seed_and_skipped_pictures_are_named(tiny, noise, tmp_path, monkeypatch):
    first = next(index for index in few_shots(noise, 3, 5)[0] if noise.labels[index] == 1)
    (tmp_path / "noise" / noise.keys[first]).write_bytes(b"no picture")
    chosen, _ = few_shots(noise, 3, 5)
    seen, image = [], type(noise).image
    monkeypatch.setattr(type(noise), "image", lambda self, index: seen.append(index) or image(self, index))
    settings = replace(STILL, shots=3, batch_size=6, epochs=1, init_text="", seed=5)
    _, report = tune(tiny, noise, tiny_pruner(tiny), tmp_path, settings)
    assert (report.n_tuned, report.n_held_out, report.steps) == (6, 0, 1)
    assert list(report.skipped) == [noise.keys[first]]
    assert sorted(seen[-6:]) == sorted(chosen)


@pytest.mark.parametrize("tokens", ["text", "visual", "both"])
def test_only_the_tokens_learn_and_the_loss_falls(tokens, model, data, pruner, tmp_path):
    towers = {name: value.clone() for name, value in model.model.state_dict().items()}
    predictor = {name: value.clone() for name, value in pruner.predictors.state_dict().items()}
    settings = replace(QUICK, tokens=tokens, epochs=4, batch_size=10, learning_rate=0.01, augment=False)
    tuned, report = tune(model, data, pruner, tmp_path, settings)
    assert all(torch.equal(value, towers[name]) for name, value in model.model.state_dict().items())
    assert all(torch.equal(value, predictor[name]) for name, value in pruner.predictors.state_dict().items())
    assert all(weight.grad is None for weight in [*model.model.parameters(), *pruner.predictors.parameters()])
    assert len(report.loss) == report.steps == 4
    assert report.loss[3] < report.loss[2] < report.loss[1] < report.loss[0]
    assert (pruner.tuned, tuned.tuned, tuned.keep) == ("none", tokens, 0.5)


def test_a_tuned_artefact_reloads_to_the_same_predictions_and_leaves_no_trace(model, data, pruner, tmp_path):
    tuned, _ = tune(model, data, pruner, tmp_path, QUICK)
    tuned.save_pretrained(tmp_path / "out")
    loaded = Pruner.from_pretrained(tmp_path / "out")
    pixels = torch.stack([model.preprocess(data.image(index)) for index in range(3)])
    dense = model.tower(pixels)
    with tuned.attached(model.model):
        expected = model.tower(pixels)
    with loaded.attached(model.model):
        assert torch.equal(model.tower(pixels), expected)
    assert not torch.equal(expected, dense)
    assert torch.equal(model.tower(pixels), dense)
    names = data.class_names
    assert torch.equal(loaded.text_features(names), tuned.text_features(names))
    assert torch.equal(loaded.text_features(names[1:2]), tuned.text_features(names)[1:2])


def test_features_of_other_classes_need_the_text_encoder_and_say_so(model, data, pruner, tmp_path):
    tuned, _ = tune(model, data, pruner, tmp_path, replace(QUICK, tokens="text"))
    with pytest.raises(UserError, match="'hovercraft' is none of them: give the text encoder"):
        tuned.text_features(["hovercraft"])
    with pytest.warns(UserWarning, match="'hovercraft' is none of them"):
        found = tuned.text_features([*data.class_names, "hovercraft"], model.text)
    torch.testing.assert_close(found[:-1], tuned.text_features(data.class_names), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="holds no tuned tokens"):
        pruner.text_features(data.class_names)


def test_visual_tokens_leave_the_text_features_of_the_templates(model, data, pruner, tmp_path):
    tuned, _ = tune(model, data, pruner, tmp_path, replace(QUICK, tokens="visual"))
    zero_shot = class_features(model.text, data.class_names, data.templates)
    torch.testing.assert_close(tuned.text_features(data.class_names), zero_shot)
    with pytest.raises(UserError, match="use the model's own text features"):
        tuned.text_features(["hovercraft"], model.text)


@pytest.mark.parametrize("held_out_share", [0.0, 0.5])
def test_a_stopped_tuning_ends_as_an_uninterrupted_one(held_out_share, model, data, pruner, tmp_path, monkeypatch):
    settings = replace(QUICK, epochs=4, held_out_share=held_out_share)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, report = tune(model, data, pruner, tmp_path / "whole", settings)
    saves = []

    def stop(self, progress, best, save=tune.__globals__["Checkpoint"].save):
        save(self, progress, best)
        saves.append(progress.step)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("patchranking.tuning.tune.Checkpoint.save", stop)
    with pytest.raises(KeyboardInterrupt):
        tune(model, data, pruner, tmp_path / "parts", settings)
    parts, again = tune(model, data, pruner, tmp_path / "parts", settings)
    assert saves[2] > saves[1] > 0
    assert again == report
    for name, value in tokens_of(whole).items():
        assert torch.equal(value, tokens_of(parts)[name]), name


def test_another_tuning_does_not_go_on_from_this_one(model, data, pruner, tmp_path):
    tune(model, data, pruner, tmp_path, QUICK)
    with pytest.raises(UserError, match="choose another folder, or delete"):
        tune(model, data, pruner, tmp_path, replace(QUICK, seed=1))


def test_it_stops_early_and_keeps_the_best_epoch(model, data, pruner, tmp_path):
    settings = replace(QUICK, epochs=30, held_out_share=0.5, patience=2, learning_rate=1e-30)
    tuned, report = tune(model, data, pruner, tmp_path, settings)
    assert (len(report.held_out), report.epoch) == (3, 1)
    best = load_file(tmp_path / "tuning.safetensors")
    for name, value in tokens_of(tuned).items():
        if name != "class_features":
            assert torch.equal(value, best[f"best.{name}"])


def test_captions_tune_without_classes(model, pruner, tmp_path):
    scenes = load_data("demo:train", 12)
    lines = ["image\tcaption"]
    for index in range(12):
        scenes.image(index).save(tmp_path / f"{index}.png")
        lines.append(f"{index}.png\ta {scenes.class_names[scenes.labels[index]]}")
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "list.tsv").write_text("\n".join(lines))
    settings = replace(QUICK, epochs=3, held_out_share=0.2)
    tuned, report = tune(model, load_data(str(tmp_path / "list.tsv")), pruner, tmp_path, settings)
    assert (report.n_tuned, report.n_held_out, list(report.skipped)) == (9, 2, ["0.png"])
    assert tuned.prompts.class_names == []
    assert {share * 2 for share in report.held_out} <= {0, 1, 2}
    assert len(report.held_out) == len(report.loss) == 3


def test_a_model_without_a_text_side_is_refused(model, data, pruner, tmp_path):
    with pytest.raises(UserError, match="needs a text encoder, and 'demo' has none"):
        tune(replace(model, text=None), data, pruner, tmp_path, QUICK)


def test_a_loss_that_is_not_finite_is_said(model, data, pruner, tmp_path):
    with pytest.raises(UserError, match="choose a lower learning rate"):
        tune(model, data, pruner, tmp_path, replace(QUICK, epochs=8, learning_rate=1e18))


TUNE = """
import lightning_fabric, torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from patchranking import cli, load_model
from patchranking.commands import tune

load_model("demo")

def command(*words):
    sys.argv, sys.stdout = ["patchranking", *words], sys.stderr
    cli.main()
    assert torch.distributed.is_initialized() == (os.environ.get("WORLD_SIZE", "1") != "1")

def run(processes, *words):
    if processes == "1":
        return command(*words)
    here = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork", "monitor_interval": 0.1}
    elastic_launch(LaunchConfig(1, 1, int(processes), run_id="tune", **here), command)(*words)
"""


@pytest.fixture(scope="module")
def server(model, killed_forks, tmp_path_factory):
    """Tunes by the command line in processes of torchrun's launcher, or in one that is killed at its n-th step."""
    folder = tmp_path_factory.mktemp("tune")
    Pruner.unfitted(model.tower, "demo", Schedule({3: 0.5})).save_pretrained(folder / "fit")
    words = ["--classes", "base", "--limit", 400, "--shots", 1, "--num_tokens", 2, "--batch_size", 32, "--epochs", 2]
    words += ["--learning_rate", 0.5]  # so that tokens move by much more than rounding
    with killed_forks(TUNE) as ask:

        def tuned(out, fatal=0, processes=1):
            where = ["--pruner", folder / "fit", "--out", folder / out]
            return ask(fatal, processes, "tune", "demo", "demo:train", *words, *where), folder / out

        yield tuned


@pytest.fixture(scope="module")
def whole(server):
    """What an uninterrupted tuning in one process ends with."""
    code, folder = server("whole")
    assert code == 0
    return load_file(folder / "model.safetensors")


def test_a_killed_command_goes_on(server, whole):
    """Killed while it writes its second checkpoint, and while it writes the pruner."""
    code, folder = server("killed", fatal=2)
    assert code == -signal.SIGKILL
    assert json.loads(notes(folder / "tuning.safetensors")["progress"])["step"] == 2
    assert server("killed", fatal=2)[0] == -signal.SIGKILL
    assert json.loads(notes(folder / "tuning.safetensors")["progress"])["step"] == 4
    assert not (folder / "model.safetensors").exists()
    assert server("killed")[0] == 0
    killed = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())


def test_torchrun_shares_the_batch_and_ends_with_the_same_tokens(server, whole):
    code, folder = server("two", processes=2)
    assert code == 0
    two = load_file(folder / "model.safetensors")
    for name, value in whole.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
