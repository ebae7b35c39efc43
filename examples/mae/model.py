"""The networks: a vision transformer, and the masked autoencoder around it, built from timm and lightly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightly.models import utils
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM, init_weights
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ffcv_cropmix.errors import DataError
from ffcv_cropmix.training.models import description
from ffcv_cropmix.training.safe_load import safe_load

from .config import ModelConfig


def create_vit(model: ModelConfig, **further: Any) -> VisionTransformer:
    """Create timm's vision transformer of that shape; `further` are options of timm's class."""
    return VisionTransformer(
        model.resolution,
        model.patch_size,
        embed_dim=model.width,
        depth=model.depth,
        num_heads=model.heads,
        **further,
    )


class MaskedAutoencoder(nn.Module):
    """A masked autoencoder, which predicts the masked patches of an image from the others.

    Takes normalised float images (N, 3, side, side) and returns the loss. The encoder, as timm has it, is
    `encoder.vit`. Source: He et al. 2021, arXiv 2111.06377, section 3.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.patch_size, self.mask_ratio = model.patch_size, model.mask_ratio
        self.norm_pix_loss = bool(model.norm_pix_loss)
        unused = nn.Parameter(
            torch.zeros(1, 1, model.width), requires_grad=False
        )  # masked patches are left out instead
        self.encoder = MaskedVisionTransformerTIMM(create_vit(model, num_classes=0), mask_token=unused)
        self.embed = nn.Linear(model.width, model.decoder_width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            model.patches, model.decoder_width, model.decoder_depth, model.decoder_heads
        )
        self.predict = nn.Linear(model.decoder_width, 3 * model.patch_size**2)
        self.embed.apply(init_weights)
        self.predict.apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean squared error of the masked patches."""
        kept, masked = self.sample_masks(images)
        targets = utils.get_at_index(self.targets(images), masked - 1)
        return F.mse_loss(self.predictions(images, kept, masked), targets)

    def sample_masks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the tokens to keep, int64 (N, kept), with the class token, and those to mask, int64 (N, masked).

        The class token is 0; patches are 1, 2, ..., row by row.
        """
        size = len(images), self.encoder.sequence_length
        return utils.random_token_mask(size, self.mask_ratio, device=images.device)

    def targets(self, images: Tensor) -> Tensor:
        """Return the targets of all patches, (N, patches, 3 * pixels), normalised per patch if that is predicted."""
        patches = utils.patchify(images, self.patch_size)
        return utils.normalize_mean_var(patches) if self.norm_pix_loss else patches

    def predictions(self, images: Tensor, kept: Tensor, masked: Tensor) -> Tensor:
        """Predict the masked patches, (N, masked, 3 * pixels), in the order of `masked`."""
        encoded = self.embed(self.encoder.encode(images, idx_keep=kept))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), self.encoder.sequence_length))
        tokens = utils.set_at_index(tokens.to(encoded.dtype), kept, encoded)
        return self.predict(utils.get_at_index(self.decoder(tokens), masked))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images with masked patches in gray, and with predictions in their place, normalised as `images`.

        Predictions that are normalised per patch get the mean and the standard deviation of the true patches.
        """
        kept, masked = self.sample_masks(images)
        patches = utils.patchify(images, self.patch_size)
        predicted = self.predictions(images, kept, masked).float()
        if self.norm_pix_loss:
            true = utils.get_at_index(patches, masked - 1)
            variance, mean = torch.var_mean(true, dim=-1, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        hidden = utils.set_at_index(patches, masked - 1, torch.zeros_like(predicted))
        filled = utils.set_at_index(patches, masked - 1, predicted)
        return utils.unpatchify(hidden, self.patch_size), utils.unpatchify(filled, self.patch_size)


def read_shape(weights: Path) -> ModelConfig:
    """Read the shape of a pre-trained encoder from the description in its weights.

    Weights of 0.1.0 have no description; their shape is read from params.json beside them.

    Raises:
        DataError: A file cannot be read, or does not contain the shape.
    """
    described = description(safe_load(weights)).get("encoder")
    if described:
        return ModelConfig(**described)
    path = weights.with_name("params.json")
    try:
        model = json.loads(path.read_text())["model"]
        return ModelConfig(**{key: value for key, value in model.items() if key != "arch"})
    except OSError as error:
        raise DataError(
            f"{path}: {(error.strerror or str(error)).lower()}; it should contain the shape of the encoder"
        ) from None
    except (LookupError, TypeError, ValueError, AttributeError):
        raise DataError(f"{path} is not of a pre-training: it lacks the shape of the encoder") from None


def load_encoder(vit: VisionTransformer, weights: Path) -> None:
    """Load the weights of a pre-trained encoder into a classifier, except for its head and the norm before that.

    Raises:
        DataError: The file cannot be read, or is of another encoder.
    """
    state = safe_load(weights)
    own = vit.state_dict()
    shared = [key for key in own if not key.startswith(("head.", "fc_norm."))]
    for key in shared:
        if key not in state or state[key].shape != own[key].shape:
            raise DataError(f"{weights} is not of this encoder: {key} is missing or of another shape")
    vit.load_state_dict({key: state[key] for key in shared}, strict=False)
