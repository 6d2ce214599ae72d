"""Image-text examples: random-access sources, image transforms, and the Grain training pipeline.

Import the modules directly (`dinotxt_jax.data.sources`, `.transforms`, `.pipeline`, `.scenes`);
this package does not import them, so that `import dinotxt_jax` stays fast.
"""
