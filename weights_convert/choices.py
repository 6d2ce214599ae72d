"""What can be chosen on the command line: known without JAX, so that --help is immediate."""

import ml_dtypes
import numpy as np

# Of the arrays in a model directory.
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# Of an exported file.
EXPORT_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# Of an export: `trained` is head and text transformer.
PARTS = ("backbone", "head", "text", "trained")
# Components of a model that hold one number.
SCALARS = ("logit_scale", "logit_bias")
# Largest difference from a reference file, relative to the size of a quantity.
TOLERANCE = 1e-3
