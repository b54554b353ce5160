"""Each equation against a slow literal version in float64, and the replay pool against its definition."""
import math

import numpy as np
import pytest
import torch

import losses


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def literal_mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_gan_generator():
    d = random(2, 1, 3, 3)
    assert losses.gan_generator(d).item() == pytest.approx(literal_mean((1 - v) ** 2 for v in d.flatten().tolist()))


def test_gan_discriminator():
    real, fake1, fake2 = (random(2, 1, 3, 3, seed=i) for i in range(3))
    expected = (literal_mean((1 - v) ** 2 for v in real.flatten().tolist())
                + 0.5 * literal_mean(v**2 for v in fake1.flatten().tolist())
                + 0.5 * literal_mean(v**2 for v in fake2.flatten().tolist()))
    assert losses.gan_discriminator(real, fake1, fake2).item() == pytest.approx(expected)


def test_mae():
    a, b = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    expected = literal_mean(abs(p - q) for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    assert losses.mae(a, b).item() == pytest.approx(expected)


def literal_gram(features):
    n, c, h, w = features.shape
    f = features.numpy()
    out = np.zeros((n, c, c))
    for image in range(n):
        for i in range(c):
            for j in range(c):
                out[image, i, j] = sum(f[image, i, r, k] * f[image, j, r, k] for r in range(h) for k in range(w))
    return out / (c * h * w)


def test_error_in_a_hole_by_hand():
    image, target = torch.zeros(1, 3, 1, 2), torch.tensor([[[[0.5, 1.0]], [[-0.25, 1.0]], [[0.0, 1.0]]]])
    hole = torch.tensor([[[[1.0, 0.5]]]])
    assert losses.hole_mae(image, target, hole).item() == pytest.approx((0.5 + 0.25 + 0 + 3 * 0.5) / 6)
    assert losses.hole_mae(image, target, 0 * hole) == 0


def test_gram_and_texture():
    a = {0: random(2, 3, 4, 5), 2: random(2, 4, 2, 3)}
    b = {0: random(2, 3, 4, 5, seed=1), 2: random(2, 4, 2, 3, seed=1)}
    assert np.allclose(losses.gram(a[0]).numpy(), literal_gram(a[0]), atol=1e-6)
    expected = literal_mean(np.abs(literal_gram(a[k]) - literal_gram(b[k])).mean() for k in a)
    assert losses.texture(a, b, (0, 2)).item() == pytest.approx(expected, rel=1e-5)


def test_gram_of_half_precision_does_not_overflow():
    features = torch.full((1, 2, 64, 64), 200.0, dtype=torch.float16)
    assert losses.gram(features).tolist() == [[[20000.0] * 2] * 2]


def test_perceptual():
    a = {25: random(2, 3, 4, 4), 28: random(1, 2, 2, 2)}
    b = {25: random(2, 3, 4, 4, seed=1), 28: random(1, 2, 2, 2, seed=1)}
    expected = literal_mean(np.abs(a[k].numpy() - b[k].numpy()).mean() for k in a)
    assert losses.perceptual(a, b, (25, 28)).item() == pytest.approx(expected, rel=1e-5)


# --- the replay pool ---


def numbered(start, n):
    """n images whose pixels all hold their number."""
    return torch.arange(start, start + n).float().view(n, 1, 1, 1).expand(n, 1, 2, 2).clone()


def test_pool_returns_new_images_while_it_fills():
    pool = losses.ReplayPool(size=6)
    for start in (0, 3):
        images = numbered(start, 3)
        assert torch.equal(pool.query(images), images)
    assert sorted(pool.images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_pool_of_size_zero_is_off():
    images = numbered(0, 3)
    assert torch.equal(losses.ReplayPool(size=0).query(images), images)


def test_pool_statistics():
    """Once full: an old image with probability ½, each slot alike; what comes out has left the pool."""
    size, queries = 8, 4000
    pool = losses.ReplayPool(size=size, seed=3)
    pool.query(numbered(0, size))
    old, slots = 0, torch.zeros(size)
    for i in range(queries):
        before = pool.images[:, 0, 0, 0].tolist()
        (out,) = pool.query(numbered(size + i, 1))[:, 0, 0, 0].tolist()
        after = pool.images[:, 0, 0, 0].tolist()
        if out == size + i:
            assert after == before
        else:
            old += 1
            slot = before.index(out)
            slots[slot] += 1
            assert after == before[:slot] + [size + i] + before[slot + 1 :]
    assert abs(old - queries / 2) < 4 * math.sqrt(queries / 4)
    p = 1 / size
    assert ((slots - old * p).abs() < 4 * math.sqrt(old * p * (1 - p))).all()


def test_pool_aliases_nothing():
    pool = losses.ReplayPool(size=2)
    images = numbered(1, 2)
    out = pool.query(images)
    images.zero_()
    out.zero_()
    assert sorted(pool.images[:, 0, 0, 0].tolist()) == [1, 2]
    for i in range(20):
        pool.query(numbered(10 + i, 2)).zero_()
    assert (pool.images > 0).all()


def test_pool_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    losses.ReplayPool(size=2).query(numbered(0, 5))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("filled", [0, 3, 9])
def test_pool_goes_on_exactly_from_its_state(filled):
    pool, copy = losses.ReplayPool(size=5, seed=1), losses.ReplayPool(size=5, seed=2)
    for i in range(filled):
        pool.query(numbered(i, 1))
    copy.load_state_dict(pool.state_dict())
    for i in range(20):
        images = numbered(100 + 3 * i, 3)
        assert torch.equal(pool.query(images), copy.query(images))


def test_pool_smaller_than_the_saved_one():
    pool = losses.ReplayPool(size=5)
    pool.query(numbered(0, 5))
    with pytest.raises(ValueError, match="holds 5 images, this one 3"):
        losses.ReplayPool(size=3).load_state_dict(pool.state_dict())
