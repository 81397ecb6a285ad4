"""Data sets by name, as numpy arrays: a device measures accuracy without torch."""

from emqdeploy.data import folders, imagenet, libraries, shards, small, tables  # noqa: F401  (registers the data sets)
from emqdeploy.data.loading import Dataset, load_dataset
from emqdeploy.data.naming import DATASETS, DataRequest
from emqdeploy.data.pictures import ImageFiles, Images, Pictures
from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.splits import Split, validation_split

__all__ = [
    "DATASETS",
    "DataRequest",
    "Dataset",
    "ImageFiles",
    "Images",
    "Pictures",
    "Preprocessing",
    "Split",
    "load_dataset",
    "validation_split",
]
