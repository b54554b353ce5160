"""CycleGAN's training step (Zhu et al., "Unpaired image-to-image translation using cycle-consistent adversarial
networks", 2017), written from the paper as one plain trainer: the peer beside which `benchmarks.step` sets ours.

G turns x into y, F y into x; D_X and D_Y tell real images of either kind from made ones. All images are (N, 3, H, W) in
[-1, 1].
"""
import torch
import torch.nn.functional as F
from torch import nn

from losses import ReplayPool  # its default is CycleGAN's
from networks import init_weights

CYCLE, IDENTITY = 10.0, 5.0  # λ, and that of the identity terms, half of it (§5.2)


class Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to what went in."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels))

    def forward(self, h):
        return h + self.body(h)


def generator(ngf, size):
    """c7s1-64, d128, d256, R256 six times (nine from 256 px on), u128, u64, c7s1-3 (appendix 7.2), for ngf = 64."""
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, ngf, 7), nn.InstanceNorm2d(ngf), nn.ReLU(True)]
    for c in (ngf, 2 * ngf):
        layers += [nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), nn.InstanceNorm2d(2 * c), nn.ReLU(True)]
    layers += [Residual(4 * ngf) for _ in range(6 if size < 256 else 9)]
    for c in (4 * ngf, 2 * ngf):
        up = nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1)
        layers += [up, nn.InstanceNorm2d(c // 2), nn.ReLU(True)]
    return init_weights(nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(ngf, 3, 7), nn.Tanh()))


def discriminator(ndf, n_layers):
    """C64-C128-C256-C512 and a score of each field: of 70 px (appendix 7.2) for ndf = 64 and n_layers = 3."""
    channels = [min(2**i, 8) * ndf for i in range(n_layers + 1)]
    layers = [nn.Conv2d(3, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
    for i, (c, d) in enumerate(zip(channels[:-1], channels[1:], strict=True), 1):
        layers += [nn.Conv2d(c, d, 4, stride=2 if i < n_layers else 1, padding=1), nn.InstanceNorm2d(d),
                   nn.LeakyReLU(0.2, True)]
    return init_weights(nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, padding=1)))


class CycleGAN(nn.Module):
    """Two generators, two discriminators."""

    def __init__(self, size, ngf, ndf, n_layers):
        super().__init__()
        self.G, self.F = generator(ngf, size), generator(ngf, size)
        self.D_X, self.D_Y = discriminator(ndf, n_layers), discriminator(ndf, n_layers)


class CycleGANTrainer:
    """Optimisers, pools and the step of a `CycleGAN`; amp: convolutions in bfloat16, which the paper has not."""

    def __init__(self, model, lr=2e-4, beta1=0.5, pool_size=50, amp=False):
        self.model, self.amp = model, amp
        self.makers, self.judges = (nn.ModuleList(nets) for nets in ((model.G, model.F), (model.D_X, model.D_Y)))
        self.opt_G, self.opt_D = (torch.optim.Adam(nets.parameters(), lr=lr, betas=(beta1, 0.999))
                                  for nets in (self.makers, self.judges))
        self.pool_x, self.pool_y = ReplayPool(pool_size, 0), ReplayPool(pool_size, 1)

    def train_step(self, batch):
        """Generators, then discriminators. batch: {"x", "y": (N, 3, H, W)} -> {name: detached scalar tensor}."""
        net, x, y = self.model, batch["x"], batch["y"]
        self.judges.requires_grad_(False)
        with self._autocast():
            y_made, x_made = net.G(x), net.F(y)
            terms = {
                "gan_G": F.mse_loss(*ones(net.D_Y(y_made))),  # (D_Y(G(x)) - 1)²
                "gan_F": F.mse_loss(*ones(net.D_X(x_made))),  # (D_X(F(y)) - 1)²
                "cycle_x": CYCLE * F.l1_loss(net.F(y_made), x),  # |F(G(x)) - x|
                "cycle_y": CYCLE * F.l1_loss(net.G(x_made), y),  # |G(F(y)) - y|
                "id_y": IDENTITY * F.l1_loss(net.G(y), y),  # |G(y) - y|
                "id_x": IDENTITY * F.l1_loss(net.F(x), x),  # |F(x) - x|
            }
        self._update(self.opt_G, sum(terms.values()))

        self.judges.requires_grad_(True)
        y_old, x_old = self.pool_y.query(y_made.detach()), self.pool_x.query(x_made.detach())
        with self._autocast():
            d_terms = {"D_Y": judged(net.D_Y(y), net.D_Y(y_old)), "D_X": judged(net.D_X(x), net.D_X(x_old))}
        self._update(self.opt_D, sum(d_terms.values()))
        return {k: v.detach() for k, v in (terms | d_terms).items()}

    @staticmethod
    def _update(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def _autocast(self):
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.amp)


def ones(scores):
    """Scores, and what a generator wants of them."""
    return scores, torch.ones_like(scores)


def judged(real, made):
    """½ ((D(real) - 1)² + D(made)²): halved, which slows D relative to G (appendix 7.1)."""
    return (F.mse_loss(*ones(real)) + F.mse_loss(made, torch.zeros_like(made))) / 2
