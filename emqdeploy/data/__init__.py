"""Data sets by name, as numpy arrays: a device measures accuracy without torch."""

from emqdeploy.data import folders, imagenet, small  # noqa: F401  (registers the data sets)
from emqdeploy.data.images import ImageFiles, Images
from emqdeploy.data.loading import DATASETS, DataRequest, Dataset, load_dataset
from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.splits import Split, validation_split

__all__ = [
    "DATASETS",
    "DataRequest",
    "Dataset",
    "ImageFiles",
    "Images",
    "Preprocessing",
    "Split",
    "load_dataset",
    "validation_split",
]
