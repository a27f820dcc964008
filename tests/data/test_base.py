"""Batches: every step sees the same images however it is dealt out; evaluation sees each image once."""

from types import SimpleNamespace

import pytest
import torch

from se_lab.data import DataError, create_data, data_shape
from se_lab.data.base import Batches, KeyedSampler, Portion, stratified_split
from se_lab.spec import DataSpec, SpecError


def all_batches(loader, epoch=0):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def loaders(ranks, accumulate, split="train", batch_size=24, **spec):
    """Return what each rank of a trainer would load from."""
    found = []
    for rank in range(ranks):
        data = create_data(DataSpec(batch_size=batch_size, **spec), 3, accumulate=accumulate)
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=ranks,
            accumulate_grad_batches=accumulate,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        found.append(data.batches(split))
        found[-1].sampler.set_epoch(2)
    return found


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (1, 2), (2, 2), (3, 1), (2, 4), (8, 1)])
def test_a_step_sees_the_same_images_however_it_is_dealt_out(ranks, accumulate):
    alone = list(loaders(1, 1)[0])
    dealt = [list(loader) for loader in loaders(ranks, accumulate)]
    assert {len(batches) for batches in dealt} == {len(alone) * accumulate} == {len(loaders(ranks, accumulate)[0])}
    for step, (images, labels, numbers) in enumerate(alone):
        parts = [rank[step * accumulate + part] for rank in dealt for part in range(accumulate)]
        assert {len(part[0]) for part in parts} == {24 // ranks // accumulate}
        got = torch.cat([part[2] for part in parts])
        assert sorted(got.tolist()) == sorted(numbers.tolist())
        place = [numbers.tolist().index(number) for number in got.tolist()]
        assert torch.equal(torch.cat([part[0] for part in parts]), images[place]), "augmented differently"
        assert torch.equal(torch.cat([part[1] for part in parts]), labels[place])


def test_a_micro_batch_has_the_same_images_on_more_ranks():
    """So that batch norm synchronised over ranks sees the same micro-batches."""
    one, two = loaders(1, 2), loaders(2, 2)
    for whole, *halves in zip(list(one[0]), *map(list, two), strict=True):
        assert sorted(whole[2].tolist()) == sorted(torch.cat([half[2] for half in halves]).tolist())


@pytest.mark.parametrize("size", [2, 3, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("ranks", [1, 2])
def test_evaluation_deals_out_every_image_once_and_as_many_batches_to_every_rank(size, ranks):
    shares = [Batches(KeyedSampler(size, None), 4 * ranks, Portion(rank, ranks)) for rank in range(ranks)]
    places = [loader.places(number).tolist() for loader in shares for number in range(len(loader))]
    assert len({len(loader) for loader in shares}) == 1
    assert sorted(place for part in places for place in part) == list(range(size))
    assert all(places), "a batch without images"


def test_ranks_resume_where_they_were_and_on_other_ranks():
    whole = [list(loader) for loader in loaders(2, 2)]
    state = {"done": 6, "accumulate": 2}
    for rank, loader in enumerate(loaders(2, 2)):
        loader.load_state_dict(state)
        rest = list(loader)
        assert [b[2].tolist() for b in rest] == [b[2].tolist() for b in whole[rank][6:]]
        assert torch.equal(rest[0][0], whole[rank][6][0])
    (alone,) = loaders(1, 2)
    alone.load_state_dict(state)
    assert sorted(next(iter(alone))[2].tolist()) == sorted(torch.cat([rank[6][2] for rank in whole]).tolist())
    with pytest.raises(DataError, match="started with 2 accumulation steps"):
        loaders(2, 1)[0].load_state_dict(state)


def test_batches_that_cannot_be_dealt_out_are_refused_with_the_nearest_sizes():
    with pytest.raises(
        SpecError, match=r"size is 100.*3 accumulation steps each need a multiple of 3, such as 99 or 102"
    ):
        create_data(DataSpec(batch_size=100), 0, accumulate=3)
    with pytest.raises(SpecError, match=r"8 devices with 1 accumulation step each need a multiple of 8, such as 8"):
        loaders(8, 1, batch_size=7)
    with pytest.raises(DataError, match="3 training images cannot be divided"):
        Batches(KeyedSampler(3, 0), 8, Portion(0, 2))
    with pytest.raises(DataError, match=r"1 training image.*two or more"):
        Batches(KeyedSampler(1, 0), 8)
    with pytest.raises(DataError, match="1 image cannot"):
        Batches(KeyedSampler(1, None), 8, Portion(0, 2))


def test_order_is_keyed_by_seed_and_epoch():
    def order(seed, epoch):
        loader = create_data(DataSpec(), seed).train_dataloader()
        return torch.cat([batch[2] for batch in all_batches(loader, epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("done", [0, 1, 5])  # of six
def test_interrupted_epoch_goes_on_with_the_batches_that_are_left(done):
    loader = create_data(DataSpec(), seed=0).train_dataloader()
    whole = all_batches(loader, 2)
    loader = create_data(DataSpec(), seed=0).train_dataloader()
    loader.load_state_dict({"done": done})
    rest = all_batches(loader, 2)
    assert len(rest) == len(whole) - done
    assert all(
        torch.equal(a, b)
        for left, right in zip(whole[done:], rest, strict=True)
        for a, b in zip(left, right, strict=True)
    )
    assert len(all_batches(loader, 3)) == len(whole), "the epoch after it is whole"


def test_training_drops_the_rest_and_evaluation_does_not():
    data = create_data(DataSpec(batch_size=300), seed=0)
    assert len(data.train_dataloader()) == 2  # of 1,797 images half are for testing, and 90 for validation
    assert sum(len(batch[0]) for batch in data.test_dataloader()) == data.sizes["test"]
    assert len(create_data(DataSpec(batch_size=5000), seed=0).train_dataloader()) == 1


def test_split_of_each_class_has_its_share():
    labels = torch.tensor([0] * 50 + [1] * 10)
    first, second, third = stratified_split(labels, (0.1, 0.2), seed=0)
    assert [int((labels[part] == 1).sum()) for part in (first, second, third)] == [7, 1, 2]
    assert sorted(torch.cat([first, second, third]).tolist()) == list(range(60))


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.37])
def test_the_shape_of_a_known_set_is_told_without_opening_it(fraction):
    shape, data = (
        data_shape(DataSpec(val_fraction=fraction, image_size=12)),
        create_data(DataSpec(val_fraction=fraction), 0),
    )
    assert (shape.classes, shape.shape) == (10, (1, 12, 12))
    for split, size in data.sizes.items():
        assert shape.sizes[split] == pytest.approx(size, abs=10 * (size > 0)), split
    cifar = data_shape(DataSpec("cifar10", val_fraction=fraction), root="/nowhere").sizes
    assert cifar == {"train": 50000 - round(50000 * fraction), "val": round(50000 * fraction), "test": 10000}


def test_the_shape_of_a_folder_is_read_from_it(folders):
    shape = data_shape(folders(images=6))
    assert (shape.classes, shape.shape, shape.sizes) == (2, (3, 16, 16), {"train": 6, "val": 6, "test": 12})
