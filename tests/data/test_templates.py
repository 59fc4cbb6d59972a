from __future__ import annotations

import pytest

from patchranking.data.templates import templates_for


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("flowers", "flower"),
        ("Flowers102", "flower"),
        ("OxfordIIITPet", "pet"),
        ("oxford-iiit-pet", "pet"),
        ("oxford-iiit-pets", "pet"),
        ("FGVCAircraft", "aircraft"),
    ],
)
def test_known_data_sets_have_a_template_of_their_own(name, word):
    assert templates_for(name) == (f"a photo of a {{}}, a type of {word}.",)


@pytest.mark.parametrize("name", ["imagenette", "", "flowers+food"])
def test_other_and_mixed_data_sets_have_the_plain_one(name):
    assert templates_for(name) == ("a photo of a {}.",)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("Food101", "a photo of {}, a type of food."),
        ("DTD", "{} texture."),
        ("ucf101", "a photo of a person doing {}."),
    ],
)
def test_some_templates_are_of_another_form(name, template):
    assert templates_for(name) == (template,)
