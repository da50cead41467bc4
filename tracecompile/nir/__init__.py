"""NIR graphs as modules: networks that other tools exported in the Neuromorphic Intermediate Representation."""

from tracecompile.nir.network import NIRNetwork, load_nir

__all__ = ["NIRNetwork", "load_nir"]
