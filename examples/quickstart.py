"""From a folder of images to batches of mixed crops: python examples/quickstart.py [FOLDER]

FOLDER contains one folder of images per class. Without it, the two photos that come with scikit-learn are used.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ffcv_cropmix import CropMixRGBImageDecoder, Loader  # before FFCV, which then is imported 5 s faster

# isort: split
from ffcv.fields.basics import IntDecoder
from ffcv.loader import OrderOption
from ffcv.transforms import ToTensor, ToTorchImage
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.utils import save_image

with TemporaryDirectory() as scratch:
    for name, photo in zip(("china", "flower"), load_sample_images().images):
        Path(scratch, name).mkdir()
        for k in range(8):
            Image.fromarray(photo[:, 20 * k :]).save(Path(scratch, name, f"{k}.jpg"))
    writer, beton = Path(__file__).parents[1] / "write_dataset.py", f"{scratch}/quickstart.beton"
    options = ["--data_dir", *(sys.argv[1:] or [scratch]), "--write_path", beton]
    if subprocess.run([sys.executable, writer, *options]).returncode:
        sys.exit(1)
    decoder = CropMixRGBImageDecoder((224, 224), number=(2, 3, 4), operation="cutmix", flip_probability=0.5)
    pipelines = {"image": [decoder, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor()]}
    for images, labels in Loader(beton, 8, order=OrderOption.RANDOM, drop_last=False, pipelines=pipelines):
        print(f"images {tuple(images.shape)}, {images.dtype}; labels {labels.flatten().tolist()}")
    save_image(images / 255, "quickstart.png", nrow=4)
    print("quickstart.png shows the last batch")
