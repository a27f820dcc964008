"""Data sets of images: small ones in memory, large ones from folders, shards and hubs.

In: a `DataSpec`, a seed, a root. Out: a LightningDataModule of three splits; its loaders can resume within an epoch.
"""

from se_lab.data.base import Batch as Batch
from se_lab.data.base import Batches as Batches
from se_lab.data.base import DataError as DataError
from se_lab.data.base import ImageData as ImageData
from se_lab.data.folders import Listing as Listing
from se_lab.data.folders import scan as scan
from se_lab.data.folders import use_listing as use_listing
from se_lab.data.opening import KNOWN as KNOWN
from se_lab.data.opening import DataShape as DataShape
from se_lab.data.opening import Inspection as Inspection
from se_lab.data.opening import check_split as check_split
from se_lab.data.opening import create_data as create_data
from se_lab.data.opening import data_shape as data_shape
from se_lab.data.opening import data_shapes as data_shapes
from se_lab.data.opening import inspect_images as inspect_images
from se_lab.data.opening import listing_of as listing_of
from se_lab.data.opening import present_digest as present_digest
from se_lab.data.opening import with_present_digest as with_present_digest
from se_lab.data.table import DATASETS as DATASETS
from se_lab.data.table import Splits as Splits
