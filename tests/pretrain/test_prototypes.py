from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchranking.data import load_data
from patchranking.data.base import chosen_from
from patchranking.errors import UserError
from patchranking.pretrain.features import Features
from patchranking.pretrain.prototypes import (
    PrototypeSettings,
    candidates,
    cluster,
    find_prototypes,
    read_prototypes,
    standardised,
    within_clusters,
)

pytest.importorskip("sklearn")


def blobs(each, centres=((6, 0, 0), (0, 6, 0), (0, 0, 6), (-6, -6, -6)), seed=0):
    """Points around centres, as many around each, in turn."""
    random = np.random.default_rng(seed)
    return (np.tile(centres, (each, 1)) + random.normal(size=(each * len(centres), 3))).astype(np.float32)


@pytest.fixture
def data():
    return load_data("demo:train", 80)


@pytest.fixture
def features(data):
    """Four blobs; the fifth image cannot be read."""
    keys = [key for key in data.keys if key != "train/0000004"]
    vectors = np.delete(blobs(20), 4, axis=0)
    return Features(keys, vectors, {"train/0000004": "empty file"}, {"model": "tiny", "fingerprint": [1.0]})


def test_standardised_features_have_mean_0_and_deviation_1_before_their_length_is_1():
    vectors = np.random.default_rng(0).normal([5, -3, 100, 7], [1, 20, 0.1, 0], (50, 4)).astype(np.float32)
    vectors[:, 3] = 0.1
    expected = (vectors - vectors.mean(0)) / [*vectors[:, :3].std(0), np.inf]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert standardised(vectors) == pytest.approx(expected, abs=1e-3)
    assert (standardised(np.ones((3, 2), np.float32)) == 0).all()


def test_clusters_are_found_again():
    points = standardised(blobs(30))
    found, centres = cluster(points, 4, seed=1)
    assert len({tuple(found[own::4]) for own in range(4)}) == 4
    assert all(len(set(found[own::4])) == 1 for own in range(4))
    for own in range(4):
        assert centres[found[own]] == pytest.approx(points[own::4].mean(0), abs=0.05)
    assert (cluster(points, 4, seed=1)[0] == found).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 9, width=32)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_distances_within_clusters_are_those_of_the_definition(rows):
    clusters, distances = (np.array(column) for column in zip(*rows, strict=True))
    found = within_clusters(distances, clusters)
    for own, distance, value in zip(clusters, distances, found, strict=True):
        members = distances[clusters == own]
        low, high = members.min(), members.max()
        assert value == pytest.approx((distance - low) / (high - low) if high > low else 0)


def test_degenerate_clusters_have_distance_0():
    data = load_data("demo:train", 5)
    vectors = np.array([[0, 1], [0, 1], [0, 1], [5, 0], [5, 0]], np.float32)
    found = find_prototypes(data, Features(data.keys, vectors, {}, {"model": "m"}), PrototypeSettings(4))
    assert found.about["clusters"] == 2
    assert found.distances.tolist() == [0] * 5
    alone = load_data("demo:train", 1)
    found = find_prototypes(alone, Features(alone.keys, vectors[:1], {}, {"model": "m"}))
    assert (found.about["clusters"], found.about["davies_bouldin"], found.distances.tolist()) == (1, None, [0])


def test_the_number_of_clusters_is_chosen(data, features):
    told = []
    found = find_prototypes(data, features, progress=told.append)
    assert found.about["clusters"] == 4
    assert [line.split()[0] for line in told] == [str(number) for number in candidates(79)]
    assert candidates(79) == [2, 3, 4, 6]
    assert candidates(5) == [2]
    assert candidates(10**7)[-2:] == [768, 1024]


def test_every_cluster_has_its_prototype_and_the_failed_image_is_accounted_for(data, features):
    found = find_prototypes(data, features, PrototypeSettings(4))
    assert found.keys == data.keys
    assert found.about["totals"] == {"in": 80, "out": 79, "failed": 1}
    assert np.flatnonzero(~found.usable).tolist() == [4]
    assert (found.clusters[4], found.errors[4]) == (-1, "empty file")
    points = standardised(features.vectors)
    clusters = found.clusters[found.usable]
    for own in range(4):
        members = points[clusters == own]
        distance = np.linalg.norm(members - members.mean(0), axis=1)
        within = found.distances[found.usable][clusters == own]
        assert (within.min(), within.max()) == (0, 1)
        assert np.corrcoef(distance, within)[0, 1] > 0.95


def test_classes_may_be_the_clusters(data, features):
    data.labels = [index % 4 for index in range(80)]
    found = find_prototypes(data, features, PrototypeSettings("labels"))
    assert found.clusters[found.usable].tolist() == [index % 4 for index in range(80) if index != 4]
    members = standardised(features.vectors)[found.clusters[found.usable] == 1]
    distance = np.linalg.norm(members - members.mean(0), axis=1)
    expected = (distance - distance.min()) / np.ptp(distance)
    assert found.distances[found.clusters == 1] == pytest.approx(expected, abs=1e-5)
    data.labels = None
    with pytest.raises(UserError, match="no labels to make clusters of"):
        find_prototypes(data, features, PrototypeSettings("labels"))


def test_more_clusters_than_images_are_refused(data, features):
    with pytest.raises(UserError, match="80 clusters are more than the 79 images: ask for fewer"):
        find_prototypes(data, features, PrototypeSettings(80))
    for wrong in (0, 2.5):
        with pytest.raises(UserError, match="'clusters' is a whole number, 1 or more"):
            PrototypeSettings(wrong)


def test_a_file_holds_all_of_it(tmp_path, data, features):
    found = find_prototypes(data, features, PrototypeSettings(4))
    found.write(tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.schema.names == ["key", "cluster", "distance", "error"]
    assert (table["cluster"].null_count, table["distance"].null_count, table["error"].null_count) == (1, 1, 79)
    again = read_prototypes(tmp_path / "p.parquet")
    assert (again.keys, again.errors, again.about) == (found.keys, found.errors, found.about)
    assert again.about["fingerprint"] == [1.0]
    assert (again.clusters == found.clusters).all()
    assert np.array_equal(again.distances, found.distances, equal_nan=True)


def test_distances_are_joined_by_key(data, features):
    found = find_prototypes(data, features, PrototypeSettings(4))
    shuffled = chosen_from(data, [7, 4, 2, 30])
    joined, distances, skipped = found.join(shuffled)
    assert joined.keys == [data.keys[index] for index in (7, 2, 30)]
    assert distances.tolist() == found.distances[[7, 2, 30]].tolist()
    assert skipped == {"train/0000004": "empty file"}
    assert found.join(chosen_from(data, [1]))[2] == {}


def test_images_that_were_not_clustered_are_named(data, features):
    found = find_prototypes(data, features, PrototypeSettings(4))
    with pytest.raises(UserError, match="2 of the 2 images have no distance, such as 'val/0000000'"):
        found.join(load_data("demo:val", 2))
    with pytest.raises(UserError, match="None of the 1 images has a distance"):
        found.join(chosen_from(data, [4]))


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        read_prototypes(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("PAR1")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    for name in ("text", "other"):
        with pytest.raises(UserError, match="holds no prototypes"):
            read_prototypes(tmp_path / f"{name}.parquet")
