"""Image-text examples: random-access sources, image transforms, and the Grain training pipeline.

Import the modules themselves (`dinotxt_jax.data.sources`, `.transforms`, `.pipeline`, `.scenes`);
this package imports none of them, so that `import dinotxt_jax` stays light.
"""
